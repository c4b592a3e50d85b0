"""Drills of training: one fault at each of some seeded random moments; the losses must be those of an undisturbed run.

python tests/e2e/drill_training.py [--kind worker --kind hang …] --moments 10 --seed 0 --json result.json

    worker     SIGKILL of one training worker            the command goes on by itself
    workers    SIGKILL of all of them                    the same
    sent-away  SIGTERM to one of them                    the same, and nothing is lost
    hang       SIGSTOP of one of them                    the same, behind `scaling.hang_s`
    node       loss of the Ray node of a worker          the same, on another node
    drained    notice that such a node goes              the same, and nothing is lost
    driver     SIGKILL of the driver                     the same command goes on
    term       SIGTERM to the driver                     exit code 143, nothing is lost, the same command goes on
    damaged    the newest checkpoint has a wrong byte    the one before is gone on from
    half       of the newest one a part is missing       the same
    s3         S3 goes away for up to a minute           the command goes on
    disk       the disk is full                          exit code 1 and one line, the same command goes on
    nan        a loss is no number                       exit code 1, the batch is named, the same command goes on

damaged and half come with a SIGKILL of the driver. Every fault is one of a single run, but for nan, where each has its
own. For each: steps that were done again, seconds until a new one was shown. --without-recovery takes out what the
drill is for, and it must fail.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from drill_train import Training, complete_steps, history
from drilling import MOST_REDONE, ROOT, environment, write_result

OUTAGE_S = 60.0
HANG_S = 15.0
NO_END_S = 300.0
PAGE_BYTES = 4096
GOES_ON = re.compile(rb"training goes on behind step (\d+)")
STOPPED = re.compile(r"stopped by SIGTERM: all ([\d,]+) steps are saved; the same command goes on")


@dataclass
class Fault:
    """One fault and what it cost."""

    planned_step: int
    shown_step: int
    """The last one shown when it came."""
    finished: int
    """Steps finished then, those that may have ended unseen included."""
    resumed_at: int
    lost: int
    """Steps that had to be done again, at most."""
    seconds: float = 0.0
    """Until a new step was shown."""
    said: str = ""


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
    most_lost: int | None = None
    """Steps that a fault may cost; None is a tenth of the finished ones."""
    failure: str = ""

    @property
    def passed(self) -> bool:
        """Whether everything holds that the drill is for."""
        dear = [f for f in self.faults if f.lost > self.allowed(f)]
        return not self.failure and not dear and self.same_losses and self.same_content and self.steps_once

    def allowed(self, fault: Fault) -> float:
        """Steps that it may have cost."""
        return MOST_REDONE * fault.finished if self.most_lost is None else self.most_lost

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

    def course(self, name: str, more: list[str], planted: str, **variables: str) -> Course:
        """A training that is to be disturbed."""
        return Course(self, str(self.folder / name), [*self.options, *more], planted, variables)


@contextmanager
def scene(folder: Path, steps: int, identities: int) -> Iterator[Scene]:
    """Make the benchmark, its features and the undisturbed run."""
    from small_benchmark import write_benchmark

    from infra.base.versions import open_version

    write_benchmark(folder, identities=identities)
    embedded = ["embed", "--config", "tiny", "--dataset", "small", "--root", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "infra.cli", *embedded],
        check=True, cwd=ROOT, env=environment(), capture_output=True,
    )  # fmt: skip
    options = ["--training.steps", str(steps), "--training.epochs", str(steps)]
    Training(folder, folder / "whole", options).finish()
    whole = open_version(str(folder / "whole"))
    seconds = sorted(whole.table("history")["seconds"].to_pylist())
    expected = history(folder / "whole")
    yield Scene(folder, steps, options, expected, whole.manifest.content_hash, seconds[len(seconds) // 2])


class Course:
    """One training with its faults, over as many commands as it takes."""

    def __init__(
        self, scene: Scene, out: str, options: list[str], planted: str, variables: dict[str, str]
    ) -> None:
        self.scene, self.out, self.options = scene, out, options
        self.planted = ["--without", planted] if planted else []
        self.variables = variables
        self._run: Training | None = None

    @property
    def run(self) -> Training:
        """The command as it runs."""
        assert self._run is not None, "start comes first"
        return self._run

    def start(self) -> None:
        """Give the command."""
        self._run = Training(self.scene.folder, self.out, self.options, self.planted, **self.variables)

    def until(self, step: int) -> Fault | None:
        """Wait until the step is shown, and a random part of another one; None where training is over."""
        self.run.until(step)
        if self.run.process.poll() is not None:
            return None
        unseen = int((time.monotonic() - self.run.seen_at) / self.scene.step_s) + 1
        return Fault(step, self.run.step, min(self.scene.steps, self.run.step + unseen), 0, 0)

    def saved(self) -> int:
        """The step that a training would go on from now."""
        return max(complete_steps(self.out), default=0)

    def goes_on(self, fault: Fault, began: float, resumed_at: int, finished: int | None = None) -> None:
        """Wait for a step that is new, and note what the fault cost."""
        fault.resumed_at, fault.finished = resumed_at, finished or fault.finished
        fault.lost = max(0, fault.finished - resumed_at)
        limit = time.monotonic() + NO_END_S
        while self.run.process.poll() is None and self.newest() <= fault.shown_step:
            self.run.poll()
            if time.monotonic() > limit:
                self.end()
                raise RuntimeError(f"no new step within {NO_END_S:g} s")
            time.sleep(0.01)
        fault.seconds = round(time.monotonic() - began, 1)

    def behind(self, heard: int) -> int:
        """Wait until the command says behind which step it goes on by itself, which it had not said yet."""
        limit = time.monotonic() + NO_END_S
        while not (found := GOES_ON.findall(self.run.said[heard:])):
            self.run.poll()
            if self.run.process.poll() is not None or time.monotonic() > limit:
                self.run.poll()
                raise RuntimeError(
                    f"training does not go on by itself: {self.run.said[-400:].decode(errors='replace')}"
                )
            time.sleep(0.01)
        return int(found[0])

    def newest(self) -> int:
        """The last step shown, also by another command than the fault befell."""
        return self.run.step

    def stop_line(self, code: int) -> str:
        """What a command said that has stopped by itself, which must be a line of its own."""
        self.run.until(None)
        text = self.run.said.decode(errors="replace")
        lines = [line.strip() for line in text.splitlines() if "oacir: error: " in line]
        if self.run.process.returncode != code or len(lines) != 1 or "Traceback" in text:
            raise RuntimeError(f"exit code {self.run.process.returncode}, {len(lines)} lines: {text[-600:]}")
        with suppress(OSError):
            os.close(self.run.terminal)
        return lines[0].partition("oacir: error: ")[2]

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


def kill_one(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, lambda: course.run.kill_worker(rng.randrange(2)))


def kill_all(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, lambda: [worker.kill() for worker in course.run.workers()])


def suspend(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, lambda: rng.choice(course.run.workers()).suspend())


def send_away(course: Course, fault: Fault, rng: random.Random) -> None:
    by_itself(course, fault, lambda: rng.choice(course.run.workers()).terminate(), saved=True)


def by_itself(course: Course, fault: Fault, harm: Callable[[], object], *, saved: bool = False) -> None:
    """Do some harm that the command has to bear; `saved` says that the workers save the step they leave behind, so
    that every step shown has to be there."""
    began, heard = time.monotonic(), len(course.run.said)
    harm()
    resumed = course.behind(heard)
    if saved:
        fault.shown_step = course.run.step
    course.goes_on(fault, began, resumed, finished=course.run.step if saved else None)


def kill_driver(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    course.run.kill()
    resumed = course.saved()
    course.start()
    course.goes_on(fault, began, resumed)


def terminate_driver(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    course.run.process.send_signal(signal.SIGTERM)
    fault.said = course.stop_line(143)
    match = STOPPED.search(fault.said)
    if not match:
        raise RuntimeError(f"said {fault.said}")
    left = int(match[1].replace(",", ""))
    if left != course.saved():
        raise RuntimeError(f"said {left} steps, saved are {course.saved()}")
    shown = course.run.step
    course.start()
    course.goes_on(fault, began, left, finished=shown)


def damage(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    course.run.kill()
    steps = complete_steps(course.out)
    place = (
        Path(course.out)
        / "checkpoints"
        / f"step-{steps[-1]:08d}"
        / f"rank-{rng.randrange(2)}-of-2.safetensors"
    )
    data = bytearray(place.read_bytes())
    data[rng.randrange(len(data) // 2, len(data))] ^= 1 + rng.randrange(255)
    place.write_bytes(data)
    course.start()
    course.goes_on(fault, began, steps[-2] if len(steps) > 1 else 0)


def halve(course: Course, fault: Fault, rng: random.Random) -> None:
    began = time.monotonic()
    course.run.kill()
    steps = complete_steps(course.out)
    (
        Path(course.out)
        / "checkpoints"
        / f"step-{steps[-1]:08d}"
        / f"rank-{rng.randrange(2)}-of-2.safetensors"
    ).unlink()
    course.start()
    course.goes_on(fault, began, course.saved())


@dataclass(frozen=True)
class Kind:
    """A drill.

    Attributes:
        act: does the harm and waits until training goes on.
        options: of the command.
        planted: what of `planted.py` takes the recovery out; empty where an option does.
        without: options that do.
        most_lost: steps that a fault may cost; None for a tenth.
    """

    act: Act
    options: tuple[str, ...] = ()
    planted: str = ""
    without: tuple[str, ...] = ()
    most_lost: int | None = None


NO_RETRY = ("--scaling.max_failures", "0")
KINDS: dict[str, Kind] = {
    "worker": Kind(kill_one, without=NO_RETRY),
    "workers": Kind(kill_all, without=NO_RETRY),
    "sent-away": Kind(send_away, NO_RETRY, planted="no_draining", most_lost=0),
    "hang": Kind(suspend, ("--scaling.hang_s", f"{HANG_S:g}"), without=("--scaling.hang_s", "null")),
    "driver": Kind(kill_driver, planted="no_resume"),
    "term": Kind(terminate_driver, planted="no_draining", most_lost=0),
    "damaged": Kind(damage, planted="no_sums", most_lost=12),
    "half": Kind(halve, planted="no_count_of_parts", most_lost=12),
}


def drill(scene: Scene, name: str, seed: int, moments: int, without: bool) -> Result:
    """All faults of a kind in one training."""
    kind = KINDS[name]
    rng = random.Random(seed)
    more = list(kind.without if without and kind.without else kind.options)
    planted = kind.planted if without else ""
    result = Result(name, scene.steps, seed, (planted or " ".join(kind.without)) if without else "")
    result.most_lost = kind.most_lost
    first = 3 if kind.act in (damage, halve) else 1
    planned = sorted(rng.sample(range(first, scene.steps - 2), moments))
    course = scene.course(f"{name}-{without}", more, planted)
    return faulted(course, result, planned, kind.act, rng)


def faulted(course: Course, result: Result, planned: list[int], act: Act, rng: random.Random) -> Result:
    """Bring one fault after the other, then compare; a failure is noted, and all is ended."""
    course.start()
    try:
        for step in planned:
            time.sleep(rng.random() * course.scene.step_s)  # the moment inside a step is random too
            fault = course.until(step)
            if fault is None:
                break
            result.faults.append(fault)
            act(course, fault, rng)
        course.judge(result)
    except (RuntimeError, TimeoutError, psutil.Error) as error:
        result.failure = str(error)[-400:]
        if course.run.process.poll() is None:
            course.end()
    if len(result.faults) < len(planned) and not result.failure:
        result.failure = f"{len(result.faults)} of {len(planned)} faults came before the end"
    return result


def everywhere() -> dict[str, Callable[[Scene, int, int, bool], Result]]:
    """Every kind by name."""
    from training_elsewhere import disk, drained, nan, node, s3

    def by_act(name: str) -> Callable[[Scene, int, int, bool], Result]:
        return lambda *given: drill(given[0], name, *given[1:])

    return {name: by_act(name) for name in KINDS} | {
        "node": node, "drained": drained, "s3": s3, "disk": disk, "nan": nan,
    }  # fmt: skip


def line(result: Result) -> str:
    """A row of a table."""
    told = result.told()
    verdict = "passed" if result.passed else "FAILED"
    return (
        f"| {result.kind} | {told['moments']} | {verdict} | at most {told['lost_at_most']} steps lost"
        f" | {told['seconds_mean']:g} s, at most {told['seconds_at_most']:g} s | {result.failure[:200]} |"
    )


def main() -> int:
    """Run from the command line; exit code 0 only if all passed."""
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    kinds = everywhere()
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kind", action="append", choices=kinds, help="which drills, default all")
    parser.add_argument("--moments", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--identities", type=int, default=24)
    parser.add_argument("--without-recovery", action="store_true", help="the drills must fail then")
    parser.add_argument("--json", type=Path, help="where to write the results, beside those of other kinds")
    given = parser.parse_args()
    passed = True
    with (
        tempfile.TemporaryDirectory(prefix="oacir-drill-") as folder,
        ExitStack() as stack,
    ):
        made = stack.enter_context(scene(Path(folder), given.steps, given.identities))
        for name in given.kind or kinds:
            result = kinds[name](made, given.seed, given.moments, given.without_recovery)
            passed &= result.passed
            sys.stdout.write(line(result) + "\n")
            sys.stdout.flush()
            if given.json:
                keep(given.json, name, result)
    return 0 if passed else 1


def keep(place: Path, name: str, result: Result) -> None:
    """Write a result beside those of other kinds, with its machine and command."""
    results = json.loads(place.read_text()) if place.exists() else {}
    write_result(place, result.told())
    place.write_text(json.dumps(results | {name: json.loads(place.read_text())}, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
