"""After annotate: what people decided of quadruples is applied, with who, when and what changed."""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa

from infra.base import storage
from infra.base.accounts import Account
from infra.base.errors import OacirError
from pipelines.annotate import AnnotateStage, GroundedAnnotateStage, of_instances
from pipelines.annotators.base import Rejection
from pipelines.annotators.chat.options import ChatOptions
from pipelines.annotators.gates import Rules, fault, fingerprint, kind_names
from pipelines.annotators.people import store
from pipelines.annotators.people.agreement import agreement
from pipelines.annotators.people.options import PeopleOptions
from pipelines.annotators.people.settle import Settled, counting, settle
from pipelines.annotators.people.store import Reviews, Row
from pipelines.config import BuildRecipe, Thresholds
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult, read_parts, write_part
from pipelines.variants import group_of

log = logging.getLogger(__name__)

ANNOTATED = "_work/quadruples/annotated"
"""Where the annotator's own quadruples lie where people review them; `quadruples` is what became of them."""
KNOWN_TASKS, KNOWN_DECISIONS = "_work/review_tasks/known", "_work/reviews/known"
STATES = ("accepted", "edited", "rejected", "pending", "disagree", "stale", "fault")
"""What may become of a pair that was given to people; counted as "people STATE"."""
FINAL = frozenset({"near_duplicate_across_splits"})
"""Why a pair is refused whatever people say of it."""


class ReviewedAnnotateStage(AnnotateStage):
    """The annotator's own quadruples, put where the review finds them."""

    outputs = (ANNOTATED, "rejects/annotate")


class GroundedReviewedAnnotateStage(GroundedAnnotateStage):
    """The same, with the boxes that a detector found."""

    outputs = (ANNOTATED, "rejects/annotate")


def annotate_stage(recipe: BuildRecipe) -> type[AnnotateStage]:
    """The annotate stage of a recipe: with a detector's boxes or without, before people or the last word."""
    if recipe.people is None:
        return GroundedAnnotateStage if recipe.grounding else AnnotateStage
    return GroundedReviewedAnnotateStage if recipe.grounding else ReviewedAnnotateStage


def names_of(instance_id: str, variant: str | None, extra: Mapping[str, Any]) -> tuple[str, ...]:
    """Names of the very object that a text may not say: its folder's, and what a model called it."""
    label = extra.get("label")
    return (group_of(instance_id, variant).rsplit("/", 1)[-1], *([label] if isinstance(label, str) else []))


def rules(
    domain: str, category: str, names: tuple[str, ...], max_words: int, chat: ChatOptions | None
) -> Rules:
    """What a person's text is held against: all that a model's is."""
    free = chat.may_name_category if chat else ChatOptions.model_fields["may_name_category"].default
    banned = chat.banned.get(domain, ()) if chat else ()
    kinds = frozenset() if domain in free else kind_names(category, names[1:])
    return Rules(max_words, (*names, *banned), kinds)


def open_reviews(recipe: BuildRecipe, root: str) -> Reviews | None:
    """What people did so far, if the recipe applies it.

    Raises:
        OacirError: nothing was ever given to people.
    """
    place = store.folder(root, recipe.name)
    if recipe.people is None:
        if any(True for _ in storage.list_files(storage.join(place, store.DECISIONS))):
            log.warning("%s: holds decisions of people, which are not applied; --people '{}' does", place)
        return None
    reviews = store.read(recipe.people.reviews or place)
    if not reviews.tasks:
        raise OacirError(
            f"{reviews.url}: holds no task for people; export some with `oacir review export --dataset …`, name the"
            " folder in people.reviews, or leave people out"
        )
    return reviews


def prepare(recipe: BuildRecipe, reviews: Reviews, version_url: str, parts: int) -> ReviewStage:
    """Write what the stage shares, and make it; the annotator's quadruples are all there."""
    if recipe.people is None:
        raise ValueError("a recipe without people is not reviewed")
    for name, rows in ((KNOWN_TASKS, reviews.tasks.values()), (KNOWN_DECISIONS, reviews.decisions)):
        table = pa.Table.from_pylist([dict(r) for r in rows], TABLES[name.split("/")[1]])
        write_part(version_url, f"{name}.parquet", table)
    owners = text_owners(reviews, version_url, parts)
    return ReviewStage(recipe.people, recipe.thresholds, recipe.chat, owners)


