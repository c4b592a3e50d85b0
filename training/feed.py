"""Batches made ahead of the step that needs them: a thread gathers, pins and copies while the model computes.

What a step sees does not depend on it: the order is the sampler's, and nothing random happens in the thread.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor

from training.batches import Batch, QuerySet, Rows, Sampler
from training.distributed import share

if TYPE_CHECKING:
    from training.features import FeatureStore

AHEAD = 2
"""Batches that wait at most."""
LOOK_EVERY_S = 0.1
"""How soon a feed that nobody reads notices that it was closed."""


class Fed(NamedTuple):
    """A step's part of its global batch, on the device."""

    epoch: int
    rows: Rows
    """Of the global batch."""
    batch: Batch


class BatchesAhead:
    """A worker's parts of the global batches of the steps `start` … `total`, in order; `make` says what they hold.

    Args:
        sampler: the order of all epochs.
        rank, world_size: which part of every batch is this worker's.
        device: where the batches go.
        start: the first step.
        total: the step that is not made any more.
    """

    def __init__(
        self, sampler: Sampler, rank: int, world_size: int, device: torch.device, start: int, total: int
    ) -> None:
        self.sampler = sampler
        self.rank, self.world_size, self.device = rank, world_size, device
        self.start, self.total = start, total
        self.waited_s = 0.0
        """Seconds that the reader waited for a batch."""
        self._ready: queue.Queue[tuple[Fed, Any] | BaseException | None] = queue.Queue(AHEAD)
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._work, name="feed", daemon=True)
        self._stream: Any = None
        if device.type == "cuda":
            self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def make(self, rows: Rows, start: int, end: int) -> Batch:
        """The part `start` … `end` of the next global batch, of `rows`; called in the thread, step after step."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closed.set()
        self._thread.join()

    def __iter__(self) -> Iterator[Fed]:
        return self

    def __next__(self) -> Fed:
        began = time.perf_counter()
        item = self._ready.get()
        self.waited_s += time.perf_counter() - began
        if item is None:
            raise StopIteration
        if isinstance(item, BaseException):
            raise item
        fed, copied = item
        if copied is not None:
            # the memory was taken on the feed's stream: it may not be given away while the step still reads it
            current = torch.cuda.current_stream(self.device)
            current.wait_event(copied)
            for value in fed.batch:
                if isinstance(value, Tensor):
                    value.record_stream(current)
        return fed

    def _work(self) -> None:
        try:
            for epoch, rows in self._steps():
                if not self._put(self._make(epoch, rows)):
                    return
            self._put(None)
        except BaseException as error:  # told to the reader, who is the one that can stop the training
            self._put(error)

    def _steps(self) -> Iterator[tuple[int, Rows]]:
        per_epoch, known, batches = self.sampler.steps_per_epoch, -1, list[Rows]()
        for step in range(self.start, self.total):
            epoch = step // per_epoch
            if epoch != known:
                known, batches = epoch, self.sampler.batches(epoch)
            yield epoch, batches[step % per_epoch]

    def _put(self, item: tuple[Fed, Any] | BaseException | None) -> bool:
        while not self._closed.is_set():
            try:
                self._ready.put(item, timeout=LOOK_EVERY_S)
                return True
            except queue.Full:
                continue
        return False

    def _make(self, epoch: int, rows: Rows) -> tuple[Fed, Any]:
        start, end = share(len(rows), self.rank, self.world_size)
        if self._stream is None:
            return Fed(epoch, rows, self.make(rows, start, end)), None
        with torch.cuda.stream(self._stream):
            return Fed(epoch, rows, self.make(rows, start, end)), self._stream.record_event()


class Feed(BatchesAhead):
    """Batches of stored tokens.

    Args:
        store: the frozen tokens.
        queries: the training quadruples.
        sampler, rank, world_size, device, start, total: as of `BatchesAhead`.
    """

    def __init__(
        self,
        store: FeatureStore,
        queries: QuerySet,
        sampler: Sampler,
        rank: int,
        world_size: int,
        device: torch.device,
        start: int,
        total: int,
    ) -> None:
        super().__init__(sampler, rank, world_size, device, start, total)
        self.store, self.queries = store, queries

    def make(self, rows: Rows, start: int, end: int) -> Batch:
        """See `make_batch`."""
        return make_batch(self.queries, self.store, rows, start, end, self.device)


def make_batch(
    queries: QuerySet, store: FeatureStore, rows: Rows, start: int, end: int, device: torch.device
) -> Batch:
    """The part `start` … `end` of the global batch of `rows`, on a device.

    Every image of the part is read and copied once, however many of its queries show it.
    """
    own = rows[start:end]
    targets, target_index, reference_index = queries.as_targets(own)
    images, place = np.unique(np.concatenate([queries.reference_rows[own], targets]), return_inverse=True)
    tokens = store.gather(images, device).float()
    where = on_device(torch.from_numpy(place), device)
    input_ids, attention_mask = queries.texts(own)
    return Batch(
        tokens[where[: len(own)]],
        tokens[where[len(own) :]],
        on_device(torch.from_numpy(target_index), device),
        on_device(input_ids, device),
        on_device(attention_mask, device),
        on_device(queries.regions(own), device),
        bool(queries.patch_masks[rows].any()),
        len(rows),
        None if reference_index is None else on_device(torch.from_numpy(reference_index), device),
        *(t if t is None else on_device(t, device) for t in queries.image_numbers(rows, start, end)),
    )


def on_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device, copied to a GPU through pinned memory without waiting for it."""
    if tensor.device == device or device.type != "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)
