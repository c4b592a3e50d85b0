"""What the drills share: a command under test, a collection, what is finished and what was done twice, and the result.

A drill runs a command undisturbed, then again and again with one fault at a moment drawn from a seed, and compares: the
same content hash and accounts, every byte as the manifest states it, and at most a tenth of the finished work done
twice. Work is counted in files that were complete when the fault came: a file that lies there with another inode
afterwards was made twice. A finished part of a stage (its record in `_accounts`) may never be.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
MOST_REDONE = 0.10
IN_HAND = 20
"""Files of a small build that a fault may cost: two workers, each with the tables of one stage of one part (at most 5)
in hand, or the driver with those of one step between the stages, which has a table for each part."""
SHARE_FROM_TRIALS = 10
"""A share of the work is told of so many moments; at a single early one it would say how small the build is."""
PAUSE_S = 0.02
LIMIT_S = 900.0

THRESHOLDS = "thresholds: {default: {tau_valid: 4, tau_high: 0.97, tau_centric: 0.97, tau_count: 3}}"


@dataclass
class Trial:
    """One fault and what it cost."""

    moment: str
    """What was drawn."""
    files_before: int = 0
    """Complete when the fault came."""
    files_redone: int = 0
    parts_before: int = 0
    """Finished parts of stages when the fault came."""
    parts_redone: int = 0
    seconds: float = 0.0
    """From the start of the disturbed command to the end of the last one."""
    same_content: bool = False
    same_accounts: bool = False
    as_stated: bool = False
    """Every file, row, account and hash as the manifest states it (`oacir data verify`)."""
    left_processes: int = 0
    """Processes of killed commands alive ten seconds after the end, Ray's two node agents left out: these outlive a
    killed session for a minute or two, but write nothing of ours."""
    failure: str = ""
    """Why the command came to no end."""

    @property
    def good(self) -> bool:
        """Whether nothing was lost, doubled or done twice."""
        return (
            not self.failure
            and self.same_content
            and self.same_accounts
            and self.as_stated
            and not self.parts_redone
        )


@dataclass
class Drill:
    """All trials of one kind."""

    fault: str
    seed: int
    recovery: str
    """What is taken out by --without-recovery, and whether it was."""
    undisturbed_seconds: float = 0.0
    trials: list[Trial] = field(default_factory=list)

    def add(self, trial: Trial) -> None:
        """Keep a trial and tell it."""
        self.trials.append(trial)
        sys.stderr.write(f"{json.dumps(asdict(trial))}\n")

    @property
    def redone_share(self) -> float:
        """Share of the finished files that were made twice, over all trials."""
        return sum(t.files_redone for t in self.trials) / max(1, sum(t.files_before for t in self.trials))

    @property
    def passed(self) -> bool:
        """Whether everything holds that the drill is for."""
        if len(self.trials) < SHARE_FROM_TRIALS:
            little = all(t.files_redone <= IN_HAND for t in self.trials)
        else:
            little = self.redone_share <= MOST_REDONE
        return bool(self.trials) and little and all(t.good for t in self.trials)

    def result(self) -> dict[str, Any]:
        """What is written down."""
        return {
            "drill": self.fault,
            "trials": len(self.trials),
            "seed": self.seed,
            "recovery": self.recovery,
            "undisturbed_seconds": round(self.undisturbed_seconds, 1),
            "redone_share": round(self.redone_share, 4),
            "finished_parts_redone": sum(t.parts_redone for t in self.trials),
            "passed": self.passed,
            "results": [asdict(t) for t in self.trials],
        }


def environment(**more: str) -> dict[str, str]:
    """Of a command under test: a Ray of its own, and this checkout's code."""
    paths = [str(ROOT), str(ROOT / "tests" / "e2e"), os.environ.get("PYTHONPATH", "")]
    return os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": os.pathsep.join(p for p in paths if p)} | more


def oacir(words: Sequence[str], planted: Sequence[str] = ()) -> list[str]:
    """The command line of an `oacir` command, with something planted in it if asked."""
    if planted:
        return [sys.executable, str(Path(__file__).with_name("planted.py")), *planted, "--", *words]
    return [sys.executable, "-m", "infra.cli", *words]


