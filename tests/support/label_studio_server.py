"""A real Label Studio on loopback, and what a person's browser does there, over its API."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from infra.ops.processes import free_ports

TOKEN = "0123456789abcdef0123456789abcdef01234567"


class LabelStudio:
    def __init__(self, url: str) -> None:
        self.url = url

    def call(self, method: str, path: str, body: Any = None) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Token {TOKEN}", "Content-Type": "application/json"}
        request = urllib.request.Request(self.url + path, data, headers, method=method)
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                text = answer.read()
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{method} {path}: {error.code} {error.read()[:500]!r}") from error
        return json.loads(text) if text else None

    def get(self, path: str) -> tuple[int, bytes]:
        request = urllib.request.Request(self.url + path, headers={"Authorization": f"Token {TOKEN}"})
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, b""

    def project(self, configuration: str, tasks: list[Any]) -> tuple[int, list[dict[str, Any]]]:
        """A project of a labelling configuration and tasks; its number, and its tasks in their order."""
        made = self.call("POST", "/api/projects/", {"title": "review", "label_config": configuration})
        number = made["id"]
        self.call("POST", f"/api/projects/{number}/import", tasks)
        there = self.call("GET", f"/api/tasks?project={number}&fields=all&page_size=100")["tasks"]
        full = [self.call("GET", f"/api/tasks/{t['id']}/") for t in there]
        return number, sorted(full, key=lambda t: int(t["id"]))

    def person(self, address: str) -> int:
        """Another account."""
        body = {"email": address, "username": address, "password": "a-long-password-9", "first_name": "A"}
        return int(self.call("POST", "/api/users/", body)["id"])

    def submit(
        self, task: dict[str, Any], result: list[Any], person: int | None = None, skip: bool = False
    ) -> int:
        """Submit an annotation, or skip the task; its number."""
        body: dict[str, Any] = {"result": result, "was_cancelled": skip, "lead_time": 8.25}
        if person is not None:
            body["completed_by"] = person
        return int(self.call("POST", f"/api/tasks/{task['id']}/annotations/", body)["id"])

    def export(self, project: int, layout: str) -> Any:
        path = f"/api/projects/{project}/export?exportType={layout}&download_all_tasks=true"
        return self.call("GET", path)


@contextmanager
def label_studio(executable: str, folder: Path, files: Path) -> Iterator[LabelStudio]:
    """Start it, with a database of its own; it serves the files of a folder."""
    [port] = free_ports(1)
    own = {
        "LABEL_STUDIO_BASE_DATA_DIR": str(folder),
        "LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED": "true",
        "LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT": str(files),
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    keep = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    words = ["start", "--no-browser", "--internal-host", "127.0.0.1", "--port", str(port)]
    words += ["--username", "one@example.org", "--password", "a-long-password-9", "--user-token", TOKEN]
    words.append("--enable-legacy-api-token")
    with (folder / "log.txt").open("wb") as log:
        process = subprocess.Popen(
            [executable, *words], env=keep | own, stdout=log, stderr=log, start_new_session=True
        )
        try:
            server = LabelStudio(f"http://127.0.0.1:{port}")
            end = time.monotonic() + 600  # its migrations alone take a minute on an idle machine
            while process.poll() is None and time.monotonic() < end:
                try:
                    if server.get("/health")[0] == 200:
                        break
                except (urllib.error.URLError, OSError):
                    time.sleep(1)
            else:
                raise AssertionError((folder / "log.txt").read_text()[-2000:])
            yield server
        finally:
            os.killpg(process.pid, signal.SIGTERM)
            process.wait(60)
