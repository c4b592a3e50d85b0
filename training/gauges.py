"""Figures of a training as Prometheus metrics: Ray collects them from every worker and serves them on each node."""

from __future__ import annotations

from typing import Any

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
    "samples": "Queries trained on, of all workers",
    "step_seconds": "Duration of a step on this worker",
    "mfu": "Model FLOPs per second by the peak of all devices",
}
SECONDS = [0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0]
"""Bounds of the histogram of steps."""
OWN = ("data_wait_share", "memory_bytes")
"""What every worker tells of itself; worker 0 tells the rest."""


class Gauges:
    """A worker's metrics. Where Ray serves none (it was installed without its `default` extra) they go nowhere.

    Args:
        run: name/key of the run, the tag `run`.
        rank: of the worker, the tag `rank`.
    """

    def __init__(self, run: str, rank: int) -> None:
        self.tags, self.rank = {"run": run, "rank": str(rank)}, rank
        self._metrics: dict[str, Any] = {}

    def set(self, told: Told) -> None:
        """The figures of the newest steps."""
        shared = {} if self.rank else {n: v for n, v in told.figures.items() if n not in OWN}
        for name, value in {**shared, **told.own}.items():
            self._metric("Gauge", name).set(value)
        for seconds in told.step_seconds:
            self._metric("Histogram", "step_seconds", boundaries=SECONDS).observe(seconds)
        if not self.rank:
            self._metric("Counter", "samples").inc(told.samples)

    def _metric(self, kind: str, name: str, **options: Any) -> Any:
        if name not in self._metrics:
            import ray.util.metrics

            make = getattr(ray.util.metrics, kind)
            self._metrics[name] = make(PREFIX + name, HELP[name], tag_keys=tuple(self.tags), **options)
            self._metrics[name].set_default_tags(self.tags)
        return self._metrics[name]
