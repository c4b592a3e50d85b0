"""A production rehearsal: `oacir site start`, the commands that go through it as jobs, and what is there at the end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from drilling import ROOT

sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "support")]

if TYPE_CHECKING:
    from s3_front import Front

STEPS = 40
SWEEP = """
name: sweep
train:
  extends: tiny.yaml
  dataset: world
  model: {modulation: fixed}
  training: {steps: 16, epochs: 1, batch_size: 32}
  scaling: {workers: 1}
space:
  model.fixed_beta: {kind: grid, values: [0, 4]}
algorithm: {kind: grid}
driver_gib: 0.5
"""
VERBS: dict[str, tuple[str, ...]] = {
    "build": (
        "build", "--config", "world.yaml", "--images_per_part", "16", "--source.world.domains", "[car]",
        "--source.world.instances_per_domain", "10", "--source.world.scenes_per_instance", "6",
    ),
    "embed": ("embed", "--config", "tiny.yaml", "--dataset", "world"),
    "train": (
        "train", "--config", "tiny.yaml", "--dataset", "world", "--training.steps", str(STEPS),
        "--training.batch_size", "32", "--scaling.workers", "2", "--scaling.zero_stage", "2",
        "--tracking.every_steps", "5",
    ),
    "tune": ("tune", "--config", "sweep.yaml"),
    "evaluate": ("evaluate", "--model", "adafocal", "--dataset", "world"),
    "register": ("register", "--model", "adafocal", "--dataset", "world", "--evaluations", "[evaluation]"),
    "promote": ("promote", "--dataset", "world"),
}  # fmt: skip
"""In their order; the training is on two workers under ZeRO-2."""
REGISTRY = ("register", "promote")
BUCKET = "oacir"
KINDS = ("datasets", "features", "runs", "sweeps", "evaluations")
OF_TRIAL = ("number", "values", "state", "run_hash", "domains", "beta")
TIMES = ("second", "_s", "per_s", "ms", "bytes", "gib", "age", "mfu", "wait", "load")
"""What figures that measure the machine and not the work have in their names."""
UP_S, END_S, PAUSE_S = 240.0, 600.0, 0.02


@dataclass
class Stage:
    """A set-up that is up."""

    folder: Path
    """That of its processes: what `oacir site start --folder` was told."""
    variables: Mapping[str, str]
    """That lead a shell to it; S3 through the front."""
    front: Front
    """Before S3, for jobs: fails when told, and notes every call."""
    scratch: Path
    """Where the client stands, with its recipe of a sweep."""

    def pids(self) -> dict[str, int]:
        """Server → its process, as it is now."""
        rows = json.loads((self.folder / "processes.json").read_text())
        names = ("starter", "s3", "mlflow", "ray-head", "ray-node-1", "ray-node-2")
        return dict(zip(names, (int(row["pid"]) for row in rows), strict=True))

    def family(self, server: str) -> list[psutil.Process]:
        """A server's processes; none while it is away."""
        with suppress(psutil.NoSuchProcess):
            first = psutil.Process(self.pids()[server])
            return [first, *first.children(recursive=True)]
        return []

    def kill(self, server: str) -> int:
        """SIGKILL to a server with all that it started, as a machine goes; how many processes."""
        processes = self.family(server)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        return len(processes)


@contextmanager
def stage(cpus: int = 2) -> Iterator[Stage]:
    """Start a set-up, with a front before its S3, and end it."""
    from s3_front import front_of

    with tempfile.TemporaryDirectory(prefix="stage-") as name:
        folder, scratch = Path(name) / "site", Path(name) / "client"
        scratch.mkdir()
        (scratch / "sweep.yaml").write_text(SWEEP)
        log = Path(name) / "site.log"
        command = [sys.executable, "-m", "infra.cli", "site", "start", "--folder", str(folder)]
        with log.open("wb") as said:
            outer = os.environ | {"PYTHONPATH": str(ROOT)}
            site = subprocess.Popen(
                [*command, "--cpus", str(cpus)], stdout=said, stderr=said, cwd=ROOT, env=outer
            )
        try:
            until(lambda: "Ctrl-C or" in log.read_text() or site.poll() is not None, UP_S, "the set-up")
            if site.poll() is not None:
                raise RuntimeError(log.read_text()[-2000:])
            variables = read_variables(folder / "env.sh")
            os.environ |= variables
            with front_of(variables["AWS_ENDPOINT_URL"]) as front:
                yield Stage(folder, variables | {"AWS_ENDPOINT_URL": front.url}, front, scratch)
        finally:
            site.send_signal(signal.SIGTERM)
            try:
                site.wait(120)
            except subprocess.TimeoutExpired:
                site.kill()
                subprocess.run(
                    [*command[:-3], "stop", "--folder", str(folder)], cwd=ROOT, env=outer, check=False
                )
            sys.stderr.write(
                "".join(f"site: {line}\n" for line in log.read_text().splitlines() if "ended" in line)
            )


def read_variables(file: Path) -> dict[str, str]:
    """What a shell has that read a file of exports."""
    done = subprocess.run(
        ["env", "-i", "bash", "-c", f'. "{file}" && env -0'], capture_output=True, text=True, check=True
    )
    rows = (row.partition("=")[::2] for row in done.stdout.split("\0") if row)
    return {name: value for name, value in rows if name not in ("PWD", "SHLVL", "_", "OLDPWD")}


