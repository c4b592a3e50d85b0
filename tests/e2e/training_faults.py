"""Drills of training whose fault lies in its processes or its checkpoints."""

from __future__ import annotations

import random
import re
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from drill_train import complete_steps
from training_course import WORKERS, Act, Course, Fault

HANG_S = 15.0
NO_RETRY = ("--scaling.max_failures", "0")
STOPPED = re.compile(r"stopped by SIGTERM: all ([\d,]+) steps are saved; the same command goes on")


def kill_one(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, course.workers()[rng.randrange(WORKERS)].kill)


def kill_all(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, lambda: [worker.kill() for worker in course.workers()])


def suspend(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, course.workers()[rng.randrange(WORKERS)].suspend)


def send_away(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, course.workers()[rng.randrange(WORKERS)].terminate)


def by_itself(
    course: Course, fault: Fault, harm: Callable[[], object], then: Callable[[], object] = lambda: None
) -> None:
    """Do some harm that the command has to bear, and what is to be done when it says that it goes on."""
    began, heard = time.monotonic(), len(course.run.said)
    harm()
    resumed = course.behind(heard)
    old = course.counted()  # new workers are not there yet
    fault.finished = old.last
    then()
    course.goes_on(fault, began, old, resumed)


def kill_driver(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    _killed(course, fault)
    _again(course, fault, began, course.saved())


def terminate_driver(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    course.run.process.send_signal(signal.SIGTERM)
    fault.said = course.stop_line(143)
    match = STOPPED.search(fault.said)
    if not match:
        raise RuntimeError(f"said {fault.said}")
    left, fault.finished = int(match[1].replace(",", "")), course.counted().last
    if left != course.saved():
        raise RuntimeError(f"said {left} steps, saved are {course.saved()}")
    _again(course, fault, began, left)


def damage(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    _killed(course, fault)
    steps = complete_steps(course.out)
    place = _part(course, steps[-1], rng)
    data = bytearray(place.read_bytes())
    data[rng.randrange(len(data) // 2, len(data))] ^= 1 + rng.randrange(255)
    place.write_bytes(data)
    _again(course, fault, began, steps[-2])


def halve(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    _killed(course, fault)
    steps = complete_steps(course.out)
    _part(course, steps[-1], rng).unlink()
    _again(course, fault, began, steps[-2])


def _killed(course: Course, fault: Fault) -> None:
    course.run.kill()
    fault.finished = course.counted().last


def _again(course: Course, fault: Fault, began: float, resumed_at: int) -> None:
    old = course.counted()
    course.start()
    course.goes_on(fault, began, old, resumed_at)


def _part(course: Course, step: int, rng: random.Random) -> Path:
    name = f"rank-{rng.randrange(WORKERS)}-of-{WORKERS}.safetensors"
    return Path(course.out) / "checkpoints" / f"step-{step:08d}" / name


@dataclass(frozen=True)
class Kind:
    """A drill.

    Attributes:
        act: does the harm and waits until training goes on.
        options: of the command.
        planted: what of `planted.py` takes the recovery out; empty where an option does.
        without: options that do.
        distances: as in `Result`.
        first: step before which no fault comes.
    """

    act: Act
    options: tuple[str, ...] = ()
    planted: str = ""
    without: tuple[str, ...] = ()
    distances: int = 1
    first: int = 1


KINDS: dict[str, Kind] = {
    "worker": Kind(kill_one, without=NO_RETRY),
    "workers": Kind(kill_all, without=NO_RETRY),
    "sent-away": Kind(send_away, NO_RETRY, planted="no_draining", distances=0),
    "hang": Kind(suspend, ("--scaling.hang_s", f"{HANG_S:g}"), without=("--scaling.hang_s", "null")),
    "driver": Kind(kill_driver, planted="no_resume"),
    "term": Kind(terminate_driver, planted="no_draining", distances=0),
    "damaged": Kind(damage, planted="no_sums", distances=2, first=3),
    "half": Kind(halve, planted="no_count_of_parts", distances=2, first=3),
}
