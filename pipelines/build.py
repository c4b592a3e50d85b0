"""Photos → benchmark: the stages in order, what the driver decides between them, and the version they make."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.base import versions
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.annotators.people.store import Reviews
from pipelines.asking import ask, chat_figures
from pipelines.collect import CollectStage, Listed, expected_parts, no_image, write_listing
from pipelines.config import AnnotatorKind, BuildRecipe
from pipelines.counters import count
from pipelines.descriptors import OfflineDescriber
from pipelines.earlier import Earlier, open_earlier
from pipelines.filter import FilterStage
from pipelines.gallery import (
    ASKED,
    SPLITS,
    CandidateStage,
    GalleryStage,
    HardCandidateStage,
    choose_distractors,
    gallery_hash,
    gallery_id,
    gather_asked,
)
from pipelines.grounding import GroundStage
from pipelines.records import TABLES
from pipelines.reviewing import annotate_stage, open_reviews, people_figures, people_plan, prepare
from pipelines.sources.base import Source
from pipelines.sources.deepfashion2 import DeepFashion2, DeepFashion2Config
from pipelines.sources.hf_datasets import HuggingFace
from pipelines.sources.hf_rows import HuggingFaceConfig
from pipelines.sources.image_folder import ImageFolder, ImageFolderConfig
from pipelines.sources.landmarks import Landmarks, LandmarksConfig
from pipelines.sources.products10k import Products10K, Products10KConfig
from pipelines.sources.stanford_cars import StanfordCars, StanfordCarsConfig
from pipelines.sources.webdataset import WebDataset, WebDatasetConfig
from pipelines.sources.world import WorldSource, WorldSourceConfig
from pipelines.splits import Dealt, write_splits
from pipelines.stages import PartRecord, Stage, publish, read_parts, run_stages, sum_counts, write_part
from pipelines.summary import details_of, domain_figures, no_query, thresholds_line

log = logging.getLogger(__name__)

CHOSEN = "_work/distractors/chosen"
READ_IN_PLACE: dict[type[Config], Callable[[Any], Source]] = {
    ImageFolderConfig: ImageFolder,
    DeepFashion2Config: DeepFashion2,
    StanfordCarsConfig: StanfordCars,
    Products10KConfig: Products10K,
    LandmarksConfig: Landmarks,
    WebDatasetConfig: WebDataset,
}
"""Sources that need nothing but their options."""


def build(recipe: BuildRecipe, context: Context) -> Outcome:
    """Make a benchmark: collect, filter, annotate, gallery. Resumes a half-finished one; a finished one is a no-op.

    Raises:
        OacirError: the source cannot be read, or a part failed.
    """
    source = make_source(recipe, context.root)
    earlier = open_earlier(context.root, recipe.update, recipe) if recipe.update else None
    reviews = open_reviews(recipe, context.root)
    if context.dry_run:
        return _plan(recipe, source, reviews)
    key = recipe.key(source.fingerprint(), *(what.content_hash for what in (earlier, reviews) if what))
    draft = versions.start("datasets", recipe.name, key, recipe, root=context.root, out=context.out)
    if draft.finished:
        return _outcome(
            versions.Version(draft.url, draft.finished), "nothing to do, this recipe over this input is done"
        )
    return _outcome(_make(recipe, source, draft, earlier, reviews, context), "benchmark built")


def make_source(recipe: BuildRecipe, root: str) -> Source:
    """The source of a recipe; a world is rendered, and parquet files are unpacked, under `root` when first listed."""
    if isinstance(recipe.source, WorldSourceConfig):
        return WorldSource(
            recipe.source.world, root, images_per_part=recipe.images_per_part, workers=recipe.workers
        )
    if isinstance(recipe.source, HuggingFaceConfig):
        return HuggingFace(recipe.source, root, workers=recipe.workers)
    return READ_IN_PLACE[type(recipe.source)](recipe.source)


def annotator_kind(recipe: BuildRecipe) -> AnnotatorKind:
    """Which annotator `auto` means."""
    if recipe.annotator != "auto":
        return recipe.annotator
    return "world" if recipe.source.kind == "world" else "plain"


def _make(
    recipe: BuildRecipe,
    source: Source,
    draft: versions.Draft,
    earlier: Earlier | None,
    reviews: Reviews | None,
    context: Context,
) -> versions.Version:
    parents = {"earlier": earlier.content_hash} if earlier else {}
    known = earlier.for_workers() if earlier else None
    # made here, so that the listing's seconds are its own
    if isinstance(source, WorldSource | HuggingFace) and (made := source.version):
        parents[source.name] = made.manifest.content_hash
    draft.uses(parents)
    listed = write_listing(source, draft.url, recipe.images_per_part)
    _check_domains(recipe, listed.counts)
    parts, workers, seed = listed.parts, recipe.workers, recipe.seed
    records = run_stages(
        [
            CollectStage(
                recipe.limits,
                recipe.encoder.model,
                recipe.encoder.gpus,
                known,
                recipe.seconds_per_record,
                recipe.variants,
            ),
            FilterStage(recipe.thresholds, recipe.max_pairs_per_instance, seed),
        ],
        draft.url,
        parts,
        workers=workers,
        label="collect and filter",
    )
    dealt = write_splits(recipe, draft.url, parts, earlier.splits if earlier else {})
    # what the driver decides, as soon as there is a session that serves it
    count(draft.url, "listing", listed.accounts())
    count(draft.url, "split", [dealt.account])
    if recipe.grounding is not None:
        ground = GroundStage(recipe.grounding, recipe.grounding.gpus, known)
        records |= run_stages([ground], draft.url, parts, workers=workers, label="ground")
    annotate: list[Stage] = []
    if recipe.chat is None:
        kind, patience = annotator_kind(recipe), recipe.seconds_per_record
        annotate.append(annotate_stage(recipe)(kind, recipe.thresholds, seed, known, patience))
    else:
        records |= ask(recipe, recipe.chat, draft, context.root, parts, known)
    if reviews is not None:  # which texts are copies is known when all are written
        if annotate:
            records |= run_stages(annotate, draft.url, parts, workers=workers, label="annotate")
        annotate = [prepare(recipe, reviews, draft.url, parts)]
    if recipe.gallery.choice == "random":
        last = [*annotate, CandidateStage(recipe.gallery, seed)]
        records |= run_stages(last, draft.url, parts, workers=workers, label="annotate")
    else:
        if annotate:
            records |= run_stages(annotate, draft.url, parts, workers=workers, label="annotate")
        write_part(draft.url, f"{ASKED}.parquet", gather_asked(draft.url, parts, seed))
        hard = HardCandidateStage(recipe.gallery, seed)
        records |= run_stages([hard], draft.url, parts, workers=workers, label="hard negatives")
    distractors = _write_distractors(recipe, draft, parts)
    records |= run_stages([GalleryStage()], draft.url, parts, workers=workers, label="galleries")
    figures = _figures(recipe, draft, listed, records, distractors, dealt, reviews)
    return publish(
        draft,
        records,
        parents=parents,
        files=[*listed.files, *dealt.files],
        hashes={n: int(h, 16) for n, h in listed.hashes.items()} | dealt.hashes,
        seconds={"listing": listed.seconds},
        accounts={"listing": listed.accounts(), "split": [dealt.account]},
        figures=figures,
    )


def _check_domains(recipe: BuildRecipe, there: Collection[str]) -> None:
    """Refuse options for domains that the source does not have: they would do nothing, and nobody would see it.

    Thresholds may name any, since a recipe's serve several collections; those without effect are told.
    """
    named: dict[str, Iterable[str]] = {
        "variants.domains": recipe.variants.domains or (),
        "gallery.domains": recipe.gallery.domains,
    }
    for key, domains in named.items():
        if unknown := sorted(set(domains) - set(there)):
            raise OacirError(
                f"{key} names {', '.join(unknown)}; the source's domains are {', '.join(sorted(there))}"
            )
    if unused := sorted(set(recipe.thresholds.domains) - set(there)):
        by_default = sorted(set(there) - set(recipe.thresholds.domains))
        log.warning(
            "thresholds.domains names %s, which the source does not have; thresholds.default is for %s",
            ", ".join(unused),
            ", ".join(by_default) or "none of its domains",
        )


def _write_distractors(recipe: BuildRecipe, draft: versions.Draft, parts: int) -> dict[str, dict[str, int]]:
    """Choose the galleries' distractors; how many are matched and other, by gallery."""
    queries: dict[str, Counter[str]] = {}
    for table in read_parts(draft.url, "quadruples", parts, ["domain", "split", "category"]):
        for row in table.to_pylist():
            if row["split"] in SPLITS:
                place = gallery_id(row["domain"], row["split"])
                queries.setdefault(place, Counter())[row["category"]] += 1
    candidates = read_parts(draft.url, "_work/distractors/candidates", parts)
    rows, figures = choose_distractors(candidates, queries, recipe.gallery)
    write_part(draft.url, f"{CHOSEN}.parquet", pa.Table.from_pylist(rows, TABLES["distractors"]))
    return figures


