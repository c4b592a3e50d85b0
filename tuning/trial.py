"""A trial as Ray Tune sees it: `training.trainer.train` in a thread, its dev measurements as Tune's results.

A class and no function, since Tune ends a function by ending its process, and Ray Train's placement group would
outlive it (ray#54305). This one lets its workers leave by themselves, and its process serves the next trial, so that
torch is imported once.
"""

from __future__ import annotations

import json
import logging
import math
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray
from ray import tune

from infra.base import logs
from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.tracking import track_at
from training.config import TrainRecipe
from training.job import Note
from training.listening import MARK, StoppedError
from tuning.describe import described
from tuning.records import Reading, TrialRecord, reading
from tuning.schedulers import REPLAYED
from tuning.space import Values, applied

LEAVE_S = 300.0
"""How long a training that was asked to end is waited for."""
POINTER = "run.json"
"""In a checkpoint of Tune: which run to go on from."""


@dataclass(frozen=True)
class Shared:
    """What all trials of a sweep get."""

    base: TrainRecipe
    root: str
    sweep: str
    """Name of the sweep, which begins the names of the trials' runs in MLflow."""
    objectives: tuple[str, ...]
    intervals: bool
    mlflow_uri: str | None = None
    """Where the driver tracks."""
    ended: dict[int, TrialRecord] = field(default_factory=dict)
    """Trials of an earlier run of the sweep, by number: only replayed."""
    origins: dict[int, str] = field(default_factory=dict)
    """Of the trials that go on, by number: the run whose checkpoint their run began with."""


class Course:
    """One training under way, as its `training.listening.Listener`."""

    def __init__(
        self, shared: Shared, number: int, values: Values, origin: str | None = None, after: int = 0
    ) -> None:
        self.shared, self.number, self.values = shared, number, values
        self.origin, self.last_told = origin, after
        self.run_url, self.total_steps = "", 0
        self.items: queue.Queue[dict[str, Any]] = queue.Queue()
        self.ending = threading.Event()
        self.thread = threading.Thread(target=self._work, name=f"trial-{number}", daemon=True)
        self.thread.start()

    def next(self) -> dict[str, Any]:
        """The next measurement, or how the trial ended; waits for it."""
        return self.items.get()

    def leave(self) -> None:
        """End the training at the next step at which its workers look, and wait for that."""
        self.ending.set()
        self.thread.join(LEAVE_S)

    def begins(self, run_url: str, total_steps: int) -> None:
        """See `Listener`."""
        self.run_url, self.total_steps = run_url, total_steps

    def notes(self, notes: Sequence[Note]) -> None:
        """See `Listener`. The last measurement is told with the end: a scheduler that stopped it there would throw a
        whole training away."""
        for note in notes:
            if note.group == "dev" and self.last_told < note.step < self.total_steps:
                self.last_told = note.step
                self.items.put(result(reading(note), self.run_url) | self._which())

    def stopping(self) -> bool:
        """See `Listener`."""
        return self.ending.is_set()

    def _work(self) -> None:
        from training.trainer import train

        began = time.monotonic()
        try:
            if self.ending.is_set():
                return
            recipe = named(applied(self.shared.base, self.values), self.shared.sweep, self.number)
            outcome = train(recipe, Context(root=self.shared.root), self, self.origin)
            assert outcome.location is not None
            found = self._described(outcome.location, recipe)
            lacking = [name for name in self.shared.objectives if name not in found["figures"]]
            if lacking:
                raise OacirError(f"{outcome.location}: {', '.join(lacking)} cannot be told of this run")
            end = found | {"state": "finished", "found": not self.run_url, "run": outcome.location}
            end |= found["figures"]
        except StoppedError as error:
            end = {"state": "stopped", "reason": str(error)}
        except Exception as error:
            logging.getLogger(__name__).debug("trial %d failed", self.number, exc_info=True)
            # a scheduler would miss the figure that it judges by
            end = {"state": "failed", "reason": why(error)} | dict.fromkeys(self.shared.objectives, math.nan)
        end |= self._which() | {"seconds": time.monotonic() - began, "done": True}
        self.items.put({"run": self.run_url} | end)

    def _which(self) -> dict[str, Any]:
        """What population based training changes of a trial."""
        return {"values": self.values, "origin": self.origin or ""}

    def _described(self, run_url: str, recipe: TrainRecipe) -> dict[str, Any]:
        arguments = (run_url, recipe, self.shared.root, self.shared.objectives, self.shared.intervals)
        scaling = recipe.scaling
        if not scaling.use_gpu:
            return described(*arguments)
        # the workers have left; what one of them had is free for the evaluation
        found: dict[str, Any] = ray.get(
            ray.remote(described).options(num_gpus=1, num_cpus=scaling.cpus_per_worker).remote(*arguments)
        )
        return found


