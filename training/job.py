"""What the driver hands to Ray Train. Light on purpose: Ray Train's helpers load it too, and torch takes seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, NamedTuple

from infra.base import logs
from training.config import TrainRecipe

TRAINED = "trained.safetensors"
"""File that rank 0 leaves in the run until the driver has exported the model."""

PROFILE_FOLDER = "profile"
"""Where a run keeps its traces."""


class Wish(IntEnum):
    """Why a training is to be left between two steps; where several are asked for, the largest counts."""

    NONE = 0
    RESIZE = 1
    """Save, and start again with the workers that there is room for now."""
    MOVE = 2
    """Save, and start again: a process or a machine is about to be taken away."""
    STOP = 3
    """Save, and end."""
    GIVE_UP = 4
    """End: what is learned cannot be saved."""


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


class Started(NamedTuple):
    """Workers that began to train.

    Attributes:
        step: behind which they go on.
        nodes: Ray's id of each one's machine, by rank.
    """

    step: int
    nodes: tuple[str, ...]


class News(NamedTuple):
    """What the driver learns at a look.

    Attributes:
        row: the newest history row, if any.
        notes: those that were not read yet.
        warnings: the same.
        working: the workers that train now; None while none do.
    """

    row: dict[str, float] | None
    notes: list[Note]
    warnings: list[str]
    working: Started | None


class Board:
    """Where workers and driver tell each other what they have to know; lives as an actor beside the workers."""

    def __init__(self) -> None:
        self.row: dict[str, float] | None = None
        self.starts: list[Started] = []
        self.working = False
        self.wish, self.why = Wish.NONE, ""
        self.left: Wish | None = None
        self.notes: list[Note] = []
        self.parts: dict[str, float] = {}
        self.held: list[dict[str, int]] = []
        self.failure = ""
        self.rows: list[int] = []
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        """Something that the user has to know and that does not stop the training."""
        self.warnings.append(text)

    def start(self, step: int, nodes: Iterable[str]) -> None:
        """All workers are there and go on behind a step."""
        self.starts.append(Started(step, tuple(nodes)))
        self.working = True
        self._forget()

    def ask(self, wish: Wish, why: str) -> None:
        """Ask the workers to leave, and say why in some words."""
        if wish > self.wish:
            self.wish, self.why = wish, why

    def asked(self) -> Wish:
        """What the workers are asked."""
        return self.wish

    def leave(self, wish: Wish) -> None:
        """All workers have left, and why."""
        self.left, self.working = wish, False

    def ready(self) -> None:
        """Before workers are started: forget what the last ones were asked and did, but for an end."""
        self.left, self.working = None, False
        self._forget()

    def _forget(self) -> None:
        if self.wish < Wish.STOP:
            self.wish, self.why = Wish.NONE, ""

    def outcome(self) -> tuple[Wish | None, str]:
        """Why all workers left before the end, None if they did not, and what was said of it."""
        return self.left, self.why

    def started(self) -> list[Started]:
        """Every start so far."""
        return self.starts

    def post(self, row: dict[str, float]) -> None:
        """The newest history row."""
        self.row = row

    def tell(self, notes: Iterable[Note]) -> None:
        """Add to what is told. A worker that was lost tells some of it again."""
        self.notes += notes

    def read(self, notes: int, warnings: int) -> News:
        """What there is to know for someone who has read so many notes and warnings."""
        working = self.starts[-1] if self.working else None
        return News(self.row, self.notes[notes:], self.warnings[warnings:], working)

    def finish(self, parts: dict[str, float], held: list[dict[str, int]]) -> None:
        """Seconds by part of the steps; bytes of the training state on each worker by kind (`memory.KINDS`)."""
        self.parts, self.held = parts, held

    def fail(self, message: str, rows: Iterable[int]) -> None:
        """A problem that trying again would not cure, and the rows of the batch that it came up with, if it did."""
        self.failure, self.rows = message, [int(row) for row in rows]

    def result(self) -> tuple[dict[str, float], list[dict[str, int]], str, list[int]]:
        """Seconds by part, bytes of each worker; the problem if there was one, and its rows."""
        return self.parts, self.held, self.failure, self.rows


def work(job: Job) -> None:
    """Train on this worker from the last complete checkpoint to the end."""
    import ray.train

    from training.loop import train_worker

    logs.start_worker(run=job.label, stage="train", rank=ray.train.get_context().get_world_rank())
    train_worker(job)