def text_owners(reviews: Reviews, version_url: str, parts: int) -> dict[bytes, str]:
    """Fingerprint of a text that a person wrote → the pair whose text it is; for others it would be a copy.

    That is a pair which nobody reviewed and whose text it is already, else the first of those that it was written for.
    """
    written: dict[bytes, str] = {}
    for row in reviews.decisions:
        if row["verdict"] == "edit" and row["text_after"] != row["text_before"]:
            print_ = fingerprint(row["text_after"])
            written[print_] = min(written.get(print_, row["pair_id"]), row["pair_id"])
    reviewed = {row["pair_id"] for row in reviews.decisions}
    if written:
        for table in read_parts(version_url, ANNOTATED, parts, ["query_id", "modification_text"]):
            for row in table.to_pylist():
                print_ = fingerprint(row["modification_text"])
                if print_ in written and row["query_id"] not in reviewed:
                    written[print_] = row["query_id"]
    return written


def people_plan(reviews: Reviews) -> str:
    """What a build would apply, in a line."""
    decided, pairs = len(reviews.by_task), len({row["pair_id"] for row in reviews.tasks.values()})
    people = len(reviews.people)
    return (
        f"people: {pairs:,} pairs were given to them, {decided:,} tasks decided by {people:,}: {reviews.url}"
    )


def people_figures(
    options: PeopleOptions, reviews: Reviews, counts: Mapping[str, Mapping[str, int]]
) -> dict[str, Any]:
    """What people did of a build."""
    states = {s: sum(c.get(f"people {s}", 0) for c in counts.values()) for s in STATES}
    exported = len({row["pair_id"] for row in reviews.tasks.values()})
    return {
        "exported": exported,
        "people": len(reviews.people),
        **states,
        "gone": exported - sum(states.values()),
        "decisions": len(reviews.decisions),
        "content_hash": reviews.content_hash,
        "rule_pending": options.pending,
        "rule_conflict": options.conflict,
        "agreement": agreement(reviews.by_task),
    }


@dataclass
class ReviewStage(Stage):
    """The annotator's quadruples and refused pairs → quadruples as people want them."""

    options: PeopleOptions
    thresholds: Thresholds
    chat: ChatOptions | None
    owners: Mapping[bytes, str]
    """See `text_owners`."""
    name = "review"
    inputs: ClassVar[tuple[str, ...]] = (
        ANNOTATED, "rejects/annotate", "_work/images/filtered", "instances", "pairs",
    )  # fmt: skip
    shared = ("splits", KNOWN_TASKS, KNOWN_DECISIONS)
    outputs = ("quadruples", "rejects/review", "reviews")
    _tasks: dict[str, list[Row]] = field(default_factory=dict, init=False, repr=False)
    _said: dict[str, list[Row]] = field(default_factory=dict, init=False, repr=False)

    def setup(self) -> None:
        """Sort tasks by pair and decisions by task."""
        columns = ["task", "pair_id", "reference_sha256", "target_sha256", "text", "box"]
        for row in self.common[KNOWN_TASKS].select(columns).to_pylist():
            self._tasks.setdefault(row["pair_id"], []).append(row)
        for row in self.common[KNOWN_DECISIONS].to_pylist():
            self._said.setdefault(row["task"], []).append(row)

    def __call__(self, part: Part) -> StageResult:
        """Apply what people said of the part's pairs."""
        rows = part.tables[ANNOTATED].to_pylist()
        work = _Work(self, part, {row["query_id"]: row for row in rows})
        kept, written = [], 0
        for pair in part.tables["pairs"].to_pylist():
            before = work.quadruples.get(pair["pair_id"])
            after = work.review(pair, before)
            written += after is not None and before is None
            if after is not None:
                kept.append(after)
        refused = Counter(r["reason"] for r in work.rejects)
        account = Account(
            entity="quadruples", taken_in=len(rows) + written, kept=len(kept), rejected=dict(refused)
        )
        work.count_changes(rows, kept)
        made = {
            "quadruples": pa.Table.from_pylist(kept, TABLES["quadruples"]),
            "rejects/review": pa.Table.from_pylist(work.rejects, TABLES["rejects"]),
            "reviews": pa.Table.from_pylist(work.decisions, TABLES["reviews"]),
        }
        return StageResult(made, [account], work.counts)


