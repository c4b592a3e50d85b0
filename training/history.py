"""The history of a training: a row per step, summed over the workers without making any of them wait."""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    "memory_bytes",
    "samples",
    "model_flops",
)
"""Of a step: norm of the gradient before clipping; seconds in all, and those spent waiting for the batch; the loss
scale it ran under (1 but for float16), and 1 if it was skipped because its gradient was no number; memory of worker 0
(`meters.memory_bytes`); queries and model FLOPs (`flops.py`) of all workers."""


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
        sums: of loss, β, β² and model FLOPs, float64 [4]; `handle` says when they are complete.
        rest: the columns from `learning_rate` to `memory_bytes`.
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
        flops: float,
        rest: tuple[Any, ...],
    ) -> None:
        """Note a step; its sums over the workers are begun, not waited for. `flops` are this worker's, the other
        arguments as in `Pending`."""
        beta = output.loss_sum.new_zeros(1, 1) if output.beta is None else output.beta
        counted = output.loss_sum.new_full((), flops, dtype=torch.float64)
        sums = torch.stack(
            [output.loss_sum.double(), beta.double().sum(), beta.double().square().sum(), counted]
        )
        handle = dist.all_reduce(sums, async_op=True)
        betas = float("nan") if output.beta is None else float(beta.shape[1] * len(rows))
        self.pending.append(Pending(step, epoch, rows, betas, output.temperature, sums, handle, rest))

    def restore(self, rows: Sequence[Sequence[float]]) -> None:
        """Go on from the rows of a checkpoint; columns that its code did not have are NaN."""
        self.rows = [(*row, *[math.nan] * (len(HISTORY_COLUMNS) - len(row))) for row in rows]

    def flush(self) -> None:
        """Turn what the last steps left on the device into rows."""
        for pending in self.pending:
            pending.handle.wait()
            loss_sum, beta_sum, beta_square, flops = pending.sums.tolist()
            samples = float(len(pending.rows))
            loss, mean = loss_sum / samples, beta_sum / pending.betas
            spread = math.sqrt(max(0.0, beta_square / pending.betas - mean**2)) if mean == mean else mean
            if not math.isfinite(loss) and self.diverged is None:
                self.diverged = DivergedError(f"the loss is {loss} at step {pending.step}", pending.rows)
            values = (
                loss,
                pending.temperature.item(),
                mean,
                spread,
                *map(float, pending.rest),
                samples,
                flops,
            )
            self.rows.append((pending.step, pending.epoch, *values))
        self.pending.clear()

    @property
    def last(self) -> dict[str, float]:
        """The newest flushed row; empty before there is one."""
        return dict(zip(HISTORY_COLUMNS, self.rows[-1], strict=True)) if self.rows else {}
