"""Frozen features once: the tower over every image of a benchmark, one feature store for all models that share it."""

from __future__ import annotations

import json
import logging
import os
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.progress import Progress, duration
from infra.base.ray_session import on_cluster
from infra.base.versions import Draft, FileEntry, Version, content_hash, file_entry, resolve, start
from pipelines.embedded import Place, places
from pipelines.embedder import Embedder, Item, load_tower, run_embedders
from training.config import EmbedSection, TrainRecipe

if TYPE_CHECKING:
    from training.stores import Contents

RATED_IMAGES = 8
"""Images that a dry run embeds to tell how long it would take, on a CPU."""
RATED_BATCHES = 4
"""Batches that it embeds on a GPU, which is fast and has to be filled."""
HASH_THREADS = 4
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """What has to be computed: distinct contents in shards of fixed membership."""

    dataset: Version
    wanted: Contents
    """Several of its images may share one content."""
    shards: list[dict[str, Any]]
    """{shard, path, uris, contents} of each shard; the first image of a content stands for it."""
    tower_hash: str
    feature_key: str
    key: str
    tokens: int
    width: int
    row_bytes: int
    held: dict[str, Place]
    """Contents whose tokens another store of this root holds: copied, not computed."""
    rate: float | None = None
    """Images/s of one worker, from bytes to tokens, measured for a dry run; None where nothing has to be computed."""

    @property
    def distinct(self) -> int:
        """Distinct contents that the store will hold."""
        return sum(len(shard["contents"]) for shard in self.shards)

    @property
    def forwards(self) -> int:
        """Forwards of the tower: distinct contents that no store holds."""
        return self.distinct - len(self.held)

    def figures(self, settings: EmbedSection) -> dict[str, Any]:
        """What the store states of itself."""
        return {
            "feature_key": self.feature_key,
            "images": len(self.wanted.images),
            "forwards": self.forwards,
            "copied": len(self.held),
            "tokens": self.tokens,
            "width": self.width,
            "dtype": settings.dtype,
            "precision": settings.precision,
            "view": self.wanted.view,
            "bytes": self.distinct * self.row_bytes,
        }


def embed(recipe: TrainRecipe, context: Context) -> Outcome:
    """Write the feature store of the recipe's tower over every image that the benchmark's queries and galleries use.

    Where the recipe's model sees a crop or a drawn box of the reference, a second store holds these views. A shard is
    the unit of work: it appears whole or not at all, and a later run of the same command computes only the missing
    ones.

    Raises:
        OacirError: no such dataset, or an image is gone or no longer the one that the benchmark was built from.
    """
    warning = recipe.model.warning()
    if warning and not context.dry_run:
        log.warning(warning)
    plans = _plans(recipe, context)
    if not len(plans[0].wanted.images):
        raise OacirError(
            f"{plans[0].dataset.url}: no query and no gallery uses an image of it, so there is nothing to embed; its"
            f" build said why, see `oacir data show --dataset {plans[0].dataset.url}`"
        )
    if context.out is not None and len(plans) > 1:
        raise OacirError(
            f"--out {context.out}: names one version, model.reference_view {recipe.model.reference_view} makes two"
            " (images and views); leave --out away"
        )
    outcomes = [_outcome(recipe, plan, context) for plan in plans]
    planned = (f"warning: {warning}",) if warning and context.dry_run else ()
    if len(outcomes) == 1:
        return replace(outcomes[0], details=(*outcomes[0].details, *planned))
    whole, views = outcomes
    return Outcome(
        f"{whole.message}; {views.message}",
        whole.location,
        whole.figures | {"views": views.figures | {"location": views.location}},
        (*whole.details, *views.details, *planned),
    )


