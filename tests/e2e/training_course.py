"""A training under drill: what it is compared with, how it is watched, and what a fault cost it.

Its workers count their steps in a file (`planted.py --count`), so that what a fault cost is read off and not estimated:
the terminal shows a step up to a second after it was done.
"""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import psutil
from drill_train import Training, complete_steps, history
from drilling import ROOT, environment

NO_END_S = 150.0
LATEST = 5 / 6
"""Share of the steps behind which no fault comes."""
APART = 16
"""Steps between two faults, at least, where there is room for it."""
DISTANCE = 0.05
"""Steps between two checkpoints as a share of the finished ones, as docs/reliability.md states it."""
IN_HAND = 2
"""Steps that a fault may cost besides: while a checkpoint is written, training goes on."""
DEV_EVERY = "5"
"""Epochs, of two steps each."""
WORKERS = 2
MADE = "scene.json"
"""File of a folder in which the undisturbed run lies: how long it is."""
GOES_ON = re.compile(rb"training goes on behind step (\d+)")


@dataclass
class Fault:
    """One fault and what it cost."""

    planned_step: int
    finished: int = 0
    """Steps that were finished when the workers ended."""
    resumed_at: int = 0
    """The step behind which training went on."""
    lost: int = 0
    """Steps that were done again."""
    seconds: float = 0.0
    """Until there was a step more than ever before."""
    said: str = ""
    """What the command or the drill has to say of it."""


@dataclass
class Result:
    """All faults of a kind."""

    kind: str
    steps: int
    seed: int
    taken_out: str = ""
    """What recovery was taken out."""
    faults: list[Fault] = field(default_factory=list)
    same_losses: bool = False
    same_content: bool = False
    steps_once: bool = False
    distances: int = 1
    """Distances between checkpoints that a fault may cost; 0 allows no step at all."""
    failure: str = ""
    load_average: float = 0.0
    """Of the machine, at the end."""
    others: list[str] = field(default_factory=list)
    """Kinds whose faults befell the same training."""

    @property
    def passed(self) -> bool:
        """Whether everything holds that the drill is for."""
        dear = [f for f in self.faults if f.lost > self.allowed(f)]
        return not self.failure and not dear and self.same_losses and self.same_content and self.steps_once

    def allowed(self, fault: Fault) -> float:
        """Steps that it may have cost."""
        return self.distances * max(1, DISTANCE * fault.finished) + IN_HAND * (self.distances > 0)

    def told(self) -> dict[str, Any]:
        """What is written down."""
        seconds = [f.seconds for f in self.faults]
        return asdict(self) | {
            "moments": len(self.faults),
            "passed": self.passed,
            "lost_at_most": max((f.lost for f in self.faults), default=0),
            "seconds_at_most": round(max(seconds, default=0.0), 1),
            "seconds_mean": round(sum(seconds) / max(1, len(seconds)), 1),
        }


