"""Training from pixels: Ray Data streams the images of the next steps to each worker, in the sampler's order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import ray.data
import torch
from ray.data import ActorPoolStrategy, Datasource, ExecutionResources, ReadTask
from ray.data.block import BlockMetadata
from ray.train import DataConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from infra.base.errors import OacirError
from training import checkpoints
from training.batches import Batch, Rows
from training.feed import BatchesAhead, on_device
from training.model.processing import normalise
from training.reader import Part, Plan, Reader

if TYPE_CHECKING:
    from training.config import TrainRecipe
    from training.tower_config import TowerSection

SHARD = "steps"
"""What Ray Train calls the dataset."""
STEPS_PLANNED = 500
"""Steps of one execution of Ray Data, which plans a task for each of them before the first one runs."""
STEPS_OPENED_BEFORE = 100
"""Steps before the end of an execution at which the next one is begun, so that nobody waits for its start."""
STEPS_AHEAD = 4
"""Steps of a worker that lie ready at most, whatever the object store would hold."""


class ReaderProcess(Reader):
    """A reader in an actor of Ray Data, which takes the plan from the object store."""

    def __init__(self, plan: Any, rank: int, world_size: int) -> None:
        super().__init__(ray.get(plan), rank, world_size)


class Steps(Datasource):  # type: ignore[misc]  # ray is untyped here
    """The numbers of the steps `start` … `total`, one block each."""

    def __init__(self, start: int, total: int) -> None:
        super().__init__()
        self.start, self.total = start, total

    def estimate_inmemory_data_size(self) -> int:
        """Bytes."""
        return 8 * (self.total - self.start)

    def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[ReadTask]:
        """A task for each step."""
        del parallelism
        return [_step_task(step) for step in range(self.start, self.total)]


def _step_task(step: int) -> ReadTask:
    def read() -> list[Any]:
        import pyarrow as pa

        return [pa.table({"step": [step]})]

    return ReadTask(read, BlockMetadata(num_rows=1, size_bytes=8, input_files=None, exec_stats=None))


class StepShards(DataConfig):  # type: ignore[misc]  # ray is untyped here
    """Each worker's own stream of steps, from the last complete checkpoint on.

    Ray Train asks for it anew whenever it starts the workers. It would split one dataset evenly by blocks; which worker
    needs what in which order is the sampler's to say, so every worker gets a dataset of its own.

    Args:
        run_url: where the checkpoints lie.
        total_steps: of the training.
        plan: object reference of the `Plan`.
        section: the recipe's.
        step_bytes: of the pixels of one worker's part of a step.
    """

    def __init__(
        self, run_url: str, total_steps: int, plan: Any, section: TowerSection, step_bytes: int
    ) -> None:
        super().__init__(datasets_to_split=[SHARD])
        self.run_url, self.total_steps, self.plan = run_url, total_steps, plan
        self.section, self.step_bytes = section, step_bytes

    def configure(
        self,
        datasets: Any,
        world_size: int,
        worker_handles: Any,
        worker_node_ids: list[str] | None,
        **_: Any,
    ) -> list[dict[str, Any]]:
        """An iterator for each worker."""
        del datasets, worker_handles
        done = checkpoints.complete_steps(self.run_url)
        start = done[-1] if done else 0
        nodes: list[str | None] = [None] * world_size if worker_node_ids is None else [*worker_node_ids]
        return [{SHARD: StepStream(self, start, rank, world_size, node)} for rank, node in enumerate(nodes)]

    def dataset(self, start: int, end: int, rank: int, world_size: int, node: str | None = None) -> Any:
        """The steps `start` … `end` as one worker needs them, executed when they are asked for.

        The readers run beside the worker, in the CPUs that are reserved for it.
        """
        place: dict[str, Any] = {"num_cpus": 0}
        if node is not None:
            place["scheduling_strategy"] = NodeAffinitySchedulingStrategy(node, soft=True)
        dataset = ray.data.read_datasource(
            Steps(start, end),
            override_num_blocks=end - start,
            num_cpus=0,
            concurrency=1,  # a task says one number; without a bound Ray starts a process for each of them
        ).map_batches(
            ReaderProcess,
            batch_size=1,
            compute=ActorPoolStrategy(size=self.section.readers, max_tasks_in_flight_per_actor=1),
            fn_constructor_kwargs={"plan": self.plan, "rank": rank, "world_size": world_size},
            **place,
        )
        options = dataset.context.execution_options
        options.preserve_order = True
        options.resource_limits = ExecutionResources(object_store_memory=STEPS_AHEAD * self.step_bytes)
        return dataset


class StepStream:
    """One worker's steps from `start` on: a dataset after the other, each of `STEPS_PLANNED` steps.

    Args:
        shards: makes the datasets.
        start: the first step.
        rank, world_size: which part of every step.
        node: where the worker is.
    """

    def __init__(self, shards: StepShards, start: int, rank: int, world_size: int, node: str | None) -> None:
        self.shards, self.start = shards, start
        self.worker = (rank, world_size, node)

    def iter_batches(self, **options: Any) -> Iterator[dict[str, Any]]:
        """As of a Ray Data iterator, with its options; each batch has the column `step`."""
        total = self.shards.total_steps
        opener = ThreadPoolExecutor(1, "next-steps")
        following: Future[Iterator[dict[str, Any]]] | None = None
        try:
            for first in range(self.start, total, STEPS_PLANNED):
                end = min(first + STEPS_PLANNED, total)
                batches = self._open(first, options) if following is None else following.result()
                following = None
                for batch in batches:
                    if following is None and end < total and batch["step"][-1] >= end - STEPS_OPENED_BEFORE:
                        following = opener.submit(self._open, end, options)
                    yield batch
        finally:
            opener.shutdown(wait=False, cancel_futures=True)

    def _open(self, first: int, options: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """The batches of the execution that begins with a step, its first one made."""
        end = min(first + STEPS_PLANNED, self.shards.total_steps)
        batches = iter(self.shards.dataset(first, end, *self.worker).iter_batches(**options))
        return itertools.chain([next(batches)], batches)


def streams(
    recipe: TrainRecipe, run_url: str, total_steps: int, plan: Any, image_size: int
) -> dict[str, Any]:
    """What the trainer is told of the data, by name of argument.

    Args:
        recipe: of the training.
        run_url: where its checkpoints lie.
        total_steps: of the training.
        plan: object reference of the `Plan`.
        image_size: side of the pixels, pixels.
    """
    share_of_worker = -(-recipe.training.batch_size // recipe.scaling.workers)
    images = 3 if recipe.training.reference_negatives else 2
    step_bytes = images * share_of_worker * 3 * image_size**2
    return {
        # Ray Train asks for a dataset under each name; what it holds is the shards' to say
        "datasets": {SHARD: lambda: ray.data.range(1)},
        "dataset_config": StepShards(run_url, total_steps, plan, recipe.tower, step_bytes),
    }


class OnlineFeed(BatchesAhead):
    """Batches of pixels, as a worker's shard streams them.

    Args:
        shard: what `ray.train.get_dataset_shard(SHARD)` gives.
        plan: what the readers read by.
        rank, world_size, device, start, total: as of `BatchesAhead`.
    """

    def __init__(
        self,
        shard: Any,
        plan: Plan,
        rank: int,
        world_size: int,
        device: torch.device,
        start: int,
        total: int,
    ) -> None:
        super().__init__(plan.sampler, rank, world_size, device, start, total)
        self.plan, self.step = plan, start
        self._blocks = iter(shard.iter_batches(batch_size=None, prefetch_batches=1) if start < total else ())
        self._held: dict[str, Any] = {}

    def make(self, rows: Rows, start: int, end: int) -> Batch:
        """The next step's part, pixels on the device.

        Raises:
            OacirError: an image cannot be read, or the stream is not where the loop is.
        """
        part = Part(self.plan, rows, self.rank, self.world_size)
        queries, count = self.plan.queries, end - start
        read = self._next(len(part))
        pixels = normalise(on_device(torch.from_numpy(read["pixels"]), self.device))
        input_ids, attention_mask = queries.texts(part.own)
        masks = torch.from_numpy(read["patch_mask"][:count]).float()
        index = part.reference_index
        self.step += 1
        return Batch(
            pixels[:count],
            pixels[count:],
            on_device(torch.from_numpy(part.target_index), self.device),
            on_device(input_ids, self.device),
            on_device(attention_mask, self.device),
            on_device(masks, self.device),
            bool(queries.patch_masks[rows].any()),
            len(rows),
            None if index is None else on_device(torch.from_numpy(index), self.device),
            *(t if t is None else on_device(t, self.device) for t in queries.image_numbers(rows, start, end)),
        )

    def _next(self, count: int) -> dict[str, Any]:
        """The next `count` rows of the stream, which have to be those of the present step."""
        if not count:
            side, patches = self.plan.processor.image_size, self.plan.images.shape[0]
            return {
                "pixels": np.zeros((0, 3, side, side), np.uint8),
                "patch_mask": np.zeros((0, patches), np.uint8),
            }
        parts = [self._held] if self._held else []
        while sum(len(part["step"]) for part in parts) < count:
            part = next(self._blocks, None)
            if part is None:
                raise OacirError(f"the stream of images ended before step {self.step + 1}")
            if failed := [error for error in part["error"] if error]:
                raise OacirError(str(failed[0]))
            parts.append(part)
        joined = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        taken = {name: values[:count] for name, values in joined.items()}
        self._held = {} if len(joined["step"]) == count else {n: v[count:] for n, v in joined.items()}
        if (taken["step"] != self.step).any():
            raise OacirError(
                f"the stream of images is at step {int(taken['step'][0]) + 1}, training at step {self.step + 1}: a"
                " checkpoint came or went while the workers started; run the same command again"
            )
        return taken
