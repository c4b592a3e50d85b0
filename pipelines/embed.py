"""Frozen features once: the tower over every image of a benchmark, one feature store for all models that share it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.progress import Progress, duration
from infra.base.versions import Draft, FileEntry, Version, content_hash, file_entry, resolve, start
from training.config import TrainRecipe

if TYPE_CHECKING:
    import pyarrow as pa

    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor

PLACEHOLDER_TEXT = "image"


@dataclass(frozen=True)
class Plan:
    """What has to be computed: distinct image contents in shards of fixed membership."""

    dataset: Version
    images: pa.Table
    """image_id, uri, sha256, sorted by image_id; several ids may share one content."""
    shards: list[dict[str, Any]]
    """{shard, path, uris, sha256s} of each shard; the first image of a content stands for it."""
    feature_key: str
    key: str
    tokens: int
    width: int
    row_bytes: int


def embed(recipe: TrainRecipe, context: Context) -> Outcome:
    """Write the feature store of the recipe's tower over every image that the benchmark's queries and galleries use.

    A shard is the unit of work: it appears whole or not at all, and a later run of the same command computes only
    the missing ones.

    Raises:
        OacirError: no such dataset, or an image is gone or no longer the one that the benchmark was built from.
    """
    began = time.monotonic()
    plan = _plan(recipe, context)
    distinct = sum(len(s["sha256s"]) for s in plan.shards)
    figures: dict[str, Any] = {
        "feature_key": plan.feature_key,
        "images": len(plan.images),
        "forwards": distinct,
        "tokens": plan.tokens,
        "width": plan.width,
        "dtype": recipe.embed.dtype,
        "view": "full",
        "bytes": distinct * plan.row_bytes,
    }
    name = plan.dataset.manifest.name
    if context.dry_run:
        details = (
            f"{len(plan.images):,} images, {distinct:,} distinct contents = forwards of the tower",
            f"{len(plan.shards):,} shards of up to {recipe.embed.images_per_shard:,} images,"
            f" {figures['bytes'] / 2**30:.2f} GiB ({recipe.embed.dtype})",
        )
        return Outcome(f"dry run: would write features {name}/{plan.key}", None, figures, details)
    draft = start("features", name, plan.key, recipe, root=context.root, out=context.out)
    if draft.finished is not None:
        return Outcome(
            f"nothing to do: these {distinct:,} images were embedded before: {draft.url}", draft.url, figures
        )
    done = _finished_shards(draft, plan)
    missing = [shard for shard in plan.shards if shard["shard"] not in done]
    if missing:
        _compute(recipe, draft, plan, missing, distinct)
    _commit(draft, plan, figures, time.monotonic() - began)
    resumed = f" ({len(done)} of {len(plan.shards)} shards from an earlier run)" if done else ""
    return Outcome(
        f"embedded {distinct:,} images in {duration(time.monotonic() - began)}{resumed}: {draft.url}",
        draft.url,
        figures,
    )


class Embedder:
    """A worker with the tower in memory; one row in, one shard written."""

    def __init__(self, recipe: TrainRecipe, store_url: str, feature_key: str) -> None:
        import torch

        from infra.base.ray_session import has_gpu
        from training.features import DTYPES

        torch.set_num_threads(recipe.scaling.threads_per_worker)
        self.model, self.processor, found = _tower(recipe)
        if found != feature_key:
            raise OacirError(
                f"model.weights: a worker loaded another tower (key {found}, the driver's {feature_key})"
            )
        self.device = torch.device("cuda" if recipe.scaling.use_gpu and has_gpu() else "cpu")
        self.model.to(self.device)
        self.store_url, self.batch_size = store_url, recipe.embed.batch_size
        self.dtype = DTYPES[recipe.embed.dtype]

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[Any]]:
        """Write the shards of a batch of rows {shard, path, uris, sha256s}; rows {shard, images, error}."""
        out: dict[str, list[Any]] = {"shard": [], "images": [], "error": []}
        rows = (batch[name] for name in ("shard", "path", "uris", "sha256s"))
        for shard, path, uris, sha256s in zip(*rows, strict=True):
            error = ""
            try:
                data = self._tokens(list(zip(uris, sha256s, strict=True)))
                storage.write_bytes(storage.join(self.store_url, str(path)), data)
            except (
                OacirError
            ) as problem:  # a row of its own: an exception here would surface as a page of trace
                error = str(problem)
            out["shard"].append(int(shard))
            out["images"].append(len(uris))
            out["error"].append(error)
        return out

    def _tokens(self, entries: list[tuple[str, str]]) -> bytes:
        import torch

        parts = []
        for i in range(0, len(entries), self.batch_size):
            images = [_open(uri, sha256) for uri, sha256 in entries[i : i + self.batch_size]]
            pixels = self.processor.pixels(images).to(self.device)
            tokens = self.model.encode_pixels(pixels).to(self.dtype).cpu().contiguous()
            parts.append(tokens.view(torch.uint8).numpy().tobytes())
        return b"".join(parts)


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


def _tower(recipe: TrainRecipe) -> tuple[AdaFocalModel, AdaFocalProcessor, str]:
    """The model with its tower, the processor as far as pixels go, and the feature key of the two."""
    from training.export import build_model, build_processor
    from training.features import feature_key, processor_fingerprint

    model = build_model(recipe.model)
    # pixels need no words: any tokenizer will do
    processor = build_processor(recipe.model, model.config, lambda: [PLACEHOLDER_TEXT])
    return (
        model,
        processor,
        feature_key(model.tower_state_hash(), processor_fingerprint(processor), recipe.embed.dtype),
    )


def _plan(recipe: TrainRecipe, context: Context) -> Plan:
    from training.data import used_images
    from training.features import DTYPES, shard_path, store_key

    dataset = resolve(context.root, "datasets", recipe.dataset)
    images = used_images(dataset)
    model, _, key = _tower(recipe)
    tokens, width = model.config.num_image_tokens, model.config.vision_config.hidden_size
    uri_of = dict(
        zip(reversed(images["sha256"].to_pylist()), reversed(images["uri"].to_pylist()), strict=True)
    )
    contents = list(dict.fromkeys(images["sha256"].to_pylist()))
    size = recipe.embed.images_per_shard
    shards = []
    for number, i in enumerate(range(0, len(contents), size)):
        own = contents[i : i + size]
        uris = [uri_of[sha256] for sha256 in own]
        shards.append({"shard": number, "path": shard_path(number, own), "uris": uris, "sha256s": own})
    version_key = store_key(key, contents)
    return Plan(
        dataset=dataset,
        images=images,
        shards=shards,
        feature_key=key,
        key=version_key,
        tokens=tokens,
        width=width,
        row_bytes=tokens * width * DTYPES[recipe.embed.dtype].itemsize,
    )


def _finished_shards(draft: Draft, plan: Plan) -> set[int]:
    lying = {f.path: f.size_bytes for f in storage.list_files(draft.url)}
    return {
        shard["shard"]
        for shard in plan.shards
        if lying.get(shard["path"]) == len(shard["sha256s"]) * plan.row_bytes
    }


def _compute(
    recipe: TrainRecipe, draft: Draft, plan: Plan, missing: list[dict[str, Any]], distinct: int
) -> None:
    left = sum(len(shard["sha256s"]) for shard in missing)
    with Progress("embed", distinct, "images", done=distinct - left) as progress:
        for row in _run(recipe, draft, plan, missing):
            if row["error"]:
                raise OacirError(row["error"])
            progress.update(row["images"])


def _embed_in_task(
    batch: dict[str, Any], recipe_json: str, store_url: str, feature_key: str
) -> dict[str, list[Any]]:
    return _warm_embedder(recipe_json, store_url, feature_key)(batch)


@lru_cache(maxsize=1)
def _warm_embedder(recipe_json: str, store_url: str, feature_key: str) -> Embedder:
    """The embedder of this process; later tasks find the tower in memory."""
    return Embedder(TrainRecipe.model_validate_json(recipe_json), store_url, feature_key)


def _run(
    recipe: TrainRecipe, draft: Draft, plan: Plan, missing: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    import ray.data

    from infra.base.ray_session import connect, data_workers

    connect()
    workers = min(recipe.embed.workers or data_workers(), len(missing))
    dataset = ray.data.from_items(missing, override_num_blocks=len(missing))
    # As in `stages`: tasks reuse warm processes, a GPU needs a pool of actors that keep their device.
    if recipe.scaling.use_gpu:
        rows = dataset.map_batches(
            Embedder,
            fn_constructor_args=(recipe, draft.url, plan.feature_key),
            batch_size=1,
            num_gpus=1,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
    else:
        rows = dataset.map_batches(
            _embed_in_task,
            fn_args=(recipe.model_dump_json(), draft.url, plan.feature_key),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers),
        )
    yield from rows.iter_rows()


def _commit(draft: Draft, plan: Plan, figures: dict[str, Any], seconds: float) -> None:
    import pyarrow as pa

    from training.features import INDEX

    place = {
        sha256: (shard["shard"], row) for shard in plan.shards for row, sha256 in enumerate(shard["sha256s"])
    }
    places = [place[sha256] for sha256 in plan.images["sha256"].to_pylist()]
    index = pa.table(
        {
            "image_id": plan.images["image_id"],
            "sha256": plan.images["sha256"],
            "shard": pa.array([p[0] for p in places], pa.int32()),
            "row": pa.array([p[1] for p in places], pa.int64()),
        }
    )
    storage.write_table(draft.path(f"{INDEX}.parquet"), index)
    files: list[FileEntry] = [
        file_entry(draft.url, shard["path"], len(shard["sha256s"])) for shard in plan.shards
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
