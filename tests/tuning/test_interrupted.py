"""A sweep whose driver is killed, interrupted, or loses a trial's process: nothing finished is done again."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from small_benchmark import write_benchmark
from small_sweep import sweep

from infra.base.versions import open_version
from tuning.records import TrialRecord, read

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

LIMIT_S = 300.0
EPOCHS = 10


class Command:
    """`oacir tune` in a process of its own, with a Ray session of its own."""

    def __init__(self, root: Path, *options: str, address: str = "local") -> None:
        words = ["tune", "--config", str(root / "sweep.yaml"), "--root", str(root), "--json", *options]
        self.root = root
        self.process = subprocess.Popen(
            [sys.executable, "-m", "infra.cli", *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"RAY_ADDRESS": address, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def wait_for(self, what: Any) -> None:
        """Until the sweep's records are as asked for."""
        deadline = time.monotonic() + LIMIT_S
        while time.monotonic() < deadline and self.process.poll() is None:
            if what(self.records()):
                return
            time.sleep(0.05)
        self.process.kill()
        raise TimeoutError(str(self.process.communicate()))

    def records(self) -> list[TrialRecord]:
        places = list(self.root.glob("sweeps/sweep/*"))
        return read(str(places[0])) if places else []

    @staticmethod
    def records_of(outcome: dict[str, Any]) -> list[TrialRecord]:
        """Those of a finished sweep."""
        rows = open_version(outcome["location"]).table("trials", ["record"]).to_pylist()
        return [TrialRecord.model_validate_json(row["record"]) for row in rows]

    def end(self) -> tuple[int, dict[str, Any], str]:
        """Exit code, the outcome, and what was complained of."""
        out, complaint = self.process.communicate(timeout=LIMIT_S)
        return self.process.returncode, json.loads(out) if out.strip() else {}, complaint.decode()

    def family(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


def prepared(root: Path, betas: list[float], workers: int = 1) -> None:
    write_benchmark(root, identities=12)
    recipe = sweep(
        {"model.fixed_beta": {"kind": "grid", "values": betas}},
        {"training": {"epochs": EPOCHS, "checkpoint_every_steps": 3}, "scaling": {"workers": workers}},
        algorithm={"kind": "grid"},
        intervals=False,
        concurrent=1,
    )
    (root / "sweep.yaml").write_text(yaml.safe_dump(recipe.model_dump(mode="json")))


def made(run: str) -> dict[str, int]:
    """Inode of every file of a finished run: another one was written anew."""
    return {p.name: p.stat().st_ino for p in Path(run).rglob("*") if p.is_file()}


def test_after_a_kill_the_same_command_goes_on_and_repeats_nothing(tmp_path: Path) -> None:
    prepared(tmp_path, [0, 2, 4])
    killed = Command(tmp_path)
    # one trial has ended, the next has been measured
    killed.wait_for(lambda known: len(known) > 1 and known[0].ended and known[1].readings)
    family = killed.family()
    killed.process.send_signal(signal.SIGKILL)
    killed.process.wait()
    psutil.wait_procs(family, timeout=60)
    first, second = killed.records()[:2]
    assert not second.ended
    before = made(first.run)
    finished_steps = second.readings[-1].step

    code, outcome, complaint = Command(tmp_path, "--resume").end()
    assert code == 0, complaint
    assert outcome["finished"] == 3
    assert made(first.run) == before
    found = Command.records_of(outcome)
    assert found[0] == first
    # the second went on: every step once, and of those done before the kill at most a few anew
    history = open_version(found[1].run).table("history").to_pydict()
    assert history["step"] == list(range(1, 3 * EPOCHS + 1))
    assert finished_steps >= 3
    assert [r.step for r in found[1].readings] == list(range(3, 3 * EPOCHS + 1, 3))
    code, again, _ = Command(tmp_path).end()
    assert code == 0
    assert again["message"].startswith("nothing to do")


def test_ctrl_c_ends_with_130_and_the_same_command_goes_on(tmp_path: Path) -> None:
    prepared(tmp_path, [0, 2])
    interrupted = Command(tmp_path)
    interrupted.wait_for(lambda known: known and known[0].readings)
    interrupted.process.send_signal(signal.SIGINT)
    code, _, complaint = interrupted.end()
    assert code == 130
    assert "interrupted; the same command goes on" in complaint
    code, outcome, complaint = Command(tmp_path).end()
    assert code == 0, complaint
    assert outcome["finished"] == 2


def test_a_trial_whose_process_is_lost_begins_again_where_it_was(tmp_path: Path) -> None:
    prepared(tmp_path, [0, 2], workers=2)  # who take all CPUs, so that none may stay reserved
    command = Command(tmp_path)
    command.wait_for(lambda known: known and len(known[0].readings) > 1)
    (driver,) = [p for p in command.family() if "Trainable" in " ".join(p.cmdline())]
    driver.kill()
    code, outcome, complaint = command.end()
    assert code == 0, complaint
    assert outcome["finished"] == 2


def test_a_node_that_is_lost_costs_no_trial(tmp_path: Path) -> None:
    from ray.cluster_utils import Cluster

    prepared(tmp_path, [0, 2])
    small = {"object_store_memory": 100 << 20, "include_dashboard": False}
    os.environ |= {"PYTHONPATH": os.pathsep.join(sys.path), "RAY_USAGE_STATS_ENABLED": "0"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **small})
    try:
        nodes = [cluster.add_node(num_cpus=1, object_store_memory=100 << 20) for _ in range(2)]
        command = Command(tmp_path, address=cluster.address)
        command.wait_for(lambda known: known and len(known[0].readings) > 1)
        lost = next(node for node in nodes if trains(node))
        cluster.remove_node(lost, allow_graceful=False)
        code, outcome, complaint = command.end()
        assert code == 0, complaint
        assert outcome["finished"] == 2
        first = command.records_of(outcome)[0]
        history = open_version(first.run).table("history").to_pydict()
        assert history["step"] == list(range(1, 3 * EPOCHS + 1))
    finally:
        cluster.shutdown()


def trains(node: Any) -> bool:
    """Whether a training worker runs on a node of this machine."""
    raylet = psutil.Process(node.all_processes["raylet"][0].process.pid)
    return any("RayTrainWorker" in " ".join(p.cmdline()) for p in raylet.children(recursive=True))