def _outcome(recipe: TrainRecipe, plan: Plan, context: Context) -> Outcome:
    """Make one store, unless it is there or the plan alone is asked for."""
    began = time.monotonic()
    figures, distinct = plan.figures(recipe.embed), plan.distinct
    name = plan.dataset.manifest.name
    what = "images" if plan.wanted.view == "full" else f"references ({plan.wanted.view})"
    if context.dry_run:
        computed = "forwards of the tower"
        if plan.held:
            computed = (
                f"{plan.forwards:,} forwards of the tower and {len(plan.held):,} copied from earlier stores"
            )
        details: tuple[str, ...] = (
            f"{len(plan.wanted.images):,} {what}, {distinct:,} distinct contents = {computed}",
            f"{len(plan.shards):,} shards of up to {recipe.embed.images_per_shard:,} images,"
            f" {figures['bytes'] / 2**30:.2f} GiB ({recipe.embed.dtype})",
        )
        if plan.rate is not None:
            found = recipe.embed.workers or machine_workers(recipe.scaling.use_gpu)
            # a shard is made by one worker, and a finished one is not made again
            workers = max(1, min(found, len(plan.shards)))
            hours = plan.forwards / plan.rate / workers / 3600
            figures |= {"images_per_s_of_a_worker": round(plan.rate, 3), "workers": workers, "hours": hours}
            details += (
                f"{plan.rate:,.1f} images/s in each of {workers} workers, as measured on this machine now:"
                f" {duration(3600 * hours)}",
            )
            if recipe.embed.workers is None and on_cluster():
                details += (
                    "these are the workers of this machine; set embed.workers to those that the cluster at RAY_ADDRESS"
                    " has room for",
                )
        elif plan.forwards:
            details += ("scaling.use_gpu: no GPU here, so the time is not told; ask on a machine with one",)
        return Outcome(f"dry run: would write features {name}/{plan.key}", None, figures, details)
    draft = start("features", name, plan.key, recipe, root=context.root, out=context.out)
    if draft.finished is not None:
        return Outcome(
            f"nothing to do: these {distinct:,} {what} were embedded before: {draft.url}",
            draft.url,
            draft.finished.figures,
        )
    draft.uses({"dataset": plan.dataset.manifest.content_hash})
    done = _finished_shards(draft, plan)
    missing = [shard for shard in plan.shards if shard["shard"] not in done]
    hashes = _compute(recipe, draft, plan, missing) if missing else {}
    _commit(draft, plan, figures, hashes, time.monotonic() - began)
    resumed = f" ({len(done)} of {len(plan.shards)} shards from an earlier run)" if done else ""
    copied = f" ({len(plan.held):,} of them copied from earlier stores)" if plan.held else ""
    return Outcome(
        f"embedded {distinct:,} {what}{copied} in {duration(time.monotonic() - began)}{resumed}: {draft.url}",
        draft.url,
        figures,
    )


def _plans(recipe: TrainRecipe, context: Context) -> list[Plan]:
    """One plan for each store that the recipe's model reads."""
    from training.features import store_key
    from training.stored import row_bytes
    from training.stores import needed

    dataset = resolve(context.root, "datasets", recipe.dataset, holding="quadruples")
    model, processor = load_tower(recipe)
    tower_hash, dtype, precision = model.tower_state_hash(), recipe.embed.dtype, recipe.embed.precision
    tokens, width = model.config.num_image_tokens, model.config.vision_config.hidden_size
    size = row_bytes(tokens, width, dtype)
    plans = []
    for wanted in needed(dataset, processor):
        feature_key = wanted.feature_key(tower_hash, processor, dtype, precision)
        shards = _shards(wanted, recipe.embed.images_per_shard)
        contents = [content for shard in shards for content in shard["contents"]]
        plans.append(
            Plan(
                dataset=dataset,
                wanted=wanted,
                shards=shards,
                tower_hash=tower_hash,
                feature_key=feature_key,
                key=store_key(feature_key, wanted.hashes),
                tokens=tokens,
                width=width,
                row_bytes=size,
                held=places(context.root, feature_key, contents, size),
            )
        )
    if not context.dry_run or not _gpu_where_asked(recipe):
        return plans
    embedder = Embedder(recipe, tower_hash, (model, processor))
    return [replace(plan, rate=_rate(embedder, plan)) for plan in plans]


def _rate(embedder: Embedder, plan: Plan) -> float | None:
    """Images/s of one worker on some of the images, the first batch left out."""
    missing = [
        Item(plan.wanted.view, uri, content)
        for shard in plan.shards
        for uri, content in zip(shard["uris"], shard["contents"], strict=True)
        if content not in plan.held
    ]
    batch = embedder.encoder.batch_size
    some = missing[: RATED_BATCHES * batch if embedder.encoder.on_gpu else min(batch, RATED_IMAGES)]
    if not some:
        return None
    embedder.embed(some[:batch] if embedder.encoder.on_gpu else some[:1])
    began = time.perf_counter()
    embedder.embed(some)
    return len(some) / (time.perf_counter() - began)


def _gpu_where_asked(recipe: TrainRecipe) -> bool:
    """Whether this machine can tell how fast a worker is."""
    import torch

    return not recipe.scaling.use_gpu or torch.cuda.is_available()


