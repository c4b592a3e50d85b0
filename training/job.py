"""What the driver hands to Ray Train. Light on purpose: Ray Train's helpers load it too, and torch takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

from training.config import TrainRecipe

TRAINED, BEST = "trained.safetensors", "best.safetensors"
"""Files that rank 0 leaves in the run until the driver has exported the model."""

PROFILE_FOLDER = "profile"
"""Where a run keeps its traces."""


@dataclass(frozen=True)
class Job:
    """What every worker gets."""

    recipe: TrainRecipe
    run_url: str
    stores: tuple[tuple[str, str], ...]
    """URL and feature key of the feature stores, in the order of `stores.needed`."""
    config: dict[str, Any]
    """Of the model (`AdaFocalConfig.to_dict`)."""
    weights: Any
    """Object reference of the start weights, name → tensor; those of the tower only where training reads pixels."""
    queries: Any
    """Object reference of the training `QuerySet`."""
    sampler: Any
    """Object reference of the `Sampler`."""
    galleries: Any
    """Object reference of the dev galleries."""
    plan: Any
    """Object reference of the `online.Plan`; None where training reads stored tokens."""
    board: Any
    """The `Board` actor."""
    total_steps: int
    label: str = ""
    """Of the run, `name/key`: what its Prometheus metrics are tagged with."""
    stoppable: bool = False
    """Whether somebody may ask the board to end the training."""


class Note(NamedTuple):
    """What is told of a training once.

    Attributes:
        group: "train" (figures of n steps) or "dev" (a measurement); of a group each step counts once.
        step: after which.
        time_s: when, in seconds since the epoch.
        figures: by name.
    """

    group: str
    step: int
    time_s: float
    figures: dict[str, float]


class Board:
    """Where rank 0 says how far training is; lives as an actor beside the workers."""

    def __init__(self) -> None:
        self.row: dict[str, float] | None = None
        self.notes: list[Note] = []
        self.parts: dict[str, float] = {}
        self.held: list[dict[str, int]] = []
        self.failure = ""
        self.rows: list[int] = []
        self.warnings: list[str] = []
        self.stop_asked, self.stopped_after = False, 0

    def warn(self, text: str) -> None:
        """Something that the user has to know and that does not stop the training."""
        self.warnings.append(text)

    def warned(self) -> list[str]:
        """All of it."""
        return self.warnings

    def post(self, row: dict[str, float]) -> None:
        """The newest history row."""
        self.row = row

    def tell(self, notes: Iterable[Note]) -> None:
        """Add to what is told. A worker that was lost tells some of it again."""
        self.notes += notes

    def read(self, start: int) -> tuple[dict[str, float] | None, list[Note]]:
        """The newest history row, if any; what was told from the note with index `start` on."""
        return self.row, self.notes[start:]

    def finish(self, parts: dict[str, float], held: list[dict[str, int]]) -> None:
        """Seconds by part of the steps; bytes of the training state on each worker by kind (`memory.KINDS`)."""
        self.parts, self.held = parts, held

    def fail(self, message: str, rows: Iterable[int]) -> None:
        """A problem that trying again would not cure, and the rows of the batch that it came up with."""
        self.failure, self.rows = message, [int(row) for row in rows]

    def stop(self) -> None:
        """Ask the workers to leave at the next step at which all of them look."""
        self.stop_asked = True

    def stops(self) -> bool:
        """Whether they were asked to."""
        return self.stop_asked

    def left(self, step: int) -> None:
        """They did, after that step."""
        self.stopped_after = step

    def left_after(self) -> int:
        """After which step they left because they were asked to; 0 where they did not."""
        return self.stopped_after

    def result(self) -> tuple[dict[str, float], list[dict[str, int]], str, list[int]]:
        """Seconds by part, bytes of each worker; the problem if there was one, and its rows."""
        return self.parts, self.held, self.failure, self.rows


def work(job: Job) -> None:
    """Train on this worker from the last complete checkpoint to the end."""
    from training.loop import train_worker

    train_worker(job)