class _Work:
    """The review of one part."""

    def __init__(self, stage: ReviewStage, part: Part, quadruples: dict[str, dict[str, Any]]) -> None:
        self.stage, self.quadruples = stage, quadruples
        tables = part.tables
        self.images = {r["image_id"]: r for r in tables["_work/images/filtered"].to_pylist()}
        self.objects = {r["image_id"]: r for r in tables["instances"].to_pylist()}
        self.refused = {r["key"]: r["reason"] for r in tables["rejects/annotate"].to_pylist()}
        self.splits = of_instances(stage.common["splits"], "split", tables["pairs"]["instance_id"])
        self.rejects: list[dict[str, Any]] = []
        self.decisions: list[dict[str, Any]] = []
        self.counts: dict[str, Counter[str]] = {}

    def review(self, pair: Row, before: dict[str, Any] | None) -> dict[str, Any] | None:
        """The quadruple of a pair after people; None where it has none."""
        pair_id = pair["pair_id"]
        if pair_id not in self.stage._tasks or self.refused.get(pair_id) in FINAL:
            return before
        photos = self.images[pair["reference_id"]]["sha256"], self.images[pair["target_id"]]["sha256"]
        text, box = (before["modification_text"], before["reference_box"]) if before else (None, None)
        said, stale = counting(self.stage._tasks[pair_id], self.stage._said, photos, text, box)
        settled = settle(said, self.stage.options.conflict)
        self._note(stale, "stale")
        if settled.outcome == "pending":
            return self._waits(pair, before, "stale" if stale else "pending")
        if settled.outcome == "disagree":
            self._note(said, "disagreement")
            return self._waits(pair, before, "disagree")
        state = "applied"
        self._note([d for d in said if d not in settled.by], "outvoted")
        if settled.outcome == "reject":
            if before is not None:
                self._reject(pair, Rejection("person_rejected", _said(settled)))
            self._count(pair, "rejected")
            result = None
        elif before and (settled.text, settled.box) == (text, box):
            self._count(pair, "accepted")
            result = before | {"provenance": _accepted(before["provenance"], settled)}
        else:
            why = self._fault(pair, before, settled)
            state = "fault" if why else state
            self._count(pair, "fault" if why else "edited")
            if why and self.stage.options.faults == "reject":
                if before is not None:
                    self._reject(
                        pair, Rejection(why.reason, f"{why.detail}; {_said(settled)}: {settled.text!r}")
                    )
                result = None
            else:
                result = self._edited(pair, before, settled)
        self._note(settled.by, state)
        return result

    def _waits(self, pair: Row, before: dict[str, Any] | None, state: str) -> dict[str, Any] | None:
        """A pair that people have not settled: as it was, or left out."""
        self._count(pair, state)
        options = self.stage.options
        if before is None:
            return None
        if state == "disagree" and options.conflict == "reject":
            self._reject(pair, Rejection("people_disagree", "as many say one thing as another"))
            return None
        if options.pending == "leave_out":
            self._reject(pair, Rejection("people_pending", f"{state}: people.pending = leave_out"))
            return None
        return before

    def _fault(self, pair: Row, before: dict[str, Any] | None, settled: Settled) -> Rejection | None:
        """The gate that a person's text breaks."""
        text = str(settled.text)
        if before is not None and before["modification_text"] == text:
            return None
        thing, stage = self.objects[pair["reference_id"]], self.stage
        extra = json.loads(before["provenance"]["extra_json"] or "{}") if before else {}
        names = names_of(pair["instance_id"], thing["variant"], extra)
        limit = stage.thresholds.of(pair["domain"]).max_words
        owner = stage.owners.get(fingerprint(text), pair["pair_id"])
        others = (fingerprint(text),) if owner != pair["pair_id"] else ()
        return fault(text, rules(pair["domain"], thing["category"], names, limit, stage.chat), others)

    def _edited(self, pair: Row, before: dict[str, Any] | None, settled: Settled) -> dict[str, Any]:
        thing = self.objects[pair["reference_id"]]
        row = before or {
            "query_id": pair["pair_id"],
            "domain": pair["domain"],
            "split": self.splits[pair["instance_id"]],
            "instance_id": pair["instance_id"],
            "category": thing["category"],
            "reference_id": pair["reference_id"],
            "reference_box": None,
            "reference_mask_uri": thing["mask_uri"],
            "reference_mask_sha256": thing["mask_sha256"],
            "modification_text": None,
            "target_ids": [pair["target_id"]],
            "provenance": dict.fromkeys(("annotator", "model", "prompt_sha256", "confidence", "extra_json"))
            | {"parent_id": pair["pair_id"]},
        }
        made = row | {"modification_text": settled.text, "reference_box": settled.box}
        if settled.box != row["reference_box"]:  # the mask is of what the box was around
            made |= {"reference_mask_uri": None, "reference_mask_sha256": None}
        return made | {"provenance": _edited(row, settled)}

    def _reject(self, pair: Row, why: Rejection) -> None:
        row = {"stage": "review", "entity": "quadruples", "key": pair["pair_id"]}
        self.rejects.append(row | {"reason": why.reason, "detail": why.detail})
        self.counts.setdefault(pair["domain"], Counter())[f"pairs {why.reason}"] += 1

    def _note(self, decisions: list[Row] | tuple[Row, ...], state: str) -> None:
        self.decisions += [{**row, "state": state} for row in decisions]

    def _count(self, pair: Row, state: str) -> None:
        self.counts.setdefault(pair["domain"], Counter())[f"people {state}"] += 1

    def count_changes(self, before: list[dict[str, Any]], after: list[dict[str, Any]]) -> None:
        """What the counts of the annotate stage are to be corrected by; a part holds whole instances."""
        owners: dict[tuple[str, str, str], int] = {}
        for sign, rows in ((-1, before), (1, after)):
            for row in rows:
                count = self.counts.setdefault(row["domain"], Counter())
                count[f"queries {row['split']}"] += sign
                count["words"] += sign * len(row["modification_text"].split())
            for owner in {(r["domain"], r["split"], r["instance_id"]) for r in rows}:
                owners[owner] = owners.get(owner, 0) + sign
        for (domain, split, _), change in owners.items():
            self.counts[domain][f"instances with queries {split}"] += change