def machine_workers(use_gpu: bool) -> int:
    """Workers that a local session would have: one per GPU, or per CPU."""
    import torch

    return max(1, torch.cuda.device_count() if use_gpu else max(2, os.cpu_count() or 2))


def _shards(wanted: Contents, size: int) -> list[dict[str, Any]]:
    from training.features import shard_path

    hashes, uris = wanted.hashes, wanted.images["uri"].to_pylist()
    uri_of = dict(zip(reversed(hashes), reversed(uris), strict=True))
    contents = list(dict.fromkeys(hashes))
    shards = []
    for number, i in enumerate(range(0, len(contents), size)):
        own = contents[i : i + size]
        path = shard_path(number, own)
        shards.append({"shard": number, "path": path, "uris": [uri_of[c] for c in own], "contents": own})
    return shards


def _finished_shards(draft: Draft, plan: Plan) -> set[int]:
    lying = {f.path: f.size_bytes for f in storage.list_files(draft.url)}
    return {
        shard["shard"]
        for shard in plan.shards
        if lying.get(shard["path"]) == len(shard["contents"]) * plan.row_bytes
    }


def _compute(recipe: TrainRecipe, draft: Draft, plan: Plan, missing: list[dict[str, Any]]) -> dict[int, str]:
    """Make the missing shards; shard → SHA-256 of what was written."""
    left, hashes = sum(len(shard["contents"]) for shard in missing), dict[int, str]()
    with Progress("embed", plan.distinct, "images", done=plan.distinct - left) as progress:
        for row in run_embedders(recipe, plan.tower_hash, [_row(draft, plan, shard) for shard in missing]):
            if row["error"]:
                raise OacirError(row["error"])
            hashes[row["shard"]] = row["sha256"]
            progress.update(row["images"])
    return hashes


def _row(draft: Draft, plan: Plan, shard: dict[str, Any]) -> dict[str, Any]:
    """What a worker is told of a shard."""
    held = [json.dumps(plan.held[c]) if c in plan.held else "" for c in shard["contents"]]
    row = {name: shard[name] for name in ("shard", "uris", "contents")}
    return row | {"url": draft.path(shard["path"]), "view": plan.wanted.view, "held": held}


def _entries(draft: Draft, plan: Plan, hashes: dict[int, str]) -> list[FileEntry]:
    """What the manifest says of the shards; those of an earlier run are read and hashed.

    Raises:
        OacirError: a shard is not there any more, or not of its size.
    """
    lying = {f.path: f.size_bytes for f in storage.list_files(draft.url)}

    def entry(shard: dict[str, Any]) -> FileEntry:
        rows, path = len(shard["contents"]), shard["path"]
        if lying.get(path) != rows * plan.row_bytes:
            raise OacirError(
                f"{draft.path(path)}: was written and is gone, or not {rows * plan.row_bytes} bytes long; run the same"
                " command again"
            )
        if shard["shard"] not in hashes:
            return file_entry(draft.url, path, rows)
        return FileEntry(path=path, size_bytes=lying[path], sha256=hashes[shard["shard"]], rows=rows)

    with ThreadPoolExecutor(HASH_THREADS) as pool:
        return list(pool.map(entry, plan.shards))


def _commit(
    draft: Draft, plan: Plan, figures: dict[str, Any], hashes: dict[int, str], seconds: float
) -> None:
    import pyarrow as pa

    from training.features import INDEX

    place = {
        content: (shard["shard"], row)
        for shard in plan.shards
        for row, content in enumerate(shard["contents"])
    }
    places = [place[content] for content in plan.wanted.hashes]
    index = pa.table(
        {
            "image_id": plan.wanted.images["image_id"],
            "sha256": plan.wanted.images["sha256"],
            "shard": pa.array([p[0] for p in places], pa.int32()),
            "row": pa.array([p[1] for p in places], pa.int64()),
        }
    )
    storage.write_table(draft.path(f"{INDEX}.parquet"), index)
    files = _entries(draft, plan, hashes)
    content: dict[str, int | str] = {f.path: f.sha256 for f in files}
    files.append(file_entry(draft.url, f"{INDEX}.parquet", len(index)))
    draft.commit(
        content_hash=content_hash(content | {"key": plan.key}),
        files=files,
        parents={"dataset": plan.dataset.manifest.content_hash},
        seconds={"embed": seconds},
        figures=figures,
    )
