"""The workers of `oacir embed`: each holds the tower and makes whole shards, on CPUs or on GPUs of the Ray session."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.embedded import Place, read
from training.config import EmbedSection, TrainRecipe

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.encoding import Shard, TowerEncoder
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor
    from training.model.views import ReferenceView

PLACEHOLDER_TEXT = "image"
SHARDS_AT_ONCE = 4
"""Shards of a GPU worker's task: one is written while the next is computed. A CPU's are slow enough to be done one by
one, so that a lost worker costs no more."""
log = logging.getLogger(__name__)


class Item(NamedTuple):
    """An image as it is encoded."""

    view: ReferenceView
    uri: str
    content: str
    """Its SHA-256, of a view followed by the box (`Contents.hashes`)."""


class Embedder:
    """A worker with the tower in memory; rows in, one shard of each written."""

    def __init__(
        self,
        recipe: TrainRecipe,
        tower_hash: str,
        made: tuple[AdaFocalModel, AdaFocalProcessor] | None = None,
    ) -> None:
        import torch

        from pipelines.encoding import TowerEncoder, tower_in
        from training.stored import row_bytes

        torch.set_num_threads(recipe.scaling.threads_per_worker)
        model, self.processor = made or load_tower(recipe)
        found = model.tower_state_hash()
        if found != tower_hash:
            raise OacirError(
                f"model.weights: a worker loaded another tower (hash {found}, the driver's {tower_hash})"
            )
        if recipe.scaling.use_gpu and not torch.cuda.is_available():
            raise OacirError("scaling.use_gpu: this worker sees no GPU; set it to false, or mend the driver")
        device = torch.device("cuda" if recipe.scaling.use_gpu else "cpu")
        config, settings = model.config, recipe.embed
        self.row_bytes = row_bytes(config.num_image_tokens, config.vision_config.hidden_size, settings.dtype)
        self.encoder: TowerEncoder[Item] = TowerEncoder(
            tower_in(model, settings.precision, device),
            self._pixels,
            side=config.image_size,
            row_bytes=self.row_bytes,
            dtype=settings.dtype,
            device=device,
            batch_size=settings.batch_size,
            threads=settings.decode_threads,
        )

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, list[Any]]]:
        """Write the shards of a batch of rows {shard, url, view, uris, contents, held}; rows {shard, images, sha256,
        error}.

        `held` of a content is where its tokens lie already, (url, row) as JSON; empty if nowhere.
        """
        from pipelines.encoding import make_shards

        names = ("shard", "url", "view", "uris", "contents", "held")
        rows = [dict(zip(names, row, strict=True)) for row in zip(*(batch[n] for n in names), strict=True)]
        images = {int(row["shard"]): len(row["uris"]) for row in rows}
        # an error is a row of its own: an exception here would surface as a page of trace
        for made in make_shards(self.encoder, [self._shard(row) for row in rows]):
            count = 0 if made.error else images[made.number]
            yield {
                "shard": [made.number],
                "images": [count],
                "sha256": [made.sha256],
                "error": [made.error],
            }

    def _shard(self, row: dict[str, Any]) -> Shard[Item]:
        from pipelines.encoding import Shard

        held = [Place(*json.loads(place)) if place else None for place in row["held"]]
        missing = [i for i, place in enumerate(held) if place is None]
        items = [Item(row["view"], str(row["uris"][i]), str(row["contents"][i])) for i in missing]

        def data(computed: Tensor) -> memoryview:
            return self._with_copies(computed, missing, held).numpy().data.cast("B")

        def write(whole: memoryview) -> None:
            storage.write_bytes(str(row["url"]), whole)

        return Shard(int(row["shard"]), items, [item.uri for item in items], data, write)

    def _with_copies(self, computed: Tensor, missing: list[int], held: list[Place | None]) -> Tensor:
        """All rows of a shard from those that were computed and those that earlier stores hold."""
        import torch

        if len(missing) == len(held):
            return computed
        rows = torch.empty(len(held), self.row_bytes, dtype=torch.uint8)
        rows[missing] = computed
        copied = {i: place for i, place in enumerate(held) if place is not None}
        for i, data in zip(copied, read(list(copied.values()), self.row_bytes), strict=True):
            rows[i].numpy().data.cast("B")[:] = data
        return rows

    def _pixels(self, item: Item) -> Tensor:
        return self.processor.pixels([_see(item)])[0]

    def embed(self, items: list[Item]) -> None:
        """Compute the tokens of some images and keep none, to tell how long it takes."""
        for encoded in self.encoder([items]):
            encoded.wait()


def _see(item: Item) -> Any:
    """What is encoded of an image."""
    from training.images import open_image
    from training.model.views import see

    sha256, _, box = item.content.partition("#")
    image = open_image(item.uri, sha256)
    if not box:
        return image
    x1, y1, x2, y2 = (int(v) for v in box.split(","))
    return see(image, (x1, y1, x2, y2), item.view)


def load_tower(recipe: TrainRecipe) -> tuple[AdaFocalModel, AdaFocalProcessor]:
    """The model with its tower, and the processor as far as pixels and regions go."""
    from training.export import build_model, build_processor

    model = build_model(recipe.model)
    # pixels need no words: any tokenizer will do
    return model, build_processor(recipe.model, model.config, lambda: [PLACEHOLDER_TEXT])


def _embed_in_task(
    batch: dict[str, Any], recipe_json: str, tower_hash: str
) -> Iterator[dict[str, list[Any]]]:
    yield from _warm_embedder(recipe_json, tower_hash)(batch)


@lru_cache(maxsize=1)
def _warm_embedder(recipe_json: str, tower_hash: str) -> Embedder:
    """The embedder of this process; later tasks, also of another store, find the tower in memory."""
    return Embedder(TrainRecipe.model_validate_json(recipe_json), tower_hash)


def run_embedders(
    recipe: TrainRecipe, tower_hash: str, shards: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Make shards with the session's workers; a row {shard, images, sha256, error} of each, as they get ready.

    Args:
        recipe: says with how many workers, and on what.
        tower_hash: of the tower that every worker must have.
        shards: what each is made of, as rows of `Embedder`.

    Raises:
        OacirError: see `gpu_pool`.
    """
    import ray.data

    from infra.base.ray_session import connect, data_workers

    connect()
    # As in `stages`: tasks reuse warm processes, a GPU needs a pool of actors that keep their device.
    if recipe.scaling.use_gpu:
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), resources.get("CPU", 0.0)
        workers, cpus_each = gpu_pool(recipe.embed, gpus, cpus, len(shards))
        together = max(1, min(SHARDS_AT_ONCE, len(shards) // workers))
        rows = ray.data.from_items(shards, override_num_blocks=-(-len(shards) // together)).map_batches(
            Embedder,
            fn_constructor_args=(recipe, tower_hash),
            batch_size=together,
            num_gpus=1,
            num_cpus=cpus_each,
            compute=ray.data.ActorPoolStrategy(size=workers),
        )
    else:
        workers = min(recipe.embed.workers or data_workers(), len(shards))
        rows = ray.data.from_items(shards, override_num_blocks=len(shards)).map_batches(
            _embed_in_task,
            fn_args=(recipe.model_dump_json(), tower_hash),
            batch_size=1,
            num_cpus=1,
            compute=ray.data.TaskPoolStrategy(size=workers),
        )
    yield from rows.iter_rows()


def gpu_pool(settings: EmbedSection, gpus: int, cpus: float, shards: int) -> tuple[int, float]:
    """How many GPU workers there are, and the CPUs that Ray reserves for each: those of its decoding threads.

    A worker never asks for more than its share of the CPUs that there are, less one that Ray's own tasks need: it
    would wait for ever. With fewer CPUs than threads it decodes slower, which is told.

    Raises:
        OacirError: no GPU, or more workers than GPUs.
    """
    if not gpus:
        raise OacirError(
            "scaling.use_gpu: the Ray session has no GPU; start it on a machine with one, or set it to false"
        )
    if (settings.workers or 1) > gpus:
        raise OacirError(
            f"embed.workers {settings.workers}: each has a GPU, the Ray session has {gpus}; set at most {gpus}"
        )
    workers = min(settings.workers or gpus, shards)
    share = max(0.0, cpus - 1) / workers
    if share < settings.decode_threads:
        log.warning(
            "embed.decode_threads %d: %.1f CPUs are there for each GPU, it may wait for images",
            settings.decode_threads,
            share,
        )
    # Ray takes whole numbers, or hundredths below one
    reserved = math.floor(share) if share >= 1 else math.floor(share * 100) / 100
    return workers, min(settings.decode_threads, reserved)
