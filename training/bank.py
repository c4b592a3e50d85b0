"""The memory bank: targets of earlier steps as further negatives, the same on every worker."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
import torch.distributed as dist
from torch import Tensor

TARGETS, IMAGES = "bank_targets", "bank_images"
"""Of a bank in a checkpoint."""


def bank_bytes(size: int, shape: tuple[int, ...]) -> int:
    """Bytes of a full bank of `size` targets whose Rep has a shape, float32; every worker holds one."""
    return size * (4 * math.prod(shape) + 8)


class MemoryBank:
    """The last `size` targets that were trained on, detached, the oldest first (XBM, Wang et al. 2020).

    A step's own targets come in after the step, and only if it changed the weights. Every worker keeps the gathered
    targets in the order of the global batch, so the content depends neither on the worker nor on their number.

    Args:
        size: most targets kept.
        shape: of one target's Rep.
        like: a tensor of the loss's type, on the device where the bank shall lie.
    """

    def __init__(self, size: int, shape: tuple[int, ...], like: Tensor) -> None:
        self.size = size
        self.targets = like.detach().new_zeros(0, *shape)
        """[n, …], n ≤ size."""
        self.images = torch.zeros(0, dtype=torch.int64, device=like.device)
        """Which image each is (`Batch.target_images`), [n]; -1 where nobody asks."""
        self._waiting: list[tuple[Tensor, Tensor]] = []

    def offer(self, targets: Tensor, images: Tensor | None) -> None:
        """Note the targets of a global batch, or of a piece of one; `take` says what becomes of them.

        Args:
            targets: Rep of T targets, [T, …].
            images: which image each is, [T].
        """
        if images is None:
            images = torch.full((len(targets),), -1, dtype=torch.int64, device=targets.device)
        self._waiting.append((targets.detach(), images))

    def take(self, applied: bool) -> None:
        """End a step: what was offered comes in if the step was applied; a skipped one changes nothing."""
        if applied and self._waiting:
            targets, images = zip(*self._waiting, strict=True)
            self.targets = torch.cat([self.targets, *targets])[-self.size :].clone()
            self.images = torch.cat([self.images, *images])[-self.size :].clone()
        self._waiting.clear()

    def state(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by name; the same on every worker."""
        return {TARGETS: self.targets, IMAGES: self.images}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        self.targets = state[TARGETS].to(self.targets)
        self.images = state[IMAGES].to(self.images)

    def broadcast(self) -> None:
        """Take over rank 0's content; to be called on every worker."""
        if not dist.is_initialized():
            return
        count = torch.tensor(len(self.images), device=self.images.device)
        dist.broadcast(count, 0)
        if dist.get_rank():
            self.targets = self.targets.new_zeros(int(count), *self.targets.shape[1:])
            self.images = self.images.new_zeros(int(count))
        dist.broadcast(self.targets, 0)
        dist.broadcast(self.images, 0)
