"""Figures of a training as Prometheus metrics: Ray collects them from every worker and serves them on each node."""

from __future__ import annotations

from infra.base.metrics import Metrics
from training.meters import Told

PREFIX = "oacir_train_"
"""Ray puts `ray_` before it."""
HELP = {
    "step": "Steps done",
    "epoch": "Epoch, from 0",
    "loss": "Loss, mean of the last steps",
    "temperature": "Learned temperature",
    "beta_mean": "Modulation scalar beta, mean over the batch",
    "beta_std": "Modulation scalar beta, deviation in the batch",
    "gradient_norm": "Norm of the gradient before clipping",
    "learning_rate": "Learning rate of everything but the CAAM",
    "samples_per_second": "Queries per second of all workers",
    "data_wait_share": "Share of the time that this worker waited for its batches",
    "memory_bytes": "Memory of this worker: the peak on its GPU, or its own pages",
    "host_available_bytes": "Free memory of the host with the least",
    "model_flops_per_second": "Model FLOPs per second of all workers",
    "checkpoint_timestamp_seconds": "Unix time at which this worker last wrote its part of a checkpoint, or began",
    "samples": "Queries trained on, of all workers",
    "step_seconds": "Duration of a step on this worker",
    "mfu": "Model FLOPs per second by the peak of all devices",
}
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
"""Bounds of the histogram of steps."""
OWN = ("data_wait_share", "memory_bytes")
"""What every worker tells of itself, beside `checkpoint_timestamp_seconds`; worker 0 tells the rest."""


class Gauges:
    """A worker's metrics.

    Args:
        run: name/key of the run, the tag `run`.
        rank: of the worker, the tag `rank`.
    """

    def __init__(self, run: str, rank: int) -> None:
        self.rank = rank
        self._metrics = Metrics(PREFIX, HELP, {"run": run, "rank": str(rank)})

    def set(self, told: Told) -> None:
        """The figures of the newest steps."""
        shared = {} if self.rank else {n: v for n, v in told.figures.items() if n not in OWN}
        for name, value in {**shared, **told.own}.items():
            self._metrics.set(name, value)
        for seconds in told.step_seconds:
            self._metrics.observe("step_seconds", seconds, SECONDS)
        if not self.rank:
            self._metrics.add("samples", told.samples)

    def saved(self, at: float) -> None:
        """When this worker's newest part of a checkpoint was written, in Unix time."""
        self._metrics.set("checkpoint_timestamp_seconds", at)