class Build:
    """One `oacir build` into a root of its own, as often as it takes."""

    def __init__(self, recipe: Path, root: Path, planted: Sequence[str] = (), **variables: str) -> None:
        words = ["build", "--config", str(recipe), "--root", str(root), "--json"]
        self.command, self.root = oacir(words, planted), root
        self.environment = environment(**variables)
        self.began = time.monotonic()
        self.log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the build
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The command as it runs."""
        assert self.process is not None, "start comes first"
        return self.process

    def start(self) -> None:
        """Give the command."""
        self.log.truncate(0)
        self.process = subprocess.Popen(
            self.command, stdout=subprocess.PIPE, stderr=self.log, env=self.environment
        )

    def until(self, reached: Callable[[], bool]) -> bool:
        """Wait for a moment; whether the command still runs then."""
        deadline = time.monotonic() + LIMIT_S
        while self.running.poll() is None and not reached():
            time.sleep(PAUSE_S)
            if time.monotonic() > deadline:
                self.kill()
                raise RuntimeError("the build does not come to the drawn moment")
        return self.running.poll() is None

    def until_files(self, count: int) -> bool:
        """Wait for so many finished files; whether the command still runs then."""
        return self.until(lambda: len(finished(self.root)) >= count)

    def until_at_work(self, among: Callable[[], Sequence[psutil.Process]]) -> list[psutil.Process]:
        """Wait until some processes run a part of a stage; these, or none where the command is over."""
        found: list[psutil.Process] = []

        def reached() -> bool:
            found[:] = at_work(among())
            return bool(found)

        self.until(reached)
        return found

    def kill(self) -> list[psutil.Process]:
        """SIGKILL to the driver alone; the processes it leaves behind."""
        family = self.family()
        self.running.send_signal(signal.SIGKILL)
        self.running.wait()
        return family

    def family(self) -> list[psutil.Process]:
        """The driver's processes: its Ray and the workers of that."""
        try:
            return psutil.Process(self.running.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            return []

    def end(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """What the command has to say at its end.

        Raises:
            RuntimeError: it failed, or there is no end; it is killed then with all it started.
        """
        try:
            said, _ = self.running.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            for process in [*self.kill()]:
                process.kill()
            raise RuntimeError(f"no end after {limit_s:g} s") from None
        if self.running.returncode or not said:
            self.log.seek(0)
            lines = self.log.read().decode(errors="replace").strip().splitlines()
            raise RuntimeError(f"exit code {self.running.returncode}: {' '.join(lines[-2:])}")
        outcome: dict[str, Any] = json.loads(said)
        return outcome

    def run(self, limit_s: float = LIMIT_S) -> dict[str, Any]:
        """Start and wait for the end."""
        self.start()
        return self.end(limit_s)

    @property
    def seconds(self) -> float:
        """Since the first start."""
        return round(time.monotonic() - self.began, 1)


def finished(root: Path) -> dict[str, int]:
    """Complete files → inode; a file that is written again gets another one."""
    found = {}
    for folder, _, names in os.walk(root):
        for name in names:
            if not name.endswith(".tmp") and name != "started.json":
                path = os.path.join(folder, name)  # noqa: PTH118 - walked many times a second
                with_inode = os.stat(path, follow_symlinks=False) if os.path.lexists(path) else None  # noqa: PTH116
                if with_inode:
                    found[path] = with_inode.st_ino
    return found


def judge(
    trial: Trial, root: Path, before: dict[str, int], whole: dict[str, Any], said: dict[str, Any]
) -> None:
    """Fill in what the end of a disturbed build shows."""
    now = finished(root)
    redone = [path for path, inode in before.items() if now.get(path) != inode]
    trial.files_before, trial.files_redone = len(before), len(redone)
    trial.parts_before = sum("/_accounts/" in p for p in before)
    trial.parts_redone = sum("/_accounts/" in p for p in redone)
    trial.same_content = said["content_hash"] == whole["content_hash"]
    trial.same_accounts = said["accounts"] == whole["accounts"]
    trial.as_stated = not faults(said["location"])


def judge_end(trial: Trial, build: Build, whole: dict[str, Any]) -> Trial:
    """What a build that has just been disturbed, and goes on by itself, shows at its end; as one that fails does."""
    before = finished(build.root)
    try:
        judge(trial, build.root, before, whole, build.end())
    except RuntimeError as error:
        trial.failure = str(error)
    trial.seconds = build.seconds
    return trial


def faults(location: str) -> list[Any]:
    """What `oacir data verify` finds wrong with a version."""
    from infra.base.command import Context
    from pipelines.verify import VerifyRecipe, verify

    found: list[Any] = verify(VerifyRecipe(dataset=location), Context(root="")).figures["faults"]
    return found


def alive(family: list[psutil.Process]) -> int:
    """How many of a killed command's processes live on after ten seconds, Ray's node agents left out."""
    _, left = psutil.wait_procs(family, timeout=10)
    return sum(not title(process).endswith("Agent") for process in left)


def title(process: psutil.Process) -> str:
    """What a process calls itself; that of one that is gone counts as an agent's."""
    try:
        return process.cmdline()[0].split()[0]
    except (psutil.Error, IndexError):
        return "Agent"


def at_work(family: Sequence[psutil.Process]) -> list[psutil.Process]:
    """The Ray workers among some processes that run a part of a stage right now."""
    return sorted((p for p in family if title(p).startswith("ray::Map")), key=lambda p: p.pid)


def photos(folder: Path, instances: int, images: int = 5, first: int = 0) -> Path:
    """A collection of drawn 64-px photos with boxes: two domains, `instances` each, counted from `first`."""
    from photo_sources import picture

    lines = []
    for domain in ("cups", "toys"):
        for instance in range(first, first + instances):
            place = folder / domain / f"thing-{instance:04d}"
            place.mkdir(parents=True)
            for n in range(images):
                seed = (domain == "toys") * 1_000_000 + instance * images + n
                (place / f"{n}.jpg").write_bytes(picture(seed, 64))
                lines.append(f"{domain}/{place.name}/{n}.jpg,8,8,{20 + 4 * n},16\n")
    (folder / f"boxes-{first}.csv").write_text("image_path,x,y,w,h\n" + "".join(lines))
    return folder


def recipe(folder: Path, name: str, collection: Path, **more: Any) -> Path:
    """A recipe over a collection, as a file."""
    path = folder / f"{name}.yaml"
    lines = ["name: drill", f"source: {{kind: image_folder, root: {collection}}}", THRESHOLDS, "workers: 2"]
    path.write_text("\n".join([*lines, *(f"{key}: {value}" for key, value in more.items()), ""]))
    return path


def command_line(description: str, run: Callable[[argparse.Namespace, Path], Drill], **extra: Any) -> int:
    """Read the options, run the drill in an empty folder, tell and write the result; 0 only if it passed.

    Args:
        description: of the drill.
        run: the drill.
        extra: name → default of numbers that only this drill has.
    """
    sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=10, help="faults, each in a build of its own")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--instances", type=int, default=24, help="instances of each domain")
    parser.add_argument(
        "--without-recovery", action="store_true", help="take out what the drill is for: it must fail"
    )
    parser.add_argument("--json", type=Path, help="where to write the result")
    for name, default in extra.items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="oacir-drill-") as folder:
        drill = run(options, Path(folder))
    result = drill.result()
    if options.json:
        write_result(options.json, result)
    verdict = "passed" if drill.passed else "FAILED"
    redone = f"{100 * drill.redone_share:.1f} % of finished files"
    parts = f"{result['finished_parts_redone']} finished parts redone"
    sys.stdout.write(f"| {drill.fault} | {len(drill.trials)} | {verdict} | {redone}, {parts} |\n")
    return 0 if drill.passed else 1


def write_result(place: Path, result: dict[str, Any]) -> None:
    """Write a result with the machine and the command beside the numbers."""
    from benchmarks.machine import machine

    words = ["python", str(Path(sys.argv[0]).resolve().relative_to(ROOT)), *sys.argv[1:]]
    for option in {"--json", "--out", "--scene"} & set(words):  # where it lies is nobody's matter
        del words[words.index(option) : words.index(option) + 2]
    given = {"machine": machine(), "command": " ".join(words)}
    place.write_text(json.dumps(given | result, indent=1) + "\n")


def moments(seed: int, count: int) -> tuple[random.Random, list[float]]:
    """Shares of a build's work at which a fault comes, and the generator for what else is drawn."""
    rng = random.Random(seed)
    return rng, [rng.uniform(0.02, 0.98) for _ in range(count)]
