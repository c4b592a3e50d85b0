"""Drill: kill the driver of a training with SIGKILL at random moments, give the same command again, compare.

    python tests/e2e/drill_train.py --kills 10 --seed 0 --out benchmarks/results

One run is trained undisturbed, another of the same recipe is killed again and again and always resumed by the same
command. The drill passes if both have the same losses (bit for bit, no step lost or doubled) and content hash, and no
resume repeated more than a tenth of the steps finished before its kill. `--victim worker` kills a training worker in
place of the driver; the command then goes on by itself. `--without-recovery`: no run looks for checkpoints, or, where a
worker is killed, Ray Train starts no other one.
"""

from __future__ import annotations

import argparse
import os
import pty
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from drilling import MOST_REDONE, ROOT, environment, oacir, title, write_result

PROGRESS = re.compile(rb"train: ([\d,]+) of")
RUN = "drill"
LIMIT_S = 1800


@dataclass
class Kill:
    """One kill and what it cost."""

    planned_step: int
    finished: int
    """Steps finished when the signal went out: the last one shown, and those that may have ended unseen since."""
    resumed_at: int
    """Its last step that was not done again, as the next run showed it."""
    redone: int
    share: float


@dataclass
class Result:
    """What the drill found."""

    victim: str
    steps: int
    seed: int
    recovery: bool = True
    """Whether runs look for checkpoints and lost workers are replaced."""
    kills: list[Kill] = field(default_factory=list)
    same_losses: bool = False
    same_content: bool = False
    steps_once: bool = False
    largest_share: float = 0.0
    failure: str = ""
    """Why a run came to no good end."""

    @property
    def passed(self) -> bool:
        """Whether everything holds that the drill is for."""
        return (
            not self.failure
            and self.same_losses
            and self.same_content
            and self.steps_once
            and self.largest_share <= MOST_REDONE
        )