def _who(settled: Settled) -> dict[str, Any]:
    return {"who": [d["person"] for d in settled.by], "when": [d["decided_at"] for d in settled.by]}


def _said(settled: Settled) -> str:
    """Who refused or wrote it, in words of theirs."""
    return "; ".join(f"{d['person']}{': ' + d['words'] if d['words'] else ''}" for d in settled.by)


def _accepted(provenance: Row, settled: Settled) -> dict[str, Any]:
    return _with_people(provenance, {"verdict": "accept", **_who(settled)})


def _edited(row: Mapping[str, Any], settled: Settled) -> dict[str, Any]:
    """Provenance of what people changed: a new text is theirs, under a new box the text stays the annotator's."""
    said = row["provenance"]
    other_text = settled.text != row["modification_text"]
    other_box = settled.box != row["reference_box"]
    changed = [what for what, other in (("text", other_text), ("box", other_box)) if other]
    before = {"text": row["modification_text"], "box": row["reference_box"]}
    before |= {k: said[k] for k in ("annotator", "model", "prompt_sha256")}
    mine = {"verdict": "edit", **_who(settled), "changed": changed, "before": before}
    by_people = {"annotator": "people", "model": None, "prompt_sha256": None, "confidence": None}
    return _with_people(said, mine) | (by_people if other_text else {})


def _with_people(provenance: Row, people: Mapping[str, Any]) -> dict[str, Any]:
    extra = json.loads(provenance["extra_json"] or "{}") | {"people": people}
    return {**provenance, "extra_json": json.dumps(extra, sort_keys=True, ensure_ascii=False)}
