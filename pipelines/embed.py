"""Frozen features once: the tower over every image of a benchmark, one feature store for all models that share it."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.progress import Progress, duration
from infra.base.versions import Draft, FileEntry, Version, content_hash, file_entry, resolve, start
from pipelines.embedded import Place, places, read
from training.config import TrainRecipe

if TYPE_CHECKING:
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor
    from training.model.views import ReferenceView
    from training.stores import Contents

PLACEHOLDER_TEXT = "image"
RATED_IMAGES = 8
"""Images that a dry run embeds to tell how long it would take."""


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

    def figures(self, dtype: str) -> dict[str, Any]:
        """What the store states of itself."""
        return {
            "feature_key": self.feature_key,
            "images": len(self.wanted.images),
            "forwards": self.forwards,
            "copied": len(self.held),
            "tokens": self.tokens,
            "width": self.width,
            "dtype": dtype,
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
        logging.getLogger(__name__).warning(warning)
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
    figures, distinct = plan.figures(recipe.embed.dtype), plan.distinct
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
            workers = recipe.embed.workers or machine_workers(recipe.scaling.use_gpu)
            hours = plan.forwards / plan.rate / workers / 3600
            figures |= {"images_per_s_of_a_worker": round(plan.rate, 3), "workers": workers, "hours": hours}
            details += (
                f"{plan.rate:,.1f} images/s in each of {workers} workers, as measured on this machine now:"
                f" {duration(3600 * hours)}",
            )
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
    if missing:
        _compute(recipe, draft, plan, missing)
    _commit(draft, plan, figures, time.monotonic() - began)
    resumed = f" ({len(done)} of {len(plan.shards)} shards from an earlier run)" if done else ""
    copied = f" ({len(plan.held):,} of them copied from earlier stores)" if plan.held else ""
    return Outcome(
        f"embedded {distinct:,} {what}{copied} in {duration(time.monotonic() - began)}{resumed}: {draft.url}",
        draft.url,
        figures,
    )


class Embedder:
    """A worker with the tower in memory; one row in, one shard written."""

    def __init__(
        self,
        recipe: TrainRecipe,
        tower_hash: str,
        made: tuple[AdaFocalModel, AdaFocalProcessor] | None = None,
    ) -> None:
        import torch

        from infra.base.ray_session import has_gpu
        from training.features import DTYPES

        torch.set_num_threads(recipe.scaling.threads_per_worker)
        self.model, self.processor = made or _tower(recipe)
        found = self.model.tower_state_hash()
        if found != tower_hash:
            raise OacirError(
                f"model.weights: a worker loaded another tower (hash {found}, the driver's {tower_hash})"
            )
        self.device = torch.device("cuda" if recipe.scaling.use_gpu and has_gpu() else "cpu")
        self.model.to(self.device)
        self.batch_size = recipe.embed.batch_size
        self.dtype = DTYPES[recipe.embed.dtype]
        config = self.model.config
        self.row_bytes = config.num_image_tokens * config.vision_config.hidden_size * self.dtype.itemsize

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Write the shards of a batch of rows {shard, url, view, uris, contents, held}; rows {shard, images, error}.

        `held` of a content is where its tokens lie already, (url, row) as JSON; empty if nowhere.
        """
        out: dict[str, list[Any]] = {"shard": [], "images": [], "error": []}
        rows = (batch[name] for name in ("shard", "url", "view", "uris", "contents", "held"))
        for shard, url, view, uris, contents, held in zip(*rows, strict=True):
            error = ""
            try:
                entries = list(zip(uris, contents, strict=True))
                storage.write_bytes(str(url), self._shard(view, entries, [str(place) for place in held]))
            except (
                OacirError
            ) as problem:  # a row of its own: an exception here would surface as a page of trace
                error = str(problem)
            out["shard"].append(int(shard))
            out["images"].append(len(uris))
            out["error"].append(error)
        return out

    def _shard(self, view: ReferenceView, entries: list[tuple[str, str]], held: list[str]) -> bytes:
        copied = iter(read([Place(*json.loads(place)) for place in held if place], self.row_bytes))
        computed = iter(self.tokens(view, [e for e, place in zip(entries, held, strict=True) if not place]))
        return b"".join(next(copied if place else computed) for place in held)

    def tokens(self, view: ReferenceView, entries: list[tuple[str, str]]) -> list[bytes]:
        """The tokens of images (uri, content), as they are stored."""
        import torch

        parts: list[bytes] = []
        for i in range(0, len(entries), self.batch_size):
            images = [_see(view, *entry) for entry in entries[i : i + self.batch_size]]
            pixels = self.processor.pixels(images).to(self.device)
            tokens = self.model.encode_pixels(pixels).to(self.dtype).cpu().contiguous()
            parts += [row.numpy().tobytes() for row in tokens.view(torch.uint8)]
        return parts


def _see(view: ReferenceView, uri: str, content: str) -> Any:
    """What is encoded of an image; `content` is its SHA-256, of a view followed by the box (`Contents.hashes`)."""
    from training.model.views import see

    sha256, _, box = content.partition("#")
    image = _open(uri, sha256)
    if not box:
        return image
    x1, y1, x2, y2 = (int(v) for v in box.split(","))
    return see(image, (x1, y1, x2, y2), view)


