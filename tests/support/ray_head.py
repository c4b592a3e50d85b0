"""A real Ray head with its dashboard on loopback, as a cluster that jobs are submitted to."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from infra.ops.processes import free_ports

START_S = 120.0
STORE_BYTES = 150 << 20


@contextmanager
def ray_head(
    environment: dict[str, str], cpus: int = 2, *, gcs: int = 0, more: tuple[str, ...] = ()
) -> Iterator[str]:
    """The dashboard's URL of a cluster of this machine alone.

    Args:
        environment: variables that the cluster's processes have beside this process's.
        cpus: logical CPUs.
        gcs: port that drivers and nodes connect to; 0 is a free one.
        more: further options of `ray start`.
    """
    folder = Path(tempfile.mkdtemp(prefix="head"))  # short: sockets lie in it
    dashboard, agent, client = free_ports(3)
    ours = os.environ | {
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for name in ("RAY_ADDRESS", "PYTHONPATH"):
        ours.pop(name, None)
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--port", str(gcs)]
    command += ["--num-cpus", str(cpus), "--object-store-memory", str(STORE_BYTES), "--temp-dir", str(folder)]
    command += ["--dashboard-host", "127.0.0.1", "--dashboard-port", str(dashboard)]
    command += ["--dashboard-agent-listen-port", str(agent), "--ray-client-server-port", str(client), *more]
    with (folder / "start.log").open("wb") as log:
        head = subprocess.Popen(command, stdout=log, stderr=log, env=ours | environment, cwd=folder)
    url = f"http://127.0.0.1:{dashboard}"
    try:
        _wait(url, head, folder / "start.log")
        yield url
    finally:
        processes = psutil.Process(head.pid).children(recursive=True) if head.poll() is None else []
        head.terminate()
        with suppress(subprocess.TimeoutExpired):
            head.wait(20)
        for process in processes:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        head.kill()
        head.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _wait(url: str, head: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + START_S
    while time.monotonic() < end and head.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/api/version", timeout=5).close()
            return
        except urllib.error.HTTPError:  # it asks for a token
            return
        except OSError:
            time.sleep(0.2)
    raise RuntimeError(log.read_text()[-2000:])
