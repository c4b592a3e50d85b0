"""Training losses: pure functions of similarities."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def info_nce(similarity: Tensor, temperature: Tensor | float, labels: Tensor) -> Tensor:
    """One-way InfoNCE, queries over targets: mean cross-entropy of similarity / temperature, in nats.

    Args:
        similarity: cosine of every query with every target of the (global) batch, [B, T].
        temperature: positive scalar; a tensor may be learnable.
        labels: column of each query's own target, [B].
    """
    return F.cross_entropy(similarity / temperature, labels)
