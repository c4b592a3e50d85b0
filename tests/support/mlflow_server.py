"""A real MLflow server on loopback, and a door before it that can be shut."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

START_S = 180.0


class MlflowServer:
    """`mlflow server` with sqlite in a folder; it takes long to start, so start it once."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = int(probe.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        environment = os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "GIT_PYTHON_REFRESH": "quiet"}
        environment["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # of language models: a process each
        command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--workers", "1"]
        command += ["--port", str(self.port), "--backend-store-uri", f"sqlite:///{folder}/mlflow.db"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        self.output = (folder / "server.log").open("wb")
        self.process = subprocess.Popen(
            command, stdout=self.output, stderr=subprocess.STDOUT, env=environment, cwd=folder,
            start_new_session=True,
        )  # fmt: skip
        self._wait(folder)

    def _wait(self, folder: Path) -> None:
        end = time.monotonic() + START_S
        while time.monotonic() < end and self.process.poll() is None:
            with suppress(OSError), urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                if answer.status == 200:
                    return
            time.sleep(0.2)
        self.stop()
        raise RuntimeError((folder / "server.log").read_text()[-2000:])

    def stop(self) -> None:
        """End it with its workers, which are in a session of its own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, 15)
        self.process.wait()
        self.output.close()


@contextmanager
def mlflow_start(root: Path, artifacts: str) -> Iterator[str]:
    """The URI of a server that `oacir mlflow start` runs.

    Args:
        root: a folder for its database.
        artifacts: URL of its artifacts.
    """
    command = [sys.executable, "-m", "infra.cli", "mlflow", "start", "--port", "0"]
    command += ["--root", str(root), "--artifacts", artifacts]
    repository = Path(__file__).parents[2]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=repository)
    try:
        assert server.stderr is not None
        found = re.match(r"MLflow serves at (\S+) ", server.stderr.readline())
        assert found
        yield found[1]
    finally:
        server.terminate()
        server.wait(60)


class Door:
    """A port that leads to another one while it is open, and refuses connections while it is shut."""

    def __init__(self, port: int) -> None:
        self.behind = ("127.0.0.1", port)
        self.socket = self._bound(0)
        self.port = int(self.socket.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"
        self.connections: list[socket.socket] = []
        self.lose_next = False
        """Whether the connection that the next bytes come by breaks before they are passed on."""

    def _bound(self, port: int) -> socket.socket:
        bound = socket.socket()
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(("127.0.0.1", port))  # bound and not listening: connections are refused
        return bound

    def open(self) -> None:
        self.socket.listen()
        threading.Thread(target=self._accept, args=(self.socket,), daemon=True).start()

    def shut(self) -> None:
        # a thread in accept() keeps a closed socket alive
        with suppress(OSError):
            self.socket.shutdown(socket.SHUT_RDWR)
        self.socket.close()
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self.connections.clear()
        self.socket = self._bound(self.port)

    def _accept(self, listening: socket.socket) -> None:
        while True:
            try:
                outside, _ = listening.accept()
            except OSError:
                return
            inside = socket.create_connection(self.behind)
            self.connections += [outside, inside]
            for a, b in ((outside, inside), (inside, outside)):
                threading.Thread(target=self._pass, args=(a, b), daemon=True).start()

    def _pass(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                if self.lose_next:
                    self.lose_next = False
                    break
                target.sendall(data)
        for end in (source, target):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