@dataclass
class Scene:
    """A benchmark with features, and what an undisturbed training makes of it."""

    folder: Path
    steps: int
    options: list[str]
    expected: dict[str, list[float]]
    content_hash: str
    step_s: float

    def course(self, name: str, more: Sequence[str], planted: str, **variables: str) -> Course:
        """A training that is to be disturbed, begun anew."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Course(self, str(self.folder / name), [*self.options, *more], planted, variables)

    def moments(self, rng: random.Random, count: int, first: int = 1) -> list[int]:
        """Steps at which faults come: drawn, and so far apart that each finds a training that has gone on."""
        span = round(LATEST * self.steps) - first
        gap = min(APART, span // (2 * count))
        drawn = sorted(rng.sample(range(span - gap * (count - 1)), count))
        return [first + step + gap * i for i, step in enumerate(drawn)]


@contextmanager
def scene(folder: Path, steps: int, identities: int) -> Iterator[Scene]:
    """Make the benchmark, its features and the undisturbed run, where they do not lie in the folder yet."""
    from small_benchmark import write_benchmark

    from infra.base.versions import open_version

    sizes, made = {"steps": steps, "identities": identities}, folder / MADE
    options = ["--training.steps", str(steps), "--training.epochs", str(steps)]
    options += ["--training.dev_every_epochs", DEV_EVERY]
    if not made.exists():
        write_benchmark(folder, identities=identities)
        embedded = ["embed", "--config", "tiny", "--dataset", "small", "--root", str(folder)]
        subprocess.run(
            [sys.executable, "-m", "infra.cli", *embedded],
            check=True, cwd=ROOT, env=environment(), capture_output=True,
        )  # fmt: skip
        Training(folder, folder / "whole", options).finish()
        made.write_text(json.dumps(sizes))
    elif json.loads(made.read_text()) != sizes:
        raise RuntimeError(f"{made}: other sizes than {sizes}; give another --scene")
    whole = open_version(str(folder / "whole"))
    seconds = sorted(whole.table("history")["seconds"].to_pylist())
    expected = history(folder / "whole")
    yield Scene(folder, steps, options, expected, whole.manifest.content_hash, seconds[len(seconds) // 2])


class Counted(NamedTuple):
    """What the workers have counted."""

    process: int = 0
    """Id of the one that counts, which is another one after each start."""
    first: int = 0
    """The first step that it did."""
    last: int = 0


class Course:
    """One training with its faults, over as many commands as it takes."""

    def __init__(
        self, scene: Scene, out: str, options: list[str], planted: str, variables: dict[str, str]
    ) -> None:
        self.scene, self.out, self.options = scene, out, options
        self.planted = ["--without", planted] if planted else []
        self.counter = scene.folder / "counted"
        self.counter.unlink(missing_ok=True)
        self.variables = variables
        self.rng = random.Random(0)
        self._run: Training | None = None

    @property
    def run(self) -> Training:
        """The command as it runs."""
        assert self._run is not None, "start comes first"
        return self._run

    def start(self) -> None:
        """Give the command."""
        planted = [*self.planted, "--count", str(self.counter)]
        self._run = Training(self.scene.folder, self.out, self.options, planted, **self.variables)

    def counted(self) -> Counted:
        """The steps done so far."""
        try:
            return Counted(*map(int, self.counter.read_text().split()))
        except FileNotFoundError:
            return Counted()

    def until(self, step: int) -> bool:
        """Wait until a step is done, and a random part of another one; whether the command still runs then."""
        self.wait(lambda: self.counted().last >= step, f"step {step}")
        time.sleep(self.rng.random() * self.scene.step_s)
        return self.run.process.poll() is None

    def wait(self, reached: Callable[[], bool], what: str, limit_s: float = NO_END_S) -> bool:
        """Wait for something, or for the end; whether it came.

        Raises:
            RuntimeError: neither did.
        """
        limit = time.monotonic() + limit_s
        while not reached():
            if self.run.process.poll() is not None:
                self.run.poll()
                return reached()
            if time.monotonic() > limit:
                raise RuntimeError(f"not within {limit_s:g} s: {what}")
            self.run.poll()
            time.sleep(0.005)
        self.run.poll()
        return True

    def workers(self) -> list[psutil.Process]:
        """All training workers of a session of its own."""
        self.wait(lambda: len(self.run.workers()) == WORKERS, f"{WORKERS} workers")
        return self.run.workers()

    def saved(self) -> int:
        """The step that a training would go on from now."""
        return max(complete_steps(self.out), default=0)

    def behind(self, heard: int) -> int:
        """Wait until the command says behind which step it goes on by itself, which it had not said yet."""
        if not self.wait(lambda: GOES_ON.search(self.run.said, heard) is not None, "workers that start anew"):
            said = self.run.said[-400:].decode(errors="replace")
            raise RuntimeError(f"training does not go on by itself: {said}")
        return int(GOES_ON.findall(self.run.said[heard:])[0])

    def goes_on(self, fault: Fault, began: float, old: Counted, resumed_at: int) -> None:
        """Wait for a step that is new, and note what the fault cost.

        Args:
            fault: to be completed; `finished` is known.
            began: when it came, by `time.monotonic`.
            old: what the workers had counted that are gone.
            resumed_at: the step behind which training has to go on.
        """
        self.wait(lambda: self.counted().process != old.process, "a step of new workers")
        new = self.counted()
        self.wait(lambda: self.counted().last > fault.finished, f"step {fault.finished + 1}")
        fault.seconds = round(time.monotonic() - began, 1)
        fault.resumed_at = new.first - 1 if new.process != old.process else 0
        fault.lost = max(0, fault.finished - fault.resumed_at)
        if fault.resumed_at != resumed_at:
            raise RuntimeError(f"went on behind step {fault.resumed_at}, expected was {resumed_at}")

    def stop_line(self, code: int) -> str:
        """What a command said that has stopped by itself, which must be a line of its own."""
        self.run.until(None)
        text = self.run.said.decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if "oacir: error: " in line]
        if self.run.process.returncode != code or len(lines) != 1 or "Traceback" in text:
            raise RuntimeError(f"exit code {self.run.process.returncode}, {len(lines)} lines: {text[-600:]}")
        with suppress(OSError):
            os.close(self.run.terminal)
        return lines[0].partition("oacir: error: ")[2].replace(str(self.scene.folder), "…")

    def end(self) -> None:
        """Kill what there is of it."""
        family = psutil.Process(self.run.process.pid).children(recursive=True)
        self.run.process.kill()
        for process in family:
            with suppress(psutil.Error):
                process.kill()

    def judge(self, result: Result) -> None:
        """Let it come to its end, and compare."""
        from infra.base.versions import open_version

        self.run.finish()
        found = history(self.out)
        result.same_losses = found == self.scene.expected
        result.steps_once = found["step"] == list(range(1, self.scene.steps + 1))
        result.same_content = open_version(self.out).manifest.content_hash == self.scene.content_hash


Act = Callable[[Course, Fault, random.Random], None]


def faulted(
    course: Course,
    result: Result,
    planned: Sequence[int],
    act: Act,
    rng: random.Random,
    *,
    awaited: bool = True,
) -> Result:
    """Bring one fault after the other, then compare; a failure is noted, and all is ended.

    Args:
        course: not started yet.
        result: to be completed.
        planned: steps behind which the faults come.
        act: does the harm and waits until training goes on.
        rng: for what else is drawn.
        awaited: whether a fault comes behind its step; else it lies there from the beginning.
    """
    course.rng = rng
    course.start()
    try:
        for step in planned:
            if awaited and not course.until(step):
                break
            result.faults.append(Fault(step))
            act(course, result.faults[-1], rng)
            sys.stderr.write(f"{result.kind}: {json.dumps(asdict(result.faults[-1]))}\n")
        course.judge(result)
    except (RuntimeError, TimeoutError, psutil.Error) as error:
        result.failure = str(error)[-400:].replace(str(course.scene.folder), "…")
        if course.run.process.poll() is None:
            course.end()
    if len(result.faults) < len(planned) and not result.failure:
        result.failure = f"{len(result.faults)} of {len(planned)} faults came before the end"
    result.load_average = round(os.getloadavg()[0], 1)
    return result
