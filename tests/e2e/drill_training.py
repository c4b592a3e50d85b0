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
own; none comes in its last sixth, which may be over before a fault takes effect. For each: steps that were done again,
seconds until a new one was shown. --without-recovery takes out what the drill is for, and it must fail.
--together brings the faults of several kinds (not node, drained, s3, disk, nan) in one training, in a drawn order.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from drill_train import PROGRESS, Training, complete_steps, history
from drilling import MOST_REDONE, ROOT, environment, write_result

OUTAGE_S = 60.0
HANG_S = 15.0
NO_END_S = 150.0
LATEST = 5 / 6
"""Share of the steps behind which no fault comes."""
IN_HAND = 2
"""Steps that any fault may cost: one that ended unseen, and one whose checkpoint was being written."""
DEV_EVERY = "5"
"""Epochs, of two steps each."""
MADE = "scene.json"
"""File of a folder in which the undisturbed run lies: how long it is."""
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
    most_lost: int | None = None
    """Steps that a fault may cost; None is `most_share` of the finished ones and `IN_HAND`."""
    most_share: float = MOST_REDONE
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
        return IN_HAND + self.most_share * fault.finished if self.most_lost is None else self.most_lost

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
        """A training that is to be disturbed, begun anew."""
        shutil.rmtree(self.folder / name, ignore_errors=True)
        return Course(self, str(self.folder / name), [*self.options, *more], planted, variables)


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


