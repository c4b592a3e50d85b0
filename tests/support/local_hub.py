"""A Hugging Face Hub on this machine: as much of its protocol as `push_to_hub` and `from_pretrained` speak."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c" * 40
RESOLVED = re.compile(r"/([^/]+/[^/]+)/resolve/[^/]+/(.+)")
API = re.compile(r"/api/models/([^/]+/[^/]+?)(?:/(preupload|commit|revision|tree)/[^/]+)?")


class LocalHub(ThreadingHTTPServer):
    """Repositories of models, one commit each, in memory."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.repositories: dict[str, dict[str, bytes]] = {}

    @property
    def url(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def local_hub() -> Iterator[LocalHub]:
    """A running hub, stopped at the end."""
    hub = LocalHub()
    thread = Thread(target=hub.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        hub.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: LocalHub
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path, repositories = urlsplit(self.path).path, self.server.repositories
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = f"{asked['organization']}/{asked['name']}"
            repositories.setdefault(name, {})
            self._json({"url": f"{self.server.url}/{name}", "id": name})
        elif path == "/api/validate-yaml":
            self._json({"errors": [], "warnings": []})
        elif (found := API.fullmatch(path)) and found[2] == "preupload":
            names = [file["path"] for file in json.loads(body)["files"]]
            self._json(
                {"files": [{"path": n, "uploadMode": "regular", "shouldIgnore": False} for n in names]}
            )
        elif found and found[2] == "commit":
            for line in map(json.loads, body.splitlines()):
                if line["key"] == "file":
                    value = line["value"]
                    repositories[found[1]][value["path"]] = base64.b64decode(value["content"])
            self._json({"commitUrl": f"{self.server.url}/{found[1]}/commit/{COMMIT}", "commitOid": COMMIT})
        else:
            self._absent()

    def do_GET(self) -> None:
        path, repositories = unquote(urlsplit(self.path).path), self.server.repositories
        if (found := RESOLVED.fullmatch(path)) and found[2] in repositories.get(found[1], {}):
            content = repositories[found[1]][found[2]]
            headers = {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
            self._send(200, content, headers)
        elif (found := API.fullmatch(path)) and found[1] in repositories and found[2] == "tree":
            sizes = {name: len(content) for name, content in repositories[found[1]].items()}
            self._json([{"type": "file", "path": n, "size": s, "oid": "0" * 40} for n, s in sizes.items()])
        elif found and found[1] in repositories:
            siblings = [{"rfilename": name} for name in repositories[found[1]]]
            self._json({"id": found[1], "sha": COMMIT, "siblings": siblings, "tags": [], "downloads": 0})
        else:
            self._absent()

    do_HEAD = do_GET  # noqa: N815  # as the base class spells it

    def log_message(self, format: str, *args: object) -> None:
        """Nothing: a test's output is its own."""

    def _json(self, tree: object) -> None:
        self._send(200, json.dumps(tree).encode(), {"Content-Type": "application/json"})

    def _absent(self) -> None:
        self._send(404, b"", {"X-Error-Code": "EntryNotFound"})

    def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