def _open(uri: str, sha256: str) -> Any:
    from pipelines.images import ImageLimits, ImageRejected, decode

    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OacirError(f"{uri}: changed since the benchmark was built (another sha256); build it again")
    try:
        # what an image may measure was judged when the benchmark was built
        return decode(data, ImageLimits(min_side_px=1, max_pixels=2**40, max_aspect=2.0**40)).image
    except ImageRejected as error:
        raise OacirError(f"{uri}: cannot be decoded ({error}); build the benchmark again") from error


def _tower(recipe: TrainRecipe) -> tuple[AdaFocalModel, AdaFocalProcessor]:
    """The model with its tower, and the processor as far as pixels and regions go."""
    from training.export import build_model, build_processor

    model = build_model(recipe.model)
    # pixels need no words: any tokenizer will do
    return model, build_processor(recipe.model, model.config, lambda: [PLACEHOLDER_TEXT])


def _plans(recipe: TrainRecipe, context: Context) -> list[Plan]:
    """One plan for each store that the recipe's model reads."""
    from training.features import DTYPES, store_key
    from training.stores import needed

    dataset = resolve(context.root, "datasets", recipe.dataset, holding="quadruples")
    model, processor = _tower(recipe)
    tower_hash, dtype = model.tower_state_hash(), recipe.embed.dtype
    tokens, width = model.config.num_image_tokens, model.config.vision_config.hidden_size
    plans = []
    for wanted in needed(dataset, processor):
        feature_key = wanted.feature_key(tower_hash, processor, dtype)
        shards = _shards(wanted, recipe.embed.images_per_shard)
        contents = [content for shard in shards for content in shard["contents"]]
        row_bytes = tokens * width * DTYPES[dtype].itemsize
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
                row_bytes=row_bytes,
                held=places(context.root, feature_key, contents, row_bytes),
            )
        )
    if not context.dry_run:
        return plans
    embedder = Embedder(recipe, tower_hash, (model, processor))
    return [replace(plan, rate=_rate(embedder, plan)) for plan in plans]


def _rate(embedder: Embedder, plan: Plan) -> float | None:
    """Images/s of one worker on some of the images, the first batch left out."""
    missing = [
        (uri, content)
        for shard in plan.shards
        for uri, content in zip(shard["uris"], shard["contents"], strict=True)
        if content not in plan.held
    ]
    some = missing[: min(embedder.batch_size, RATED_IMAGES)]
    if not some:
        return None
    embedder.tokens(plan.wanted.view, some[:1])
    began = time.perf_counter()
    embedder.tokens(plan.wanted.view, some)
    return len(some) / (time.perf_counter() - began)


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


def _compute(recipe: TrainRecipe, draft: Draft, plan: Plan, missing: list[dict[str, Any]]) -> None:
    left = sum(len(shard["contents"]) for shard in missing)
    with Progress("embed", plan.distinct, "images", done=plan.distinct - left) as progress:
        for row in _run(recipe, draft, plan, missing):
            if row["error"]:
                raise OacirError(row["error"])
            progress.update(row["images"])


def _embed_in_task(batch: dict[str, Any], recipe_json: str, tower_hash: str) -> dict[str, list[Any]]:
    return _warm_embedder(recipe_json, tower_hash)(batch)


@lru_cache(maxsize=1)
def _warm_embedder(recipe_json: str, tower_hash: str) -> Embedder:
    """The embedder of this process; later tasks, also of another store, find the tower in memory."""
    return Embedder(TrainRecipe.model_validate_json(recipe_json), tower_hash)


def _run(
    recipe: TrainRecipe, draft: Draft, plan: Plan, missing: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    import ray.data

    from infra.base.ray_session import connect, data_workers

    connect()
    workers = min(recipe.embed.workers or data_workers(), len(missing))
    items = [
        {n: shard[n] for n in ("shard", "uris", "contents")}
        | {"url": draft.path(shard["path"]), "view": plan.wanted.view}
        | {"held": [json.dumps(plan.held[c]) if c in plan.held else "" for c in shard["contents"]]}
        for shard in missing
    ]
    dataset = ray.data.from_items(items, override_num_blocks=len(items))
    # As in `stages`: tasks reuse warm processes, a GPU needs a pool of actors that keep their device.
    if recipe.scaling.use_gpu:
        rows = dataset.map_batches(
            Embedder,
            fn_constructor_args=(recipe, plan.tower_hash),
            batch_size=1,
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
    else:
        rows = dataset.map_batches(
            _embed_in_task,
            fn_args=(recipe.model_dump_json(), plan.tower_hash),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers),
        )
    yield from rows.iter_rows()


def _commit(draft: Draft, plan: Plan, figures: dict[str, Any], seconds: float) -> None:
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
    files: list[FileEntry] = [
        file_entry(draft.url, shard["path"], len(shard["contents"])) for shard in plan.shards
    ]
    content: dict[str, int | str] = {f.path: f.sha256 for f in files}
    files.append(file_entry(draft.url, f"{INDEX}.parquet", len(index)))
    draft.commit(
        content_hash=content_hash(content | {"key": plan.key}),
        files=files,
        parents={"dataset": plan.dataset.manifest.content_hash},
        seconds={"embed": seconds},
        figures=figures,
    )