class Replay:
    """A trial that ended in an earlier run of the sweep, told once more."""

    def __init__(self, record: TrialRecord, objectives: Sequence[str]) -> None:
        kept = list(record.readings[:-1] if record.state == "finished" else record.readings)
        self.items = [result(item, record.run) | {REPLAYED: True} for item in kept]
        figures = record.figures if record.state == "finished" else dict.fromkeys(objectives, math.nan)
        self.items.append({REPLAYED: True, "state": record.state, **figures, "done": True})

    def next(self) -> dict[str, Any]:
        """See `Course`."""
        return self.items.pop(0)

    def leave(self) -> None:
        """See `Course`."""


class Trial(tune.Trainable):
    """What Ray Tune starts, once for several trials."""

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:  # noqa: ARG002
        """Take what all trials share; `config` is the first one's."""
        assert shared is not None
        self.shared = shared
        if shared.mlflow_uri is not None:
            track_at(shared.mlflow_uri)
        self.course: Course | Replay | None = None
        self.pointer: dict[str, Any] = {}

    def step(self) -> dict[str, Any]:
        """The next dev measurement, or the end."""
        if self.course is None:
            self.course = self._begun(self.config["trial"]["number"], self.config["trial"]["values"])
        return self.course.next()

    def _begun(self, number: int, values: Values) -> Course | Replay:
        logs.start_worker(trial=number)
        if ended := self.shared.ended.get(number):
            return Replay(ended, self.shared.objectives)
        if not self.pointer:
            return Course(self.shared, number, values, self.shared.origins.get(number))
        origin = begun_with(self.pointer, number, values)
        return Course(self.shared, number, values, origin or None, self.pointer["step"])

    def cleanup(self) -> None:
        """End what runs."""
        self.pointer = {}
        if self.course is not None:
            self.course.leave()
            self.course = None

    def reset_config(self, new_config: dict[str, Any]) -> bool:  # noqa: ARG002
        """Serve another trial."""
        self.cleanup()
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Say which run this is: its checkpoints lie there."""
        assert isinstance(self.course, Course)
        known = {
            "number": self.course.number,
            "values": self.course.values,
            "run": self.course.run_url,
            "origin": self.course.origin or "",
            "step": self.course.last_told,
        }
        (Path(checkpoint_dir) / POINTER).write_text(json.dumps(known))

    def load_checkpoint(self, checkpoint: str) -> None:
        """Go on from another trial's run, or from this one's."""
        self.pointer = json.loads((Path(checkpoint) / POINTER).read_text())


def begun_with(pointer: Mapping[str, Any], number: int, values: Values) -> str:
    """The origin of the run that a trial goes on with from a checkpoint: that of its own run, or another trial's run.

    Two trials may copy the same one with the same values, and one may do so twice: trial and step make these
    different runs.
    """
    if pointer["number"] == number and pointer["values"] == values:
        return str(pointer["origin"])
    return f"{pointer['run']}{MARK}{number}-{pointer['step']}"


def result(item: Reading, run_url: str) -> dict[str, Any]:
    """A measurement as Ray Tune takes it: the figures by name for the scheduler, the whole for the record."""
    return {**item.figures, "reading": item.model_dump(mode="json"), "run": run_url}


def named(recipe: TrainRecipe, sweep: str, number: int) -> TrainRecipe:
    """The recipe with the name that the trial has in MLflow."""
    tracking = recipe.tracking.model_copy(update={"run_name": f"{sweep} {number}"})
    return recipe.model_copy(update={"tracking": tracking})


def why(error: BaseException) -> str:
    """Why a trial failed, in one line."""
    text = " ".join(str(error).split())
    return text if isinstance(error, (OacirError, ValueError)) else f"{type(error).__name__}: {text}"[:600]
