"""`oacir site start` and `stop`: the servers, how to use them, and an end that leaves nothing behind."""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Mapping, Sequence
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
from infra.ops.site.servers import BUCKET, TEMPORARY, Ports, Server, Site

START_S, POLL_S = 180.0, 0.2
PROCESSES, TOKEN, VARIABLES, RAY_FILES = "processes.json", "ray_token", "env.sh", "ray_files"


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
    restarts: Annotated[int, Field(ge=0)] = 5
    """How often the MLflow server, or a node, that ended by itself is started again. What S3 and the head hold is lost
    with them, so the end of one of these ends all."""


class StopRecipe(FolderRecipe):
    """The end of a set-up."""

    wait_s: Annotated[float, Field(gt=0)] = 60.0
    """Seconds that it has to end by itself before its processes are killed."""


def start(recipe: StartRecipe, context: Context) -> Outcome:
    """Run S3, MLflow, a Ray head and nodes until Ctrl-C, SIGTERM or `oacir site stop`, which ends all of them.

    Raises:
        OacirError: it runs already, the S3 server is not installed, or a server did not come up, or ended by itself
            and is not to be started again; with the end of its log.
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
    _clear(folder)
    site = _site(recipe, folder)
    began = time.monotonic()
    with told_to_end() as told, ExitStack() as open_:
        open_.callback(_clear, folder)
        open_.callback((folder / PROCESSES).unlink, missing_ok=True)
        up = open_.enter_context(Up(folder, site.environment(os.environ), recipe.restarts))
        servers = site.servers()
        with Progress("start", len(servers), "servers") as progress:
            for server in servers:
                _wait(server, up.start(server), up.log(server), told)
                progress.update(note=server.name, at_once=True)
                if told:
                    break
        if not told:
            _tell(site, time.monotonic() - began)
        while not told:
            up.look()
            time.sleep(POLL_S)
    return Outcome(
        f"ended {len(up.servers)} servers; logs: {folder}", str(folder), {"servers": [*up.servers]}
    )


class Up:
    """Servers that are up. One that ends by itself is started again where it may be; else all end.

    Args:
        folder: where their logs lie.
        environment: variables of each.
        restarts: how often each may be started again.
    """

    def __init__(self, folder: Path, environment: Mapping[str, str], restarts: int) -> None:
        self.folder, self.environment, self.restarts = folder, environment, restarts
        self.servers: dict[str, Server] = {}
        self._starts: Counter[str] = Counter()
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._open: dict[str, ExitStack] = {}
        self._all = ExitStack()

    def __enter__(self) -> Up:
        return self

    def __exit__(self, *_: object) -> None:
        self._all.close()

    def log(self, server: Server) -> Path:
        """Of its latest start."""
        number = self._starts[server.name]
        return self.folder / (f"{server.name}.log" if number == 1 else f"{server.name}-{number}.log")

    def start(self, server: Server) -> subprocess.Popen[bytes]:
        """Start a server, for the first time or again."""
        name = server.name
        self._starts[name] += 1
        if name not in self._open:
            self.servers[name], self._open[name] = server, self._all.enter_context(ExitStack())
        # what is left of an earlier start ends before its number can be another process's
        self._open[name].close()
        began = serving(server.command, self.log(server), self.environment)
        self._processes[name] = self._open[name].enter_context(began)
        _note(self.folder, [os.getpid(), *(process.pid for process in self._processes.values())])
        return self._processes[name]

    def look(self) -> None:
        """See which have ended, and start them again.

        Raises:
            OacirError: one has that may not be started again, or not so often.
        """
        for name, server in self.servers.items():
            code = self._processes[name].poll()
            if code is None:
                continue
            ended = f"{name} ended by itself with {code}"
            if not server.again or self._starts[name] > self.restarts:
                raise OacirError(f"{ended}, so all were ended; {tail(self.log(server))}")
            announce(f"{ended}; started again ({self._starts[name]} of {self.restarts})")
            self.start(server)


def stop(recipe: StopRecipe, context: Context) -> Outcome:
    """End a set-up, also one whose `start` was killed.

    Raises:
        OacirError: it does not end.
    """
    folder = _folder(recipe, context)
    running = _running(folder)
    if not running:
        if not context.dry_run:
            _clear(folder)
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
    _clear(folder)
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
    (folder / RAY_FILES).write_text(str(site.temporary))
    lines = [f"export {name}={shlex.quote(value)}\n" for name, value in site.variables.items()]
    _write_private(folder / VARIABLES, "".join(lines))
    return site


def _clear(folder: Path) -> None:
    """Remove Ray's files of a set-up that has ended, also of one whose `start` was killed."""
    note = folder / RAY_FILES
    if note.is_file():
        left = Path(note.read_text())
        if left.parent == TEMPORARY.parent and left.name.startswith(TEMPORARY.name):
            shutil.rmtree(left, ignore_errors=True)
        note.unlink()


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
