"""A reader of training from pixels: what it has to know, and a worker's part of a step as images ready to be encoded.

A step's part is a pure function of (seed, step, rank, number of workers): the sampler says which queries, a generator
seeded by (seed, step, image) how they are changed. So it does not matter which reader makes it, nor how often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.base.errors import OacirError
from training.anchors import Anchor, anchors_of, region_of
from training.augment import Seen, augment, to_keep
from training.batches import QuerySet, Rows, Sampler
from training.data import image_sizes
from training.distributed import share
from training.model.views import see

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.base.versions import Version
    from training.config import TrainRecipe
    from training.model.processing import AdaFocalProcessor
    from training.model.regions import Box
    from training.pixels import ImageSet
    from training.tower_config import TowerSection

REFERENCE, TARGET = 0, 1


@dataclass(frozen=True)
class Plan:
    """What a reader needs to make any step; lies in the object store once."""

    images: ImageSet
    queries: QuerySet
    sampler: Sampler
    anchors: list[Anchor]
    """Of each query."""
    target_boxes: list[Box | None]
    """Where the object lies on each query's target; None where nobody knows."""
    processor: AdaFocalProcessor
    section: TowerSection
    seed: int


class Part:
    """Which images a worker needs for a step: the references of its queries, then the distinct images that are encoded
    as targets (theirs, and where references are negatives those too)."""

    def __init__(self, plan: Plan, rows: Rows, rank: int, world_size: int) -> None:
        self.start, end = share(len(rows), rank, world_size)
        self.own = rows[self.start : end]
        self.targets, self.target_index, self.reference_index = plan.queries.as_targets(self.own)

    def __len__(self) -> int:
        return len(self.own) + len(self.targets)


class Reader:
    """Makes the steps of one worker; one row in, a row for each image of the step out."""

    def __init__(self, plan: Plan, rank: int, world_size: int) -> None:
        self.plan = plan
        self.rank, self.world_size = rank, world_size
        self._epoch, self._batches = -1, list[Rows]()

    def __call__(self, batch: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Rows {step, pixels uint8 [3, S, S], patch_mask [N], error} of a batch of rows {step}, in a fixed order."""
        for step in batch["step"]:
            yield self.read(int(step))

    def read(self, step: int) -> dict[str, Any]:
        """The images of a step; a row that holds nothing but the error where one cannot be read."""
        per_epoch = self.plan.sampler.steps_per_epoch
        if step // per_epoch != self._epoch:
            self._epoch = step // per_epoch
            self._batches = self.plan.sampler.batches(self._epoch)
        part = Part(self.plan, self._batches[step % per_epoch], self.rank, self.world_size)
        try:
            squares, masks = self._images(part, step)
        except OacirError as problem:  # an exception here would surface as a page of trace
            side, patches = self.plan.processor.image_size, self.plan.images.shape[0]
            return {
                "step": np.array([step]), "pixels": np.zeros((1, 3, side, side), np.uint8),
                "patch_mask": np.zeros((1, patches), np.uint8), "error": np.array([str(problem)]),
            }  # fmt: skip
        return {
            "step": np.full(len(part), step), "pixels": squares, "patch_mask": masks,
            "error": np.array([""] * len(part)),
        }  # fmt: skip

    def _images(self, part: Part, step: int) -> tuple[Any, Any]:
        plan, section = self.plan, self.plan.section
        seen, masks = [], []
        for place, query in enumerate(part.own):
            one = self._reference(int(query), section.augmented)
            if section.augmented:
                kept = to_keep(one.region, one.image.size)
                one = augment(one, kept, section, self._generator(step, REFERENCE, part.start + place))
                masks.append(plan.processor.regions([one.region], [one.image.size])[0].numpy())
            else:
                masks.append(plan.queries.patch_masks[query])
            seen.append(one.image)
        for place, target in enumerate(part.targets):
            one = Seen(plan.images.seen(int(target), plan.processor), None)
            if section.augmented:
                kept = self._object(part, place, one.image.size)
                one = augment(one, kept, section, self._generator(step, TARGET, int(target)))
            seen.append(one.image)
            masks.append(np.zeros(plan.images.shape[0]))
        blank = np.zeros((0, plan.images.shape[0]))  # a worker may have no share in a small batch
        return plan.processor.squares(seen).numpy(), np.concatenate(
            [blank, *(m[None] for m in masks)]
        ).astype(np.uint8)

    def _reference(self, query: int, with_region: bool) -> Seen:
        plan, row = self.plan, int(self.plan.queries.reference_rows[query])
        image, box, view = plan.images.image(row), plan.images.boxes[row], plan.processor.reference_view
        region = region_of(plan.anchors[query], plan.processor) if with_region and view != "crop" else None
        return Seen(image if box is None else see(image, box, view), region)

    def _object(self, part: Part, place: int, size: tuple[int, int]) -> Box | None:
        """Around the objects that queries look for on one target, or start from where it is a reference; None where
        one of them is not known."""
        own = [self.plan.target_boxes[query] for query in part.own[part.target_index == place]]
        if part.reference_index is not None:
            own += [self.plan.anchors[query].box for query in part.own[part.reference_index == place]]
        boxes = [to_keep(box, size) for box in own]
        known = [box for box in boxes if box is not None]
        if len(known) < len(boxes):
            return None
        x1, y1, x2, y2 = zip(*known, strict=True)
        return min(x1), min(y1), max(x2), max(y2)

    def _generator(self, step: int, role: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64([self.plan.seed, step, role, number]))


def make_plan(
    recipe: TrainRecipe,
    dataset: Version,
    quadruples: pa.Table,
    images: ImageSet,
    queries: QuerySet,
    sampler: Sampler,
    processor: AdaFocalProcessor,
) -> Plan:
    """What the readers of a training need.

    Args:
        recipe: of the training.
        dataset: the benchmark.
        quadruples: those trained on, in the order of `queries`.
        images: of the benchmark.
        queries: whose rows are those of `images`.
        sampler: the order.
        processor: the model's.
    """
    rows = quadruples.to_pylist()
    boxes: dict[tuple[str, str], Box] = {}
    if recipe.tower.crop is not None:
        table = dataset.table("instances", ["image_id", "instance_id", "box"]).to_pylist()
        boxes = {(r["image_id"], r["instance_id"]): tuple(r["box"]) for r in table if r["box"] is not None}
    return Plan(
        images,
        queries,
        sampler,
        anchors_of(rows, image_sizes(dataset)),
        [boxes.get((row["target_ids"][0], row["instance_id"])) for row in rows],
        processor,
        recipe.tower,
        recipe.training.seed,
    )
