"""The dynamic loss scale of float16, whose gradients would otherwise vanish below its smallest number or overflow."""

from __future__ import annotations

import torch
from torch import Tensor

START = 2.0**16
GROWTH_EVERY_STEPS = 2000
MINIMUM = 1.0


class LossScale:
    """What the objective is multiplied with before its backward pass; ZeRO divides the gradients by it again.

    It doubles after so many good steps in a row, and halves after a step whose gradients overflowed, which ZeRO skipped
    on all workers (the rule of `torch.amp.GradScaler`; DeepSpeed's own scaler belongs to float16 weights, and ours are
    float32).

    Args:
        value: the first scale; a power of two, so that scaling rounds nothing.
        growth_every: good steps in a row before it doubles.
    """

    def __init__(self, value: float = START, growth_every: int = GROWTH_EVERY_STEPS) -> None:
        self.value, self.growth_every = value, growth_every
        self.good_steps = 0
        """Since the scale last changed."""

    @property
    def exhausted(self) -> bool:
        """Whether a gradient that overflows now would do so unscaled."""
        return self.value <= MINIMUM

    def update(self, skipped: bool) -> None:
        """Adapt to a step that was taken or skipped; the same on every worker."""
        if skipped:
            self.value, self.good_steps = max(MINIMUM, self.value / 2), 0
            return
        self.good_steps += 1
        if self.good_steps == self.growth_every:
            self.value, self.good_steps = self.value * 2, 0

    def state(self) -> Tensor:
        """Everything that decides over later steps, float64 [2]."""
        return torch.tensor([self.value, self.good_steps], dtype=torch.float64)

    def restore(self, state: Tensor) -> None:
        """Go on from what `state` gave."""
        value, good_steps = state.tolist()
        self.value, self.good_steps = value, int(good_steps)
