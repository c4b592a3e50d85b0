"""What the driver hands to Ray Train. Light on purpose: Ray Train's helpers load it too, and torch takes seconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from training.config import TrainRecipe

TRAINED, BEST = "trained.safetensors", "best.safetensors"
"""Files that rank 0 leaves in the run until the driver has exported the model."""


@dataclass(frozen=True)
class Job:
    """What every worker gets."""

    recipe: TrainRecipe
    run_url: str
    store_url: str
    feature_key: str
    config: dict[str, Any]
    """Of the model (`AdaFocalConfig.to_dict`)."""
    weights: Any
    """Object reference of the start weights without the tower, name → tensor."""
    queries: Any
    """Object reference of the training `QuerySet`."""
    sampler: Any
    """Object reference of the `Sampler`."""
    galleries: Any
    """Object reference of the dev galleries."""
    board: Any
    """The `Board` actor."""
    total_steps: int


class Board:
    """Where rank 0 says how far training is; lives as an actor beside the workers."""

    def __init__(self) -> None:
        self.row: dict[str, float] | None = None
        self.parts: dict[str, float] = {}
        self.failure = ""

    def post(self, row: dict[str, float]) -> None:
        """The newest history row."""
        self.row = row

    def read(self) -> dict[str, float] | None:
        """The newest history row, if any."""
        return self.row

    def finish(self, parts: dict[str, float]) -> None:
        """Seconds by part of the steps."""
        self.parts = parts

    def fail(self, message: str) -> None:
        """A problem that trying again would not cure."""
        self.failure = message

    def result(self) -> tuple[dict[str, float], str]:
        """Seconds by part, and the problem if there was one."""
        return self.parts, self.failure


def work(job: Job) -> None:
    """Train on this worker from the last complete checkpoint to the end."""
    from training.loop import train_worker

    train_worker(job)