def _figures(
    recipe: BuildRecipe,
    draft: versions.Draft,
    listed: Listed,
    records: dict[str, list[PartRecord]],
    distractors: dict[str, dict[str, int]],
    dealt: Dealt,
    reviews: Reviews | None,
) -> dict[str, Any]:
    galleries: dict[str, list[pa.ChunkedArray]] = {}
    for table in read_parts(draft.url, "gallery", listed.parts, ["gallery_id", "image_id"]):
        for place in table["gallery_id"].unique().to_pylist():
            ids = table["image_id"].filter(pc.equal(table["gallery_id"], place))
            galleries.setdefault(place, []).append(ids)
    largest: dict[str, int] = {}
    for table in read_parts(draft.url, "groups", listed.parts, ["domain", "found"]):
        for row in table.to_pylist():
            largest[row["domain"]] = max(largest.get(row["domain"], 0), row["found"])
    instances: dict[str, Counter[str]] = {}
    for row in dealt.splits.to_pylist():
        instances.setdefault(row["domain"], Counter())[row["split"]] += 1
    counts = sum_counts(r for parts in records.values() for r in parts)
    return {
        "descriptor": recipe.encoder.model or OfflineDescriber.name,
        "annotator": annotator_kind(recipe),
        **({"grounding": _grounding_figures(recipe.grounding.model, counts)} if recipe.grounding else {}),
        **({"chat": chat_figures(recipe, recipe.chat, counts)} if recipe.chat else {}),
        **({"people": people_figures(recipe.people, reviews, counts)} if recipe.people and reviews else {}),
        "domains": {
            domain: domain_figures(
                recipe.thresholds.of(domain),
                counts.get(domain, {}),
                images=listed.counts[domain],
                largest=largest.get(domain, 0),
                instances=dict(instances.get(domain, {})),
            )
            for domain in listed.counts
        },
        "near_duplicates": dealt.figures,
        "taken_over": {
            what: sum(c.get(f"{what} taken over", 0) for c in counts.values()) for what in ("images", "pairs")
        },
        "galleries": {
            place: {
                "images": sum(map(len, found)),
                "distractors": distractors.get(place, {"matched": 0, "other": 0}),
                "sha256": gallery_hash(i for ids in found for i in ids.to_pylist()),
            }
            for place, found in sorted(galleries.items())
        },
    }


