"""`oacir site start` and `stop`: the servers, how to use them, and an end that leaves nothing behind."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import psutil
from pydantic import Field

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import Progress, announce
from infra.ops.processes import alive, end, free_ports, serving, tail, told_to_end
from infra.ops.site.servers import BUCKET, Ports, Server, Site

START_S, POLL_S = 180.0, 0.2
PROCESSES, TOKEN, VARIABLES = "processes.json", "ray_token", "env.sh"


class FolderRecipe(Config):
    """Which set-up."""

    folder: str | None = None
    """Folder of this machine for logs, token and MLflow's database; null takes site/ under the root."""


class StartRecipe(FolderRecipe):
    """A set-up of this machine."""

    nodes: Annotated[int, Field(gt=0)] = 2
    """Ray nodes that work; the head beside them does not."""
    cpus: Annotated[int, Field(gt=0)] = 2
    """Logical CPUs of each node; they may be more than the machine has."""


class StopRecipe(FolderRecipe):
    """The end of a set-up."""

    wait_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that it has to end by itself before its processes are killed."""


def start(recipe: StartRecipe, context: Context) -> Outcome:
    """Run S3, MLflow, a Ray head and nodes until Ctrl-C, SIGTERM or `oacir site stop`, which ends all of them.

    Raises:
        OacirError: it runs already, the S3 server is not installed, or a server did not come up or ended by itself;
            with the end of its log.
    """
    folder = _folder(recipe, context)
    if find_spec("moto") is None:
        raise OacirError(
            "the S3 server of this set-up is moto, which is not installed; pip install 'moto[server]'"
        )
    if running := _running(folder):
        raise OacirError(f"{folder}: this set-up runs ({len(running)} processes); oacir site stop ends it")
    if context.dry_run:
        return Outcome(f"would start S3, MLflow, a Ray head and {recipe.nodes} nodes: {folder}", str(folder))
    site = _site(recipe, folder)
    environment, began = site.environment(os.environ), time.monotonic()
    with told_to_end() as told, ExitStack() as open_:
        open_.callback(shutil.rmtree, site.temporary, ignore_errors=True)
        open_.callback((folder / PROCESSES).unlink, missing_ok=True)
        up: dict[str, subprocess.Popen[bytes]] = {}
        servers = site.servers()
        with Progress("start", len(servers), "servers") as progress:
            for server in servers:
                log = folder / f"{server.name}.log"
                up[server.name] = open_.enter_context(serving(server.command, log, environment))
                _note(folder, [os.getpid(), *(process.pid for process in up.values())])
                _wait(server, up[server.name], log, told)
                progress.update(note=server.name, at_once=True)
                if told:
                    break
        if not told:
            _tell(site, time.monotonic() - began)
        while not told:
            for name, process in up.items():
                if process.poll() is not None:
                    raise OacirError(
                        f"{name} ended by itself with {process.returncode}, so all were ended;"
                        f" {tail(folder / f'{name}.log')}"
                    )
            time.sleep(POLL_S)
    return Outcome(f"ended {len(up)} servers; logs: {folder}", str(folder), {"servers": list(up)})


def stop(recipe: StopRecipe, context: Context) -> Outcome:
    """End a set-up, also one whose `start` was killed.

    Raises:
        OacirError: it does not end.
    """
    folder = _folder(recipe, context)
    running = _running(folder)
    if not running:
        return Outcome(f"nothing to do: no set-up runs there: {folder}", str(folder))
    if context.dry_run:
        return Outcome(f"would end {len(running)} processes: {folder}", str(folder))
    starter = int(_noted(folder)[0]["pid"])
    if any(process.pid == starter for process in running):
        with suppress(psutil.NoSuchProcess):
            psutil.Process(starter).terminate()
        psutil.wait_procs(running, timeout=recipe.wait_s)
    # of a start that was killed; nodes first, which take leave of the head that is there
    for process in reversed(_running(folder)):
        end(process.pid)
    if left := _running(folder):
        raise OacirError(
            f"{folder}: {len(left)} processes do not end ({', '.join(str(p.pid) for p in left)}); kill them"
        )
    (folder / PROCESSES).unlink(missing_ok=True)
    return Outcome(f"ended {len(running)} processes: {folder}", str(folder))


def _folder(recipe: FolderRecipe, context: Context) -> Path:
    place = storage.absolute(recipe.folder or storage.join(context.root, "site"))
    if storage.is_s3(place):
        raise OacirError(f"{place}: servers of this machine need a folder of it; name one with --folder")
    return Path(place)


def _site(recipe: StartRecipe, folder: Path) -> Site:
    """Ports, a new token in a file of its own, and the variables for a shell."""
    from ray.util import get_node_ip_address

    folder.mkdir(parents=True, exist_ok=True)
    s3, mlflow, dashboard, gcs, client, *agents = free_ports(6 + recipe.nodes)
    token = folder / TOKEN
    _write_private(token, secrets.token_hex(32))
    site = Site(
        folder=folder,
        host=get_node_ip_address(),
        ports=Ports(s3, mlflow, dashboard, gcs, client, tuple(agents)),
        token_file=token,
        nodes=recipe.nodes,
        cpus=recipe.cpus,
    )
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in site.variables.items()]
    _write_private(folder / VARIABLES, "".join(lines))
    return site


def _write_private(file: Path, text: str) -> None:
    file.unlink(missing_ok=True)  # one that lies there may be open to others
    file.touch(0o600, exist_ok=False)
    file.write_text(text)


def _wait(server: Server, process: subprocess.Popen[bytes], log: Path, told: Sequence[int]) -> None:
    until = time.monotonic() + START_S
    while not told and process.poll() is None and time.monotonic() < until:
        if server.ready():
            return
        time.sleep(POLL_S)
    if not told:
        how = "did not get ready" if process.poll() is None else f"ended with {process.returncode}"
        raise OacirError(f"{server.name} {how}; {tail(log)}")


def _tell(site: Site, seconds: float) -> None:
    to = site.variables
    announce(f"""
up after {seconds:.0f} s
  Ray     {site.dashboard} (jobs and dashboard), a head and {site.nodes} nodes of {site.cpus} CPUs
  MLflow  {to["MLFLOW_TRACKING_URI"]}
  S3      {to["AWS_ENDPOINT_URL"]}, s3://{BUCKET} (in memory: empty after the end)

in another shell
  . {shlex.quote(str(site.folder / VARIABLES))}
  oacir doctor --root s3://{BUCKET}/root
  oacir submit demo --root s3://{BUCKET}/root

Ctrl-C or `oacir site stop` ends it; logs lie in {site.folder}""")


def _note(folder: Path, pids: Sequence[int]) -> None:
    """Which processes there are, with when they began: a number alone may be another's by then."""
    rows = [{"pid": pid, "began": psutil.Process(pid).create_time()} for pid in pids]
    (folder / PROCESSES).write_text(json.dumps(rows))


def _noted(folder: Path) -> list[dict[str, float]]:
    file = folder / PROCESSES
    return json.loads(file.read_text()) if file.is_file() else []


def _running(folder: Path) -> list[psutil.Process]:
    """Those noted that are still these processes."""
    found = []
    for row in _noted(folder):
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(int(row["pid"]))
            if process.create_time() == row["began"] and alive(process):
                found.append(process)
    return found
