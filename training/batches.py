"""What the training loop reads: quadruples as rows of a store, their order, one worker's part of a global batch.

Plain numpy and torch, made once by the driver and shared with the workers; tokens stay in the store.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from training.distributed import share

Rows = npt.NDArray[np.int64]


class Batch(NamedTuple):
    """One worker's part of a global batch.

    Attributes:
        reference_tokens: frozen tokens of the references, float32 [b, N, D]; online their pixels, [b, 3, S, S].
        target_tokens: the same of the part's u distinct images that are encoded as targets.
        target_index: which of them each query has, int64 [b].
        input_ids, attention_mask: texts padded to the longest of the part, int64 [b, L].
        patch_mask: 1 where the region touches a patch, float32 [b, N].
        modulate: whether any query of the global batch has a region.
        total: rows of the global batch.
        reference_index: where references are negatives: which of `target_tokens` is each query's own, int64 [b].
        target_images: where false negatives are left out: which image each target of the global batch is, int64
            [total], as numbers that equal images share.
        reference_images: the same of the references, int64 [total].
        right_images: those that are right answers of each query of the part, int64 [b, A].
    """

    reference_tokens: Tensor
    target_tokens: Tensor
    target_index: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    patch_mask: Tensor
    modulate: bool
    total: int
    reference_index: Tensor | None = None
    target_images: Tensor | None = None
    reference_images: Tensor | None = None
    right_images: Tensor | None = None


@dataclass(frozen=True)
class Answers:
    """Which images the queries of a set are about, as numbers that equal images share; row-aligned."""

    references: Rows
    """The reference, [n]."""
    right: Rows
    """The right answers, the target that is trained on first, [n, A]."""


@dataclass(frozen=True)
class QuerySet:
    """Quadruples of one split, row-aligned arrays."""

    reference_rows: Rows
    """Row of the reference (as the model sees it) in the store, [n]."""
    target_rows: Rows
    """Row of the primary target in the store, [n]."""
    input_ids: npt.NDArray[np.int32]
    """Word pieces padded to the longest text of the set, [n, L]."""
    text_lengths: npt.NDArray[np.int32]
    """Word pieces of each text, [n]."""
    patch_masks: npt.NDArray[np.bool_]
    """Patches that the region touches, [n, N]."""
    whole_rows: Rows | None = None
    """Row of the whole reference in the store, [n]; None where references are no negatives."""
    answers: Answers | None = None
    """None where false negatives are kept."""

    def __len__(self) -> int:
        return len(self.reference_rows)

    def texts(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Token ids and attention mask of some rows, int64 [b, L], L the longest of them."""
        lengths = torch.from_numpy(self.text_lengths[rows])
        longest = int(lengths.max()) if len(rows) else 1
        input_ids = torch.from_numpy(self.input_ids[rows, :longest]).long()
        return input_ids, (torch.arange(longest) < lengths[:, None]).long()

    def as_targets(self, rows: Rows) -> tuple[Rows, Rows, Rows | None]:
        """The distinct images that are encoded as targets for some rows; which of them is each row's target; which
        is its reference, None where references are no negatives."""
        if self.whole_rows is None:
            images, index = np.unique(self.target_rows[rows], return_inverse=True)
            return images, index, None
        both = np.concatenate([self.target_rows[rows], self.whole_rows[rows]])
        images, index = np.unique(both, return_inverse=True)
        return images, index[: len(rows)], index[len(rows) :]

    def image_numbers(self, rows: Rows, start: int, end: int) -> tuple[Tensor | None, ...]:
        """Of the global batch of `rows` and its part `start` … `end`: `Batch.target_images` and what follows it.

        Every worker knows them all from the order alone, so that nothing of it has to be gathered.
        """
        if self.answers is None:
            return None, None, None
        right = torch.from_numpy(self.answers.right[rows])
        return right[:, 0], torch.from_numpy(self.answers.references[rows]), right[start:end]

    def regions(self, rows: Rows) -> Tensor:
        """Patch masks of some rows, float32 [b, N]."""
        return torch.from_numpy(self.patch_masks[rows]).float()


@dataclass(frozen=True)
class Sampler:
    """The order of training as a pure function of the epoch: it resumes anywhere by being asked for that epoch.

    Every row is seen exactly once per epoch. A group's rows are permuted and cut into `ceil(rows / batch_size)` global
    batches whose sizes differ by at most one, so that no batch is much smaller than the others (the number of
    negatives stays even). Each worker takes its contiguous share of every batch.

    Where queries of an instance keep together, its rows are dealt in runs of up to `together`, drawn anew in every
    epoch, and the runs are permuted: the others of a run are the hardest negatives, the same object in another context.
    """

    groups: Rows
    """The group of each row, [n]. A batch holds rows of one group; all rows alike mix freely."""
    batch_size: int
    seed: int
    instances: Rows | None = None
    """The instance of each row, [n]; needed where `together` exceeds one."""
    together: int = 1
    """Queries of one instance that follow each other."""

    @property
    def steps_per_epoch(self) -> int:
        """Global batches of an epoch."""
        _, counts = np.unique(self.groups, return_counts=True)
        return int(sum(-(-counts // self.batch_size)))

    def rows_seen(self, steps: int) -> int:
        """Rows in so many steps, counted as often as they are seen."""
        epochs, more = divmod(steps, self.steps_per_epoch)
        return epochs * len(self.groups) + sum(len(rows) for rows in self.batches(epochs)[:more])

    def batches(self, epoch: int) -> list[Rows]:
        """The global batches of an epoch (from 0) in their order, the same on every worker."""
        generator = np.random.Generator(np.random.PCG64([self.seed, epoch]))
        batches: list[Rows] = []
        for group in np.unique(self.groups):
            rows = self._order(generator, np.flatnonzero(self.groups == group))
            count = -(-len(rows) // self.batch_size)
            batches += [rows[slice(*share(len(rows), i, count))] for i in range(count)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _order(self, generator: np.random.Generator, rows: Rows) -> Rows:
        rows = generator.permutation(rows)
        if self.together == 1:
            return rows
        if self.instances is None:
            raise ValueError("together exceeds one: which instance each row shows has to be given")
        by_instance = rows[np.argsort(self.instances[rows], kind="stable")]
        owner = self.instances[by_instance]
        first = np.flatnonzero(np.concatenate([[True], owner[1:] != owner[:-1]]))
        within = np.arange(len(rows)) - np.repeat(first, np.diff(np.append(first, len(rows))))
        run = np.cumsum(within % self.together == 0) - 1
        place = generator.permutation(run[-1] + 1)[run]
        return by_instance[np.argsort(place, kind="stable")]
