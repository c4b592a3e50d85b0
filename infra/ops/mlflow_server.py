"""`oacir mlflow start`: an MLflow server of this machine, a database beside it, artifacts in a folder or on S3."""

from __future__ import annotations

import ipaddress
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import announce
from infra.ops.processes import serving, tail, told_to_end

START_S, POLL_S = 180.0, 0.2
LOG, DATABASE, ARTIFACTS = "server.log", "mlflow.db", "artifacts"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "GIT_PYTHON_REFRESH": "quiet",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",  # of language models alone, at a process each
}


class StartRecipe(Config):
    """A tracking server and model registry."""

    host: str = "127.0.0.1"
    """Address it listens on; one that others can reach needs public."""
    port: Annotated[int, Field(ge=0, le=65535)] = 5000
    """Its port; 0 takes a free one."""
    folder: str | None = None
    """Folder of this machine for database and log; null takes mlflow/ under the root."""
    database: str | None = None
    """URI of another database (postgresql://…); null is a sqlite file in the folder."""
    artifacts: str | None = None
    """Where files and models are kept: a folder or s3://bucket/prefix; null takes artifacts/ in the folder."""
    public: bool = False
    """Allow a host that others can reach. MLflow asks for no password: whoever reaches it reads and writes all."""
    allowed_hosts: tuple[str, ...] = ()
    """Names under which a public server may be called (team.example.org:5000); needed with public."""
    workers: Annotated[int, Field(gt=0)] = 1
    """Processes that answer."""

    @model_validator(mode="after")
    def _stays_here(self) -> Self:
        if is_loopback(self.host):
            if self.public or self.allowed_hosts:
                raise ValueError(f"public and allowed_hosts have no effect on {self.host}; leave them away")
            return self
        if not self.public:
            raise ValueError(
                f"host {self.host} can be reached by others, and MLflow asks for no password; keep 127.0.0.1, or say"
                " --public true"
            )
        if not self.allowed_hosts:
            raise ValueError(
                "a public server answers to no name; say allowed_hosts, ['team.example.org:5000']"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether nobody but this machine reaches an address."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def start(recipe: StartRecipe, context: Context) -> Outcome:
    """Run a server until it is interrupted or told to end (SIGINT, SIGTERM), which ends it with all its processes.

    Raises:
        OacirError: the port is taken, S3 lacks boto3, or the server does not come up; with the end of its log.
    """
    folder = _folder(recipe, context)
    artifacts = storage.absolute(recipe.artifacts) if recipe.artifacts else str(folder / ARTIFACTS)
    if storage.is_s3(artifacts) and find_spec("boto3") is None:
        raise OacirError(f"artifacts {artifacts}: MLflow needs boto3 for S3; pip install boto3")
    port = _free_port(recipe)
    uri = f"http://{f'[{recipe.host}]' if ':' in recipe.host else recipe.host}:{port}"
    database = recipe.database or f"sqlite:///{folder / DATABASE}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", recipe.host, "--port", str(port)]
    command += ["--workers", str(recipe.workers), "--artifacts-destination", artifacts]
    if recipe.allowed_hosts:
        command += ["--allowed-hosts", ",".join(recipe.allowed_hosts)]
    figures = {"uri": uri, "database": _without_password(database), "artifacts": artifacts}
    if context.dry_run:
        return Outcome(f"would serve MLflow at {uri}: {folder}", str(folder), figures)
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / LOG
    # a command line is shown to every user of a machine, and a database's URI may hold its password
    variables = environment(os.environ) | {"MLFLOW_BACKEND_STORE_URI": database}
    with serving(command, log, variables) as server, told_to_end() as told:
        _wait_for(uri, server, log, told)
        announce(
            f"MLflow serves at {uri} (database and log in {folder}, artifacts in {artifacts}); Ctrl-C ends it"
        )
        while server.poll() is None and not told:
            time.sleep(POLL_S)
        if not told:
            raise OacirError(f"{uri}: the server ended by itself with {server.returncode}; {tail(log)}")
    return Outcome(
        f"ended the server of {uri}; the same command starts it again: {folder}", str(folder), figures
    )


def environment(outer: Mapping[str, str]) -> dict[str, str]:
    """Variables of the server: it calls the S3 endpoint that everything else here calls. A user's own setting wins."""
    found = ENVIRONMENT | dict(outer)
    endpoint = outer.get("AWS_ENDPOINT_URL_S3") or outer.get("AWS_ENDPOINT_URL")
    if endpoint:
        found.setdefault("MLFLOW_S3_ENDPOINT_URL", endpoint)
    return found


def _folder(recipe: StartRecipe, context: Context) -> Path:
    place = storage.absolute(recipe.folder or storage.join(context.root, "mlflow"))
    if storage.is_s3(place):
        raise OacirError(f"{place}: a database needs a folder of this machine; name one with --folder")
    return Path(place)


def _free_port(recipe: StartRecipe) -> int:
    """The port asked for, or a free one.

    Raises:
        OacirError: the address is none of this machine, or the port is taken.
    """
    family = socket.AF_INET6 if ":" in recipe.host else socket.AF_INET
    with socket.socket(family) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((recipe.host, recipe.port))
        except OSError as error:
            raise OacirError(
                f"{recipe.host}:{recipe.port}: {error.strerror or error}; another server may run there, give another"
                " --port, or 0 for a free one"
            ) from error
        return int(probe.getsockname()[1])


def _wait_for(uri: str, server: subprocess.Popen[bytes], log: Path, told: list[int]) -> None:
    end = time.monotonic() + START_S
    while not told and server.poll() is None and time.monotonic() < end:
        with suppress(OSError), urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            if answer.status == 200:
                return
        time.sleep(POLL_S)
    if not told:
        how = "did not answer" if server.poll() is None else f"ended with {server.returncode}"
        raise OacirError(f"{uri}: the server {how}; {tail(log)}")


def _without_password(uri: str) -> str:
    from infra.base.tracking import shown

    return shown(uri)