def until(reached: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for something; how long it took.

    Raises:
        RuntimeError: it does not come.
    """
    began = time.monotonic()
    while not reached():
        if time.monotonic() - began > seconds:
            raise RuntimeError(f"{what}: not within {seconds:g} s")
        time.sleep(PAUSE_S)
    return time.monotonic() - began


@dataclass
class Submitted:
    """A command on its way through `oacir submit`."""

    there: Stage
    root: str
    """Name below the bucket; also part of the registered model's name."""
    verb: str
    began: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.first = len(self.there.front.calls)
        words = [*VERBS[self.verb], "--root", f"s3://{BUCKET}/{self.root}"]
        if self.verb in REGISTRY:
            words += ["--name", f"shop-{self.root}"]
        self.command = [sys.executable, "-m", "infra.cli", "submit", "--estimate", "false", *words]
        self.start()

    def start(self) -> None:
        """Give the command; a second time it joins the job."""
        clean = {k: v for k, v in os.environ.items() if not k.startswith("RAY_")}
        self.log = tempfile.NamedTemporaryFile(prefix=f"{self.verb}-", dir=self.there.scratch)  # noqa: SIM115
        self.process = subprocess.Popen(
            self.command, stdout=self.log, stderr=self.log, cwd=self.there.scratch,
            env=clean | dict(self.there.variables) | {"PYTHONPATH": str(ROOT)},
        )  # fmt: skip

    def put(self, part: str) -> list[str]:
        """Names of what this command stored so far that have this in them."""
        calls = self.there.front.calls[self.first :]
        return [c.path for c in calls if c.method == "PUT" and c.status == 200 and part in c.path]

    @property
    def said(self) -> str:
        """By the client that runs, the job's log with it."""
        return Path(self.log.name).read_text(errors="replace")

    def wait(self, reached: Callable[[], bool], what: str, seconds: float = END_S) -> float:
        """Wait for something while the command runs.

        Raises:
            RuntimeError: the command ended before, or it does not come.
        """
        took = until(lambda: reached() or self.process.poll() is not None, seconds, what)
        if self.process.poll() is not None and not reached():
            raise RuntimeError(f"{self.verb} ended before {what}: {self.said[-2000:]}")
        return took

    def end(self) -> float:
        """Wait for its end; seconds since it was first given.

        Raises:
            RuntimeError: it failed.
        """
        try:
            code = self.process.wait(END_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise RuntimeError(f"{self.verb}: no end within {END_S:g} s; {self.said[-2000:]}") from None
        if code:
            raise RuntimeError(f"{self.verb}: exit code {code}; {self.said[-3000:]}")
        return round(time.monotonic() - self.began, 1)


def end_state(there: Stage, root: str) -> dict[str, Any]:
    """All that a rehearsal leaves that may not hang on how it went: versions by content, figures, MLflow, registry."""
    from infra.base.versions import list_versions

    found: dict[str, list[str]] = {}
    place = f"s3://{BUCKET}/{root}"
    for kind in KINDS:
        for version in list_versions(place, kind):
            manifest = version.manifest
            row: dict[str, Any] = {"content": manifest.content_hash}
            row["accounts"] = {
                stage: [account.model_dump(mode="json") for account in accounts]
                for stage, accounts in manifest.accounts.items()
            }
            if kind in ("evaluations", "runs"):
                row["figures"] = untimed(manifest.figures)
            if kind == "sweeps":
                trials = [json.loads(r["record"]) for r in version.table("trials").to_pylist()]
                row["trials"] = [{name: trial[name] for name in OF_TRIAL} for trial in trials]
            found.setdefault(f"{kind}/{manifest.name}", []).append(json.dumps(row, sort_keys=True))
    whole = {name: sorted(rows) for name, rows in found.items()}
    return whole | registry(there, root) | tracked(there, root)


def untimed(tree: Any) -> Any:
    """Figures without those that measure the machine, and without places."""
    if isinstance(tree, Mapping):
        return {
            key: untimed(value)
            for key, value in sorted(tree.items())
            if not any(word in str(key).lower() for word in TIMES) and not isinstance(value, str)
        }
    return tree


def registry(there: Stage, root: str) -> dict[str, Any]:
    """The registered model's versions, aliases and decisions."""
    from infra.ops.registry.server import Registered

    registered = Registered(there.variables["MLFLOW_TRACKING_URI"], f"shop-{root}")
    if not registered.versions():
        return {}
    return {
        "registered": [v.tags["oacir.model_hash"] for v in registered.versions()],
        "champion": registered.alias("champion"),
        "challenger": registered.alias("challenger"),
        "decisions": [[e.number, e.action, e.version, e.champion] for e in registered.log()],
    }


def tracked(there: Stage, root: str) -> dict[str, Any]:
    """What MLflow has of each run below this root: its end, and every value of every figure, by step."""
    from mlflow import MlflowClient

    client = MlflowClient(there.variables["MLFLOW_TRACKING_URI"])
    found: dict[str, Any] = {}
    for experiment in client.search_experiments():
        for run in client.search_runs([experiment.experiment_id]):
            told = json.dumps({**run.data.tags, **run.data.params})
            if f"/{BUCKET}/{root}/" not in told and f"//{BUCKET}/{root}" not in told:
                continue
            metrics = {
                name: sorted((m.step, m.value) for m in client.get_metric_history(run.info.run_id, name))
                for name in sorted(run.data.metrics)
                if not any(word in name.lower() for word in TIMES)
            }
            found.setdefault(f"mlflow/{run.info.run_name}", []).append(
                json.dumps([run.info.status, metrics], sort_keys=True)
            )
    return {name: sorted(rows) for name, rows in found.items()}
