"""What training costs: seconds by part of a step, and the figures that are told every n steps."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
import torch
import torch.distributed as dist
from torch import Tensor

from training.flops import peak_flops
from training.history import HISTORY_COLUMNS
from training.job import Job

STATM, PAGE_BYTES = Path("/proc/self/statm"), os.sysconf("SC_PAGE_SIZE")
MEANS = ("loss", "beta_mean", "beta_std", "gradient_norm")


@dataclass
class Parts:
    """Seconds spent by part of the step; on a GPU the parts are what the CPU waits for."""

    seconds: dict[str, float] = field(default_factory=dict)
    steps: int = 0
    """Steps done by this process."""

    @property
    def step_s(self) -> float:
        """Seconds of a step on the mean, of what is done in each; 0 before the first."""
        in_each = sum(
            self.seconds.get(part, 0.0) for part in ("data", "forward", "backward", "optimizer", "record")
        )
        return in_each / self.steps if self.steps else 0.0

    @property
    def paused(self) -> float:
        """Seconds in which no step was under way."""
        return sum(self.seconds.get(part, 0.0) for part in ("dev", "checkpoint", "profile"))

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the block's duration to a part."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


def memory_bytes(device: torch.device) -> float:
    """What this worker's memory is at, without waiting for the device: on a GPU the most that was allocated so far, on
    a CPU the process's own pages (neither mapped features nor Ray's shared memory)."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    _, resident, shared, *_ = map(int, STATM.read_bytes().split())
    return float((resident - shared) * PAGE_BYTES)


Reading = dict[str, float]
"""What is told of n steps, by name: `step`, `epoch`, and what `tracking.MEANINGS` explains."""


class Window(NamedTuple):
    """n steps whose figures may still be on their way.

    Attributes:
        step: the last of them.
        seconds: that they took here; None where training went on in their midst.
        own: seconds that this worker waited for batches, and its memory.
        most: what all workers' maximum is taken of, float64 [3]: as `own`, and minus the host's free memory;
            `handle` says when it is complete.
    """

    step: int
    seconds: float | None
    own: tuple[float, float]
    most: Tensor
    handle: Any


class Told(NamedTuple):
    """What a worker tells of n steps.

    Attributes:
        figures: of all workers.
        own: of this one alone.
        step_seconds: of each step here.
        samples: queries of all workers.
    """

    figures: Reading
    own: Reading
    step_seconds: list[float]
    samples: float


class Meter:
    """Figures of every n steps. The workers' maxima are begun with the last of the steps and read when it is flushed,
    so that no step waits for them.

    Args:
        every: n.
        total: the last step of the training, which ends a window too.
        device: of this worker.
        peak: FLOP/s of all devices at their best; None where it is not known.
    """

    def __init__(self, every: int, total: int, device: torch.device, peak: float | None) -> None:
        self.every, self.total, self.device, self.peak = every, total, device, peak
        self.pending: list[Window] = []
        self._began: tuple[int, float, float, float] | None = None

    def begin(self, step: int, waited: float, paused: float) -> None:
        """Start the clock after `step` steps; seconds waited for batches, and spent on other things, so far."""
        self._began = (step, time.perf_counter(), waited, paused)

    def add(self, step: int, waited: float, paused: float) -> None:
        """Note that a step is done; to be called after every step on every worker. Arguments as in `begin`."""
        if (step % self.every and step != self.total) or self._began is None:
            return
        first, began, waited_before, paused_before = self._began
        whole = first == (step - 1) // self.every * self.every
        seconds = time.perf_counter() - began - (paused - paused_before) if whole else None
        own = (waited - waited_before, memory_bytes(self.device))
        most = torch.tensor([*own, -psutil.virtual_memory().available], dtype=torch.float64)
        if self.device.type == "cuda":
            most = most.pin_memory().to(self.device, non_blocking=True)
        handle = dist.all_reduce(most, dist.ReduceOp.MAX, async_op=True)
        self.pending.append(Window(step, seconds, own, most, handle))
        self.begin(step, waited, paused)

    def read(self, rows: Sequence[Sequence[float]]) -> list[Told]:
        """What is known now of windows that ended.

        Args:
            rows: of the history, flushed (`history.HISTORY_COLUMNS`).
        """
        found = []
        for window in self.pending:
            window.handle.wait()
            waited, memory, available = window.most.tolist()
            steps = self._rows(rows, window.step)
            figures = reading(steps, self.peak, window.seconds)
            figures |= {"memory_bytes": memory, "host_available_bytes": -available}
            own = {"memory_bytes": window.own[1]}
            if window.seconds is not None:
                figures["data_wait_share"] = waited / window.seconds
                own["data_wait_share"] = window.own[0] / window.seconds
            seconds, samples = HISTORY_COLUMNS.index("seconds"), HISTORY_COLUMNS.index("samples")
            found.append(Told(figures, own, [row[seconds] for row in steps], sum(r[samples] for r in steps)))
        self.pending.clear()
        return found

    def earlier(self, rows: Sequence[Sequence[float]]) -> list[Reading]:
        """The windows of a restored history, told of again: who was told before leaves them out."""
        ends = [int(row[0]) for row in rows if not int(row[0]) % self.every or int(row[0]) == self.total]
        return [reading(self._rows(rows, end), self.peak) for end in ends]

    def _rows(self, rows: Sequence[Sequence[float]], end: int) -> Sequence[Sequence[float]]:
        first = int(rows[0][0])  # other workers than 0 do not restore theirs
        start = (end - 1) // self.every * self.every + 1
        return rows[max(0, start - first) : end + 1 - first]


def new_meter(job: Job, device: torch.device) -> Meter:
    """The meter that a recipe asks for; the peak is that of as many devices of this kind as there are workers."""
    tracking, precision = job.recipe.tracking, job.recipe.training.precision
    peak: float | None = None
    if tracking.peak_tflops is not None:
        peak = 1e12 * tracking.peak_tflops
    elif device.type == "cuda":
        peak = peak_flops(torch.cuda.get_device_name(device), precision)
    workers = dist.get_world_size()
    return Meter(tracking.every_steps, job.total_steps, device, None if peak is None else peak * workers)


def reading(
    rows: Sequence[Sequence[float]], peak: float | None = None, seconds: float | None = None
) -> Reading:
    """The figures of consecutive steps; without `seconds` (all that passed) the steps' own are added up."""
    columns = dict(zip(HISTORY_COLUMNS, zip(*rows, strict=True), strict=True))
    passed = sum(columns["seconds"]) if seconds is None else seconds
    figures = {name: sum(columns[name]) / len(rows) for name in MEANS}
    figures |= {name: columns[name][-1] for name in ("step", "epoch", "temperature", "learning_rate")}
    figures["samples_per_second"] = sum(columns["samples"]) / passed
    figures["data_wait_share"] = sum(columns["data_seconds"]) / passed
    figures["memory_bytes"] = max(columns["memory_bytes"])
    figures["model_flops_per_second"] = sum(columns["model_flops"]) / passed
    if peak is not None:
        figures["mfu"] = figures["model_flops_per_second"] / peak
    return {name: float(value) for name, value in figures.items() if math.isfinite(value)}
