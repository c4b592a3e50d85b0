"""The history of a training: a row per step, summed over the workers without making any of them wait."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from infra.base.errors import OacirError
from training.batches import Rows
from training.task import StepOutput

HISTORY_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "temperature",
    "beta_mean",
    "beta_std",
    "learning_rate",
    "gradient_norm",
    "seconds",
    "data_seconds",
    "loss_scale",
    "skipped",
)
"""Of a step: norm of the gradient before clipping; seconds in all, and those spent waiting for the batch; the loss
scale it ran under (1 but for float16), and 1 if it was skipped because its gradient was no number."""


class DivergedError(OacirError):
    """Loss or weights are no numbers any more. Every worker finds so after the same step."""

    def __init__(self, what: str, rows: Rows) -> None:
        super().__init__(what)
        self.rows = rows
        """Rows of the global batch of the step."""


class Pending(NamedTuple):
    """A step whose sums over the workers may still be on their way.

    Attributes:
        step, epoch: step from 1, epoch from 0.
        rows: of the global batch.
        betas: how many β the global batch has; NaN without a modulator.
        temperature: before the step, a scalar.
        sums: of loss, β and β², float64 [3]; `handle` says when they are complete.
        rest: the columns behind `beta_std`.
    """

    step: int
    epoch: int
    rows: Rows
    betas: float
    temperature: Tensor
    sums: Tensor
    handle: Any
    rest: tuple[Any, ...]


class History:
    """Rows in `HISTORY_COLUMNS`; those of the last steps are pending until somebody wants to read them."""

    def __init__(self) -> None:
        self.rows: list[tuple[float, ...]] = []
        self.pending: list[Pending] = []
        self.diverged: DivergedError | None = None
        """The first step whose loss was no number."""

    def add(
        self,
        step: int,
        epoch: int,
        rows: Rows,
        output: StepOutput,
        rest: tuple[Any, ...],
    ) -> None:
        """Note a step; its sums over the workers are begun, not waited for. Arguments as in `Pending`."""
        beta = torch.zeros(1, 1) if output.beta is None else output.beta
        sums = torch.stack([output.loss_sum.double(), beta.double().sum(), beta.double().square().sum()])
        handle = dist.all_reduce(sums, async_op=True)
        betas = float("nan") if output.beta is None else float(beta.shape[1] * len(rows))
        self.pending.append(Pending(step, epoch, rows, betas, output.temperature, sums, handle, rest))

    def flush(self) -> None:
        """Turn what the last steps left on the device into rows."""
        for pending in self.pending:
            pending.handle.wait()
            loss_sum, beta_sum, beta_square = pending.sums.tolist()
            loss, mean = loss_sum / len(pending.rows), beta_sum / pending.betas
            spread = math.sqrt(max(0.0, beta_square / pending.betas - mean**2)) if mean == mean else mean
            if not math.isfinite(loss) and self.diverged is None:
                self.diverged = DivergedError(f"the loss is {loss} at step {pending.step}", pending.rows)
            values = (loss, pending.temperature.item(), mean, spread, *map(float, pending.rest))
            self.rows.append((pending.step, pending.epoch, *values))
        self.pending.clear()

    @property
    def last(self) -> dict[str, float]:
        """The newest flushed row; empty before there is one."""
        return dict(zip(HISTORY_COLUMNS, self.rows[-1], strict=True)) if self.rows else {}