class Training:
    """The command under test, its progress read from the terminal it believes to have."""

    def __init__(
        self,
        root: Path | str,
        out: Path | str,
        options: Sequence[str],
        planted: Sequence[str] = (),
        **variables: str,
    ) -> None:
        self.terminal, theirs = pty.openpty()
        places = ["--dataset", "small", "--root", str(root), "--out", str(out)]
        command = oacir(["train", "--config", "tiny", "--name", RUN, *places, *options], planted)
        self.process = subprocess.Popen(
            command,
            stdout=theirs,
            stderr=theirs,
            cwd=variables.pop("PWD", ROOT),
            env=environment(**variables),
        )
        os.close(theirs)
        os.set_blocking(self.terminal, False)
        self.step, self.seen_at, self.said = 0, time.monotonic(), b""
        self.first: int | None = None
        """The first step that was shown."""

    def poll(self) -> None:
        """Read what was written meanwhile."""
        try:
            self.said += os.read(self.terminal, 1 << 16)
        except OSError:  # nothing new, or the other end is closed
            return
        steps = [int(s.replace(b",", b"")) for s in PROGRESS.findall(self.said)]
        if steps and self.first is None:
            self.first = steps[0]
        if steps and steps[-1] > self.step:
            self.step, self.seen_at = steps[-1], time.monotonic()

    def until(self, step: int | None) -> None:
        """Wait for a step to be shown, or for the end."""
        deadline = time.monotonic() + LIMIT_S
        while self.process.poll() is None and (step is None or self.step < step):
            if time.monotonic() > deadline:
                self.kill()
                raise TimeoutError(
                    f"no end in {LIMIT_S} s; last said: {self.said[-2000:].decode(errors='replace')}"
                )
            self.poll()
            time.sleep(0.01)
        self.poll()

    def finish(self) -> None:
        """Wait for the end, which must be a good one."""
        self.until(None)
        if self.process.returncode:
            raise RuntimeError(
                f"exit code {self.process.returncode}: {self.said[-3000:].decode(errors='replace')}"
            )
        os.close(self.terminal)

    def kill(self) -> None:
        """SIGKILL to the driver alone; what it started has to notice by itself."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        # node agents outlive a killed session for a minute or two, and write nothing of ours
        family = [process for process in family if not title(process).endswith("Agent")]
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
        os.close(self.terminal)
        psutil.wait_procs(family, timeout=60)

    def workers(self) -> list[psutil.Process]:
        """The training workers of a local session."""
        return training_workers(psutil.Process(self.process.pid))

    def kill_worker(self, rank: int) -> None:
        """SIGKILL to one training worker."""
        workers = self.workers()
        workers[rank % len(workers)].kill()


def training_workers(root: psutil.Process) -> list[psutil.Process]:
    """Those among what a process started, by process id."""
    found = []
    for process in root.children(recursive=True):
        with suppress(psutil.Error):  # gone meanwhile
            # the title that Ray gives a worker is its command line where names are cut
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda p: p.pid)


def complete_steps(out: Path | str) -> list[int]:
    """Steps with a complete checkpoint."""
    from training.checkpoints import complete_steps as find

    return find(str(out))


def history(out: Path | str) -> dict[str, list[float]]:
    """Every column of the history that does not measure time."""
    from infra.base.versions import open_version
    from training.trainer import UNTIMED

    found: dict[str, list[float]] = open_version(str(out)).table("history").select(UNTIMED).to_pydict()
    return found


def drill(
    kills: int, seed: int, steps: int, victim: str, identities: int, folder: Path, recovery: bool = True
) -> Result:
    """Run the drill in an empty folder."""
    from small_benchmark import write_benchmark

    from infra.base.versions import open_version

    write_benchmark(folder, identities=identities)
    options = ["--training.steps", str(steps), "--training.epochs", str(steps)]
    embedded = ["embed", "--config", "tiny", "--dataset", "small", "--root", str(folder)]
    subprocess.run(
        [sys.executable, "-m", "infra.cli", *embedded],
        check=True, cwd=ROOT, env=environment(), capture_output=True,
    )  # fmt: skip
    Training(folder, folder / "whole", options).finish()
    expected = history(folder / "whole")
    seconds = open_version(str(folder / "whole")).table("history")["seconds"].to_pylist()
    step_s = sorted(seconds)[len(seconds) // 2]

    generator = random.Random(seed)
    result = Result(victim, steps, seed, recovery)
    planned = sorted(generator.sample(range(1, steps), kills))
    out = folder / "killed"
    planted = [] if recovery or victim == "worker" else ["--without", "no_resume"]
    if victim == "worker" and not recovery:
        options = [*options, "--scaling.max_failures", "0"]
    run = Training(folder, out, options, planted)
    for step in planned:
        run.until(step)
        time.sleep(generator.random() * step_s)  # the moment inside a step is random too
        run.poll()
        if run.process.poll() is not None:
            break
        unseen = int((time.monotonic() - run.seen_at) / step_s) + 1
        finished = min(steps, run.step + unseen)
        if victim == "driver":
            run.kill()
        else:
            run.kill_worker(generator.randrange(2))
        resumed_at = max(complete_steps(out), default=0)
        if victim == "driver":
            run = Training(folder, out, options, planted)
            run.until(1)
            resumed_at = min(resumed_at, run.first or 0)  # the line may begin with the step it went on from
        redone = max(0, finished - resumed_at)
        result.kills.append(Kill(step, finished, resumed_at, redone, redone / finished))
    result.largest_share = max(kill.share for kill in result.kills)
    try:
        run.finish()
    except RuntimeError as error:
        result.failure = str(error)[-300:]
        return result
    found = history(out)
    result.same_losses = found == expected
    result.steps_once = found["step"] == list(range(1, steps + 1))
    hashes = {open_version(str(folder / name)).manifest.content_hash for name in ("whole", "killed")}
    result.same_content = len(hashes) == 1
    return result


def markdown(result: Result) -> str:
    """The result as a page."""
    yes = {True: "yes", False: "NO"}
    rows = [
        f"| {number} | {kill.planned_step} | {kill.finished} | {kill.resumed_at} | {kill.redone} |"
        f" {100 * kill.share:.1f} % |"
        for number, kill in enumerate(result.kills, 1)
    ]
    return "\n".join(
        [
            f"# Kill drill of training: {'passed' if result.passed else 'FAILED'}",
            "",
            f"SIGKILL of the {result.victim} at {len(result.kills)} random moments (seed {result.seed}) of one run of"
            f" {result.steps} steps, two workers, ZeRO-2; each time the same command goes on.",
            "",
            f"- every step in the history exactly once: {yes[result.steps_once]}",
            f"- losses and all other columns equal to the undisturbed run, bit for bit: {yes[result.same_losses]}",
            f"- content hash (weights and history) equal: {yes[result.same_content]}",
            *([f"- a run failed: {result.failure}"] if result.failure else []),
            f"- most work repeated by a resume: {100 * result.largest_share:.1f} % of the finished steps"
            f" (limit {100 * MOST_REDONE:.0f} %)",
            "",
            "| kill | when this step was shown | finished (upper bound) | resumed after | repeated at most | share |",
            "|---|---|---|---|---|---|",
            *rows,
            "",
        ]
    )


def main() -> int:
    """Run from the command line; exit code 0 only if the drill passed."""
    parser = argparse.ArgumentParser(description="kill a training at random moments and compare")
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--identities", type=int, default=60)
    parser.add_argument("--victim", choices=("driver", "worker"), default="driver")
    parser.add_argument("--without-recovery", action="store_true", help="the drill must fail then")
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    given = parser.parse_args()
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    with tempfile.TemporaryDirectory(prefix="oacir-drill-") as name:
        sizes = (given.kills, given.seed, given.steps, given.victim, given.identities)
        result = drill(*sizes, Path(name), recovery=not given.without_recovery)
    given.out.mkdir(parents=True, exist_ok=True)
    stem = "drill_train" if given.victim == "driver" else "drill_train_worker"
    write_result(given.out / f"{stem}.json", asdict(result) | {"passed": result.passed})
    (given.out / f"{stem}.md").write_text(markdown(result))
    sys.stdout.write(markdown(result))
    return 0 if result.passed else 1


if __name__ == "__main__":
    sys.exit(main())
