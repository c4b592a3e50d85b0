"""How a training is watched: the section of its recipe, and what is said of every n steps. No torch here.

No part of a run's identity: it changes no result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Annotated, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from infra.base.config import Config

Positive = Annotated[int, Field(gt=0)]
FEW = 10
"""Samples per second below which a tenth of them is said."""
MEANINGS = {
    "loss": "mean over the steps",
    "temperature": "before the last step",
    "beta_mean": "mean over the steps of β's mean over the batch",
    "beta_std": "mean over the steps of β's deviation in the batch",
    "gradient_norm": "mean over the steps, before clipping",
    "learning_rate": "of the last step, of everything but the CAAM",
    "samples_per_second": "queries of all workers, without dev measurements and checkpoints",
    "data_wait_share": "share of the time that the worker with the longest waits waited for its batches",
    "memory_bytes": "of the worker with the most: allocated at the peak on its GPU, or its own pages",
    "host_available_bytes": "free memory of the host with the least",
    "model_flops_per_second": "model FLOPs of all workers",
    "mfu": "model FLOPs per second by the peak of all devices",
}
"""What is told of every n steps, by name; a figure that does not exist is left out."""


class TrackingSection(Config):
    """How a training is watched: figures every n steps, MLflow, a profile."""

    every_steps: Positive = 20
    """Loss, β, samples per second and the like go to the log, to MLflow and to Prometheus after every so many steps."""
    mlflow_uri: str | None = None
    """MLflow tracking server (http://…) or database (sqlite:///…); null takes the variable MLFLOW_TRACKING_URI, and
    without it logs nothing to MLflow."""
    experiment: str = "oacir"
    """Experiment of MLflow."""
    run_name: str | None = None
    """Name of the run in MLflow; null takes the recipe's name."""
    log_model: bool = False
    """Put the exported model among the run's artifacts in MLflow, too; `oacir register` does so by itself."""
    parent: str | None = None
    """The run of MLflow that this one stands under, by its tag oacir.spool; null stands under none, `oacir tune` sets
    it."""
    profile_steps: Positive | None = None
    """Write a Chrome trace of so many steps of worker 0 into the run's profile/; null writes none."""
    profile_from: Annotated[int, Field(ge=2)] = 10
    """The first step of the trace; the one before it warms the profiler up."""
    peak_tflops: Annotated[float, Field(gt=0)] | None = None
    """Peak TFLOP/s of one device, for MFU; null takes the data sheet's of known GPUs, and states no MFU elsewhere."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.mlflow_uri is not None and "@" in urlsplit(self.mlflow_uri).netloc:
            raise ValueError(
                "mlflow_uri holds a password, which would be stored with the run; set MLFLOW_TRACKING_USERNAME and"
                " MLFLOW_TRACKING_PASSWORD instead"
            )
        return self


def note(figures: Mapping[str, float]) -> str:
    """A reading in a few words, the most important first: a narrow terminal cuts the end off."""
    words: dict[str, Callable[[float], str]] = {
        "loss": lambda v: f"loss {v:.3f}",
        "temperature": lambda v: f"τ {v:.4f}",
        "beta_mean": lambda v: f"β {v:.2f}±{figures.get('beta_std', 0.0):.2f}",
        "gradient_norm": lambda v: f"|g| {v:.2g}",
        "learning_rate": lambda v: f"lr {v:.1e}",
        "samples_per_second": lambda v: f"{v:,.0f} samples/s" if v >= FEW else f"{v:.1f} samples/s",
        "data_wait_share": lambda v: f"wait {100 * v:.0f} %",
        "memory_bytes": lambda v: f"{v / 1e9:.1f} GB",
        "mfu": lambda v: f"MFU {100 * v:.0f} %",
    }
    return ", ".join(say(figures[name]) for name, say in words.items() if name in figures)