class Course:
    """One training with its faults, over as many commands as it takes."""

    def __init__(
        self, scene: Scene, out: str, options: list[str], planted: str, variables: dict[str, str]
    ) -> None:
        self.scene, self.out, self.options = scene, out, options
        self.planted = ["--without", planted] if planted else []
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
        self._run = Training(self.scene.folder, self.out, self.options, self.planted, **self.variables)

    def until(self, step: int) -> Fault | None:
        """Wait until the step is shown, and a random part of another one; None where training is over."""
        self.run.until(step)
        time.sleep(self.rng.random() * self.scene.step_s)
        self.run.poll()
        if self.run.process.poll() is not None:
            return None
        unseen = int((time.monotonic() - self.run.seen_at) / self.scene.step_s) + 1
        return Fault(step, self.run.step, min(self.scene.steps, self.run.step + unseen), 0, 0)

    def saved(self) -> int:
        """The step that a training would go on from now."""
        return max(complete_steps(self.out), default=0)

    def goes_on(self, fault: Fault, began: float, resumed_at: int, finished: int | None = None) -> None:
        """Wait for a step that is new, and note what the fault cost."""
        fault.finished = fault.finished if finished is None else finished
        known, first = max(fault.shown_step, resumed_at), len(self.run.said)
        limit = time.monotonic() + NO_END_S
        while self.run.process.poll() is None and self.run.step <= known:
            self.run.poll()
            if time.monotonic() > limit:
                self.end()
                raise RuntimeError(f"no new step within {NO_END_S:g} s")
            time.sleep(0.01)
        fault.seconds = round(time.monotonic() - began, 1)
        # a command that begins anew shows so
        shown = PROGRESS.search(self.run.said, first)
        fault.resumed_at = min(resumed_at, int(shown[1].replace(b",", b""))) if shown else resumed_at
        fault.lost = max(0, fault.finished - fault.resumed_at)

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
        most_lost, most_share: as in `Result`.
        first: step before which no fault comes.
    """

    act: Act
    options: tuple[str, ...] = ()
    planted: str = ""
    without: tuple[str, ...] = ()
    most_lost: int | None = None
    most_share: float = MOST_REDONE
    first: int = 1


NO_RETRY = ("--scaling.max_failures", "0")
KINDS: dict[str, Kind] = {
    "worker": Kind(kill_one, without=NO_RETRY),
    "workers": Kind(kill_all, without=NO_RETRY),
    "sent-away": Kind(send_away, NO_RETRY, planted="no_draining", most_lost=0),
    "hang": Kind(suspend, ("--scaling.hang_s", f"{HANG_S:g}"), without=("--scaling.hang_s", "null")),
    "driver": Kind(kill_driver, planted="no_resume"),
    "term": Kind(terminate_driver, planted="no_draining", most_lost=0),
    "damaged": Kind(damage, planted="no_sums", most_share=2 * MOST_REDONE, first=3),
    "half": Kind(halve, planted="no_count_of_parts", most_share=2 * MOST_REDONE, first=3),
}


def drill(scene: Scene, name: str, seed: int, moments: int, without: bool) -> Result:
    """All faults of a kind in one training."""
    kind = KINDS[name]
    rng = random.Random(seed)
    more = list(kind.without if without and kind.without else kind.options)
    planted = kind.planted if without else ""
    result = Result(name, scene.steps, seed, (planted or " ".join(kind.without)) if without else "")
    result.most_lost, result.most_share = kind.most_lost, kind.most_share
    planned = moments_of(scene, rng, moments, kind.first)
    course = scene.course(f"{name}-{without}", more, planted)
    return faulted(course, result, planned, kind.act, rng)


def together(scene: Scene, names: Sequence[str], seed: int, moments: int) -> list[Result]:
    """Faults of several kinds in one training, in an order that is drawn; results by kind."""
    rng = random.Random(seed)
    results = {name: Result(name, scene.steps, seed) for name in names}
    for name, result in results.items():
        result.most_lost, result.most_share = KINDS[name].most_lost, KINDS[name].most_share
        result.others = [other for other in names if other != name]
    order = [name for name in names for _ in range(moments)]
    rng.shuffle(order)
    planned = moments_of(scene, rng, len(order), max(KINDS[name].first for name in names))
    # so many, that several may come between two checkpoints
    options = [*KINDS["hang"].options, "--scaling.max_failures", str(len(order))]
    course, queue = scene.course(f"together-{seed}", options, ""), iter(order)
    whole = Result("", scene.steps, seed)

    def one(course: Course, fault: Fault, rng: random.Random) -> None:
        name = next(queue)
        results[name].faults.append(fault)
        KINDS[name].act(course, fault, rng)
        sys.stderr.write(f"{name}: {json.dumps(asdict(fault))}\n")

    faulted(course, whole, planned, one, rng)
    for result in results.values():
        result.same_losses, result.same_content = whole.same_losses, whole.same_content
        result.steps_once, result.failure = whole.steps_once, whole.failure
        result.load_average = whole.load_average
    return list(results.values())


def moments_of(scene: Scene, rng: random.Random, moments: int, first: int = 1) -> list[int]:
    """Steps at which faults come."""
    return sorted(rng.sample(range(first, round(LATEST * scene.steps)), moments))


def faulted(course: Course, result: Result, planned: list[int], act: Act, rng: random.Random) -> Result:
    """Bring one fault after the other, then compare; a failure is noted, and all is ended."""
    course.rng = rng
    course.start()
    try:
        for step in planned:
            fault = course.until(step)
            if fault is None:
                break
            result.faults.append(fault)
            act(course, fault, rng)
        course.judge(result)
    except (RuntimeError, TimeoutError, psutil.Error) as error:
        result.failure = str(error)[-400:].replace(str(course.scene.folder), "…")
        if course.run.process.poll() is None:
            course.end()
    if len(result.faults) < len(planned) and not result.failure:
        result.failure = f"{len(result.faults)} of {len(planned)} faults came before the end"
    result.load_average = round(os.getloadavg()[0], 1)
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
    parser.add_argument("--together", action="store_true", help="faults of all these kinds in one training")
    parser.add_argument("--scene", type=Path, help="where the undisturbed run lies, or shall; kept")
    parser.add_argument("--json", type=Path, help="where to write the results, behind those that lie there")
    given = parser.parse_args()
    if given.together and (given.without_recovery or set(given.kind or ()) - set(KINDS)):
        parser.error(f"--together is for {', '.join(KINDS)}, with their recovery")
    passed = True
    with ExitStack() as stack:
        folder = given.scene
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="oacir-drill-")))
        made = stack.enter_context(scene(folder, given.steps, given.identities))
        asked = given.kind or list(kinds)
        results: Iterator[Result] = (
            kinds[name](made, given.seed, given.moments, given.without_recovery) for name in asked
        )
        if given.together:
            results = iter(together(made, given.kind or list(KINDS), given.seed, given.moments))
        for result in results:
            passed &= result.passed
            sys.stdout.write(line(result) + "\n")
            sys.stdout.flush()
            if given.json:
                keep(given.json, f"{result.kind}, without" if given.without_recovery else result.kind, result)
    return 0 if passed else 1


def keep(place: Path, name: str, result: Result) -> None:
    """Write a result behind those of the kind that lie there, with its machine and command."""
    results = json.loads(place.read_text()) if place.exists() else {}
    write_result(place, result.told())
    results.setdefault(name, []).append(json.loads(place.read_text()))
    place.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    sys.exit(main())
