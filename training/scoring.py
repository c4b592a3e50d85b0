"""The score of a query against a target: the best cosine over the target's set of vectors."""

from __future__ import annotations

import torch
from torch import Tensor

CHUNK_ELEMENTS = 2**25
"""Similarities held at once when no chunk is given: 128 MiB of float32."""


def max_over_set(queries: Tensor, targets: Tensor, chunk: int | None = None) -> Tensor:
    """score[i, t] = max over m of queries[i] · targets[t, m]; differentiable.

    Args:
        queries: unit vectors [Q, d].
        targets: M unit vectors per target [T, M, d].
        chunk: targets per block, so that at most Q x chunk x M products exist at once; None chooses a block of at
            most `CHUNK_ELEMENTS` products.

    Returns:
        [Q, T]
    """
    count, per_target, _ = targets.shape
    size = chunk or max(1, CHUNK_ELEMENTS // max(1, len(queries) * per_target))
    blocks = []
    for start in range(0, count, size):
        block = targets[start : start + size]
        products = queries @ block.flatten(0, 1).T  # [Q, chunk·M]
        # max keeps indices [Q, chunk] for the backward pass; amax would keep all products.
        blocks.append(products.view(-1, len(block), per_target).max(dim=-1).values)
    return blocks[0] if len(blocks) == 1 else torch.cat(blocks or [queries.new_zeros(len(queries), 0)], dim=1)
