"""`oacir site start`: real servers, used through the variables it writes, ended by a signal, by `site stop`, and after
a kill of the start itself."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
REPOSITORY = Path(__file__).parents[2]
OURS = [sys.executable, "-m", "infra.cli"]


@contextmanager
def started(root: Path) -> Iterator[tuple[subprocess.Popen[str], list[psutil.Process]]]:
    """A set-up that is up, and its processes."""
    command = [*OURS, "site", "start", "--root", str(root), "--cpus", "1"]
    site = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    )
    processes: list[psutil.Process] = []
    try:
        assert site.stderr is not None
        lines = []
        for line in site.stderr:
            lines.append(line)
            if "Ctrl-C or" in line:
                break
        assert "up after" in "".join(lines), lines
        processes += psutil.Process(site.pid).children(recursive=True)
        yield site, processes
    finally:
        site.kill()
        site.wait()
        for process in processes:
            if process.is_running():
                process.kill()


def environment(root: Path) -> dict[str, str]:
    """What a shell has that read the file."""
    script = f'. "{root}/site/env.sh" && env -0'
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    return dict(row.partition("=")[::2] for row in done.stdout.split("\0") if row) | {
        "PYTHONPATH": str(REPOSITORY)
    }


def alive(processes: list[psutil.Process]) -> list[str]:
    return [p.name() for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]


def test_it_is_used_as_it_says_and_ends_with_all_it_started(tmp_path: Path) -> None:
    with started(tmp_path) as (site, processes):
        outer = {name: value for name, value in environment(tmp_path).items() if name != "RAY_ADDRESS"}

        def oacir(*words: str, code: int = 0) -> subprocess.CompletedProcess[str]:
            done = subprocess.run(
                [*OURS, *words], capture_output=True, text=True, env=outer, cwd=tmp_path, check=False
            )
            assert done.returncode == code, done.stderr[-3000:]
            return done

        found = json.loads(oacir("doctor", "--root", "s3://oacir/root", "--json").stdout)["findings"]
        states = {row["check"]: row["state"] for row in found}
        assert {states[name] for name in ("ray", "storage", "mlflow", "clock")} == {"ok"}
        done = oacir("submit", "--estimate", "false", "data", "list", "--root", "s3://oacir/root")
        assert "succeeded" in done.stdout
        again = oacir("site", "start", "--root", str(tmp_path), code=1)
        assert "this set-up runs" in again.stderr

        site.send_signal(signal.SIGTERM)
        out, err = site.communicate(timeout=120)
        assert site.returncode == 0, err
        assert out.startswith("ended 5 servers")
        assert alive(processes) == []
        assert not (tmp_path / "site" / "processes.json").exists()


def test_a_start_that_was_killed_is_ended_by_stop(tmp_path: Path) -> None:
    with started(tmp_path) as (site, processes):
        os.kill(site.pid, signal.SIGKILL)
        site.wait()
        assert len(alive(processes)) > 10
        done = subprocess.run(
            [*OURS, "site", "stop", "--root", str(tmp_path)],
            capture_output=True,
            text=True,
            cwd=REPOSITORY,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("ended 5 processes")
        assert alive(processes) == []
