"""Dropout that does not dominate a training step on a CPU."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_LEVELS = 2**16


def dropout(states: Tensor, probability: float, training: bool) -> Tensor:
    """Zero each element with `probability` and scale the rest up; the identity outside training.

    torch draws one 32-bit number per element on the CPU, which took a third of the tiny model's forward pass. Here one
    64-bit draw serves four elements: the probability is rounded to 1 / 65536. Other devices use torch's kernel.
    """
    if not training or probability == 0:
        return states
    if states.device.type != "cpu":
        return F.dropout(states, probability)
    dropped = round(probability * _LEVELS)
    draws = torch.empty((states.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = draws.view(torch.int16)[: states.numel()].view(states.shape) >= dropped - _LEVELS // 2
    return states * (kept * (_LEVELS / (_LEVELS - dropped))).to(states.dtype)


class Dropout(nn.Module):
    """`dropout` as a module without parameters."""

    def __init__(self, probability: float) -> None:
        super().__init__()
        self.probability = probability

    def forward(self, states: Tensor) -> Tensor:
        """Any shape; the same shape back."""
        return dropout(states, self.probability, self.training)
