"""The servers of a set-up: how each is started, and when it is ready."""

from __future__ import annotations

import json
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.base.ray_session import QUIET, WORKER_ENVIRONMENT, has_gpu

BUCKET = "oacir"
TEMPORARY = Path("/tmp/oacir-site-")
"""How the folders of Ray's files begin."""
STORE_BYTES = 256 << 20
ASK_S = 5.0


@dataclass(frozen=True)
class Server:
    """One process."""

    name: str
    command: tuple[str, ...]
    ready: Callable[[], bool]
    """Asked again until it says so."""
    again: bool = False
    """Whether it may be started again when it ends by itself: nothing is lost with it that others need."""


@dataclass(frozen=True)
class Ports:
    """Where each listens."""

    s3: int
    mlflow: int
    dashboard: int
    gcs: int
    client: int
    agents: tuple[int, ...]
    """A port for each Ray node's agent."""


@dataclass(frozen=True)
class Site:
    """A set-up: its places, its token, and the variables that lead to it."""

    folder: Path
    host: str
    """Address of Ray's nodes."""
    ports: Ports
    token_file: Path
    nodes: int
    """Ray nodes that work, beside the head, which does not."""
    cpus: int
    """Logical CPUs of each."""

    @property
    def dashboard(self) -> str:
        """URL that jobs are submitted to."""
        return f"http://127.0.0.1:{self.ports.dashboard}"

    @property
    def variables(self) -> dict[str, str]:
        """What a shell needs to use it; no secret among them but the keys of the S3 server, which takes any."""
        return {
            "AWS_ENDPOINT_URL": f"http://127.0.0.1:{self.ports.s3}",
            "AWS_ACCESS_KEY_ID": "local",
            "AWS_SECRET_ACCESS_KEY": "local",
            "AWS_DEFAULT_REGION": "us-east-1",
            "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{self.ports.mlflow}",
            "RAY_API_SERVER_ADDRESS": self.dashboard,
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.token_file),
        }

    def environment(self, outer: Mapping[str, str]) -> dict[str, str]:
        """Variables of every server. `python` is this interpreter, also in jobs; without a GPU nodes share cores."""
        inherited = {
            k: v for k, v in outer.items() if k not in ("RAY_ADDRESS", "RAY_AUTH_TOKEN", "PYTHONPATH")
        }
        path = f"{Path(sys.executable).parent}:{outer.get('PATH', '')}"
        nodes = QUIET | ({} if has_gpu() else WORKER_ENVIRONMENT)
        return inherited | nodes | self.variables | {"PATH": path}

    def servers(self) -> list[Server]:
        """In the order in which they are started: each needs those before it."""
        return [self._s3(), self._mlflow(), self._head(), *(self._node(n) for n in range(1, self.nodes + 1))]

    def _s3(self) -> Server:
        place = ("-H", "127.0.0.1", "-p", str(self.ports.s3))
        return Server("s3", (sys.executable, "-m", "moto.server", *place), self._bucket)

    def _mlflow(self) -> Server:
        command = (
            sys.executable, "-m", "infra.cli", "mlflow", "start", "--port", str(self.ports.mlflow),
            "--folder", str(self.folder / "mlflow"), "--artifacts", f"s3://{BUCKET}/mlflow",
        )  # fmt: skip
        health = f"http://127.0.0.1:{self.ports.mlflow}/health"
        return Server("mlflow", command, lambda: _answers(health), again=True)

    def _head(self) -> Server:
        command = (
            *self._ray(0), "--head", "--port", str(self.ports.gcs), "--num-cpus", "0",
            "--dashboard-host", "127.0.0.1", "--dashboard-port", str(self.ports.dashboard),
            "--ray-client-server-port", str(self.ports.client),
        )  # fmt: skip
        return Server("ray-head", command, lambda: self._alive() == 1)

    def _node(self, number: int) -> Server:
        address = ("--address", f"{self.host}:{self.ports.gcs}", "--num-cpus", str(self.cpus))
        command = (*self._ray(number), *address)
        return Server(f"ray-node-{number}", command, lambda: self._alive() == number + 1, again=True)

    @property
    def temporary(self) -> Path:
        """Ray's files, a folder for each node; a short path, since sockets lie in it."""
        return TEMPORARY.with_name(f"{TEMPORARY.name}{self.ports.gcs}")

    def _ray(self, number: int) -> tuple[str, ...]:
        # Ray unpacks a job's code anew for each node: in one folder it would take it from under those that run
        own = ("--temp-dir", str(self.temporary / str(number)))
        agent = ("--dashboard-agent-listen-port", str(self.ports.agents[number]))
        store = ("--object-store-memory", str(STORE_BYTES), "--disable-usage-stats", "--block")
        return (sys.executable, "-m", "ray.scripts.scripts", "start", *own, *agent, *store)

    def _bucket(self) -> bool:
        request = urllib.request.Request(f"http://127.0.0.1:{self.ports.s3}/{BUCKET}", method="PUT")
        try:
            urllib.request.urlopen(request, timeout=ASK_S).close()
        except OSError:
            return False
        return True

    def _alive(self) -> int:
        """Ray nodes that the head knows and hears."""
        token = self.token_file.read_text().strip()
        url = f"{self.dashboard}/nodes?view=summary"
        request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"})
        try:
            with urllib.request.urlopen(request, timeout=ASK_S) as answer:
                rows = json.load(answer)["data"]["summary"]
        except (OSError, ValueError, KeyError):
            return 0
        return sum(row.get("raylet", {}).get("state") == "ALIVE" for row in rows)


def _answers(url: str) -> bool:
    try:
        urllib.request.urlopen(url, timeout=ASK_S).close()
    except OSError:
        return False
    return True