def _grounding_figures(model: str, counts: Mapping[str, Mapping[str, int]]) -> dict[str, Any]:
    told = {"found": "found", "review": "review", "none": "none", "taken_over": "taken over"}
    return {"model": model} | {
        k: sum(c.get(f"boxes {n}", 0) for c in counts.values()) for k, n in told.items()
    }


def _plan(recipe: BuildRecipe, source: Source, reviews: Reviews | None) -> Outcome:
    """What a build would do, without writing anything."""
    images: Counter[str] = Counter()
    size_bytes = 0
    expected = source.expected_images() if isinstance(source, WorldSource | HuggingFace) else None
    if expected is not None:
        images.update(expected)
    else:
        for table in source.listing():
            images.update(table["domain"].to_pylist())
            size_bytes += sum(table["size_bytes"].to_pylist())
        if not images:
            raise no_image(source, Counter(row["reason"] for row in source.rejects()))
        _check_domains(recipe, images)
    total = sum(images.values())
    parts = expected_parts(total, recipe.images_per_part)
    size = f" ({size_bytes / 1e6:,.1f} MB)" if size_bytes else ""
    lines = [
        f"plan: {total:,} images{size} of source {source.name} in about {parts:,} parts",
        f"descriptor: {recipe.encoder.model or OfflineDescriber.name}; annotator: {annotator_kind(recipe)}",
        *(
            f"{d}: {n:,} images, {thresholds_line(recipe.thresholds.of(d))}"
            for d, n in sorted(images.items())
        ),
    ]
    if recipe.grounding is not None:
        lines.append(
            f"boxes of photos without one: {recipe.grounding.model}, from {recipe.grounding.min_score:g}"
        )
    if recipe.chat is not None:
        c = recipe.chat
        bounds = [
            f"{c.most_tokens:,} tokens" if c.most_tokens else "",
            f"{c.most_money:,.2f}" if c.most_money else "",
        ]
        most = " and ".join(filter(None, bounds)) or "without a bound"
        each = (2 if recipe.good4cir else 1) + (3 if c.check else 0)
        also = " and one for each reference" if recipe.good4cir else ""
        lines.append(
            f"texts: {c.model} at {c.base_url}, {each} to {each + 1} requests a pair{also}, {c.concurrency} at once;"
            f" {most}"
        )
    if reviews is not None:
        lines.append(people_plan(reviews))
    return Outcome(
        "plan only, nothing was made", figures={"images": dict(images), "parts": parts}, details=tuple(lines)
    )


def _outcome(version: versions.Version, what: str) -> Outcome:
    manifest = version.manifest
    figures = manifest.figures | {
        "content_hash": manifest.content_hash,
        "accounts": {s: [a.model_dump() for a in accounts] for s, accounts in manifest.accounts.items()},
        "seconds": manifest.seconds,
    }
    details = tuple(details_of(manifest))
    return Outcome(f"{what}: {version.url}", version.url, figures, details, no_query(manifest))
