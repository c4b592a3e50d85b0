"""Collectives of the contrastive loss: every worker's rows on every worker, with the gradient of one process."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def share(count: int, rank: int, world_size: int) -> tuple[int, int]:
    """Start and end of a worker's contiguous share of `count` rows; shares differ by at most one row."""
    base, extra = divmod(count, world_size)
    start = rank * base + min(rank, extra)
    return start, start + base + (rank < extra)


def largest_of_all(value: float, device: torch.device) -> float:
    """The largest of all workers' values, on each of them; waits for the slowest."""
    shared = torch.tensor(value, dtype=torch.float64, device=device)
    if dist.is_initialized():
        dist.all_reduce(shared, dist.ReduceOp.MAX)
    return float(shared)


def gather_rows(rows: Tensor, count: int) -> Tensor:
    """The rows of all workers in rank order, differentiable.

    Args:
        rows: this worker's `share` of the rows, [n, …].
        count: rows of all workers together.

    Returns:
        [count, …]. The backward pass sums the gradients that all workers have for a row before it goes back to the
        row's owner. A gather that differentiates the local block alone has the right loss and a wrong gradient
        (DeepSpeed#7107, open_clip#616).
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return rows
    apply: Any = _GatherRows.apply
    gathered: Tensor = apply(rows, count)
    return gathered


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        rank, world_size = dist.get_rank(), dist.get_world_size()
        bounds = [share(count, r, world_size) for r in range(world_size)]
        ctx.start, ctx.end = bounds[rank]
        longest = bounds[0][1]
        block = rows.new_zeros(longest, *rows.shape[1:])
        block[: rows.shape[0]] = rows.detach()
        blocks = [torch.empty_like(block) for _ in bounds]
        dist.all_gather(blocks, block)
        return torch.cat([b[: end - start] for b, (start, end) in zip(blocks, bounds, strict=True)])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        total = grads[0].clone(memory_format=torch.contiguous_format)
        dist.all_reduce(total)
        return total[ctx.start : ctx.end], None
