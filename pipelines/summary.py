"""What a build says of itself: figures per domain, and the reason where a domain yields no query."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from infra.base.versions import Manifest
from pipelines.annotators.people.agreement import lines as people_agree
from pipelines.config import DomainThresholds

QUERY_SPLITS = ("train", "dev", "test")
STAGES = (
    "render", "listing", "collect", "filter", "split", "ground", "annotate", "review", "candidates", "gallery",
)  # fmt: skip
"""The order in which a build does its stages; a manifest keeps them by name."""
LOSING = (
    ("review", ("quadruples",)), ("annotate", ("quadruples",)), ("filter", ("pairs", "images", "instances")),
)  # fmt: skip
"""Stages that may take everything, the last one first, and what of."""
T = TypeVar("T")
DOMAINS_TOLD = 4
MORE = "give it more photos of each instance, in different settings"
HINTS = {
    "no_box": (
        "say where the object is: add boxes*.csv (columns image_path, x, y, w, h) or masks beside the photos, or name a"
        " detector in grounding.model"
    ),
    "no_difference": "photos of an instance have to differ in setting, light or framing; add such photos",
    "too_similar": "photos of an instance are too alike; add others, or raise tau_high in thresholds",
    "class_centric": "photos of an instance are too alike; add others, or raise tau_centric in thresholds",
    "box_unsure": "lower grounding.min_score, say what to look for in grounding.labels, or add boxes beside the photos",
    "text_untrue": "read the questions and answers in rejects; name a better model, or lower chat.check.min_yes",
    "text_not_separating": "read the questions and answers in rejects, or lower chat.check.min_gap",
    "bad_answer": "read the answers in rejects; name another model, or raise chat.max_tokens (good4cir.max_tokens)",
    "no_answer": "read the details in rejects, and see to the server",
    "person_rejected": "read the words of those who rejected in rejects",
    "people_disagree": "have one more person judge them, or set people.conflict to latest",
    "people_pending": "have people judge them, or set people.pending to keep",
    "too_few_images": "give every instance at least tau_valid photos, or lower tau_valid in thresholds",
}
"""Reason that took most → what to do."""


def in_order(by_stage: Mapping[str, T]) -> list[tuple[str, T]]:
    """Items by stage in the order of the build; stages it does not know come last, by name."""
    place = {stage: number for number, stage in enumerate(STAGES)}
    return sorted(by_stage.items(), key=lambda item: (place.get(item[0], len(STAGES)), item[0]))


def thresholds_line(thresholds: DomainThresholds) -> str:
    """Thresholds as people write them."""
    t = thresholds
    return (
        f"τ_valid {t.tau_valid}, τ_high {t.tau_high:g}, τ_centric {t.tau_centric:g}, τ_count {t.tau_count},"
        f" texts of at most {t.max_words} words"
    )


def domain_figures(
    thresholds: DomainThresholds,
    counts: Mapping[str, int],
    *,
    images: int,
    largest: int,
    instances: Mapping[str, int],
) -> dict[str, Any]:
    """The figures of one domain.

    Args:
        thresholds: that judged it.
        counts: names of counts → numbers, summed over parts and stages.
        images: listed ones.
        largest: readable images of the largest instance.
        instances: split → instances.
    """
    queries = {s: counts.get(f"queries {s}", 0) for s in QUERY_SPLITS}
    total = sum(queries.values())
    figures = {
        "images_listed": images,
        "images_used": {s: counts.get(f"images {s}", 0) for s in (*QUERY_SPLITS, "reserve")},
        "instances": {s: instances.get(s, 0) for s in (*QUERY_SPLITS, "reserve")},
        "instances_with_queries": {s: counts.get(f"instances with queries {s}", 0) for s in QUERY_SPLITS},
        "pairs": counts.get("pairs", 0),
        "queries": queries,
        "mean_words": round(counts.get("words", 0) / total, 2) if total else None,
        "thresholds": thresholds.model_dump(),
    }
    masks = {kind: counts.get(f"masks {kind}", 0) for kind in ("kept", "empty")}
    if any(masks.values()):
        figures["masks"] = masks
    if variants := counts.get("variants", 0):
        figures["variants"] = variants
    if not queries["test"]:
        figures["why_no_query"] = _why(thresholds, counts, largest, instances, total)
    return figures


def _why(
    thresholds: DomainThresholds,
    counts: Mapping[str, int],
    largest: int,
    instances: Mapping[str, int],
    queries: int,
) -> str:
    if not largest:
        unclear = counts.get("images variant_unclear", 0)
        return f"none of {unclear:,} images shows a variant clearly" if unclear else "no image could be read"
    if largest < thresholds.tau_valid:
        return f"no instance has τ_valid = {thresholds.tau_valid} readable images (the largest has {largest})"
    if not counts.get("pairs"):
        return (
            f"no instance keeps τ_valid = {thresholds.tau_valid} images and a pair"
            f" ({counts.get('class-centric images', 0):,} images class-centric,"
            f" {counts.get('pairs too similar', 0):,} pairs too similar)"
        )
    if not queries:
        refused = {
            k.removeprefix("pairs "): n
            for k, n in counts.items()
            if k.startswith("pairs ") and "_" in k and n
        }
        reasons = ", ".join(f"{reason} {n:,}" for reason, n in sorted(refused.items()))
        return f"none of {counts['pairs']:,} pairs could be annotated ({reasons})"
    if not instances.get("test"):
        return "only one instance is valid, it is kept for training"
    return "the test instances have no annotated pair"


def no_query(manifest: Manifest) -> str | None:
    """Why a build without a single query is refused: what took its pairs or instances, and what to do; else None."""
    domains = manifest.figures["domains"]
    if any(sum(f["queries"].values()) for f in domains.values()):
        return None
    told = [f"{domain}: {f['why_no_query']}" for domain, f in list(domains.items())[:DOMAINS_TOLD]]
    if len(domains) > DOMAINS_TOLD:
        told.append(f"{len(domains) - DOMAINS_TOLD} more domains likewise")
    losses = _losses(manifest)
    hint = HINTS.get(max(losses, key=lambda reason: losses[reason]), MORE) if losses else MORE
    return f"the benchmark holds no query ({'; '.join(told)}); {hint}"


def _losses(manifest: Manifest) -> dict[str, int]:
    """Reason → records it took, at the last stage that anything came to."""
    for stage, entities in LOSING:
        losses: dict[str, int] = {}
        for account in manifest.accounts.get(stage, []):
            if account.entity in entities:
                for reason, count in account.rejected.items():
                    losses[reason] = losses.get(reason, 0) + count
                if account.reserved:
                    losses["too_few_images"] = losses.get("too_few_images", 0) + account.reserved
        if any(losses.values()):
            return losses
    return {}


def people_lines(people: Mapping[str, Any]) -> Iterator[str]:
    """What people did of a build, and what waits for them."""
    waits = people["pending"] + people["disagree"] + people["stale"]
    rule = "left out" if people["rule_pending"] == "leave_out" else "kept as written"
    disagreed = f" ({people['rule_conflict']})" if people["rule_conflict"] == "reject" else ""
    yield (
        f"people: {people['exported']:,} pairs given to {people['people']:,}: {people['accepted']:,} accepted,"
        f" {people['edited']:,} edited, {people['rejected']:,} rejected, {people['fault']:,} with a text that breaks a"
        f" rule; {waits:,} pending, {rule}: {people['pending']:,} undecided, {people['disagree']:,} judged in two"
        f" ways{disagreed}, {people['stale']:,} decided for another text or photo"
        + (f"; {people['gone']:,} are not in this build" if people["gone"] else "")
    )
    yield from people_agree(people["agreement"])


def details_of(manifest: Manifest) -> Iterator[str]:
    """Lines for people: accounts of each stage, then figures of each domain and gallery."""
    for stage, accounts in in_order(manifest.accounts):
        for account in accounts:
            yield f"{stage}: {account.line()}"
    for domain, f in manifest.figures["domains"].items():
        queries = " + ".join(f"{f['queries'][s]:,} {s}" for s in QUERY_SPLITS)
        things = " + ".join(f"{f['instances'][s]:,} {s}" for s in (*QUERY_SPLITS, "reserve"))
        words = f", {f['mean_words']:.1f} words a text" if f["mean_words"] else ""
        yield f"{domain}: {f['images_listed']:,} images, instances {things}, queries {queries}{words}"
        if "variants" in f:
            yield f"{domain}: its groups were split into {f['variants']:,} variants, each an instance"
        if f.get("masks", {}).get("empty"):
            yield f"{domain}: {f['masks']['empty']:,} masks are empty and were left out"
        if "why_no_query" in f:
            yield f"{domain}: no test query: {f['why_no_query']}"
    if "earlier" in manifest.parents:
        known = manifest.figures["taken_over"]
        yield f"taken over from the earlier version: {known['images']:,} images, {known['pairs']:,} pairs"
    if ground := manifest.figures.get("grounding"):
        yield (
            f"boxes by {ground['model']}: {ground['found']:,} found, {ground['review']:,} unsure (in table boxes,"
            f" state review), {ground['none']:,} none"
            + (f"; {kept:,} taken over" if (kept := ground.get("taken_over", 0)) else "")
        )
    if chat := manifest.figures.get("chat"):
        money = "" if chat["money"] is None else f" for {chat['money']:,.2f}"
        others = chat["answers_of_other_benchmarks"]
        yield (
            f"asked {chat['model']}: {chat['requests']:,} requests paid, {chat['prompt_tokens']:,} +"
            f" {chat['completion_tokens']:,} tokens{money}"
            + (f", {others:,} answers kept from other benchmarks" if others else "")
        )
        again = chat["texts_asked_again"]
        yield f"texts that broke a rule: {again:,}, mended by a second try: {chat['texts_mended']:,}"
    if people := manifest.figures.get("people"):
        yield from people_lines(people)
    near = manifest.figures["near_duplicates"]
    if near["pairs"]:
        gone = ", ".join(f"{count:,} of {split}" for split, count in near["images_rejected"].items())
        yield (
            f"near-duplicates: {near['pairs']:,} pairs among {near['images']:,} images of different instances,"
            f" {near['pairs_across_splits']:,} of them across splits"
            + (f"; images rejected: {gone}" if gone else "")
        )
    for place, g in manifest.figures["galleries"].items():
        extra = g["distractors"]
        yield (
            f"gallery {place}: {g['images']:,} images, of them {extra['matched'] + extra['other']:,} distractors"
            f" ({extra['matched']:,} of the queries' categories)"
        )
