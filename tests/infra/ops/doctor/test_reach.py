"""What is reached, against real servers on loopback."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest
from s3_server import s3_bucket

from infra.base import storage
from infra.ops.doctor import reach
from infra.ops.doctor.finding import guarded

NOON = 1_800_000_000.0


class Answers(BaseHTTPRequestHandler):
    """MLflow's two pages, another program's under /other, and a fixed time."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write({"/health": b"OK", "/version": b"3.1.0"}.get(self.path, b"<html>"))

    def do_HEAD(self) -> None:
        self.send_response(403)
        self.end_headers()

    def date_time_string(self, timestamp: float | None = None) -> str:
        return formatdate(NOON, usegmt=True)

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    found = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


@pytest.fixture
def nobody() -> Iterator[int]:
    """A port at which connections are refused."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        yield int(probe.getsockname()[1])


def test_rights_on_s3_and_nothing_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    with s3_bucket("doctor") as bucket:
        found = reach.rights(f"{bucket}/root")
        assert (found.state, "write only once" in found.text) == ("ok", True)
        assert list(storage.list_files(bucket)) == []
        monkeypatch.setattr(storage, "remove", lambda url: None)
        kept = reach.rights(f"{bucket}/root")
        assert (kept.state, kept.fix) == ("fault", "allow s3:DeleteObject")
        monkeypatch.setattr(storage, "write_new", lambda url, data: True)
        assert "conditional puts" in reach.rights(f"{bucket}/root").fix
        absent = guarded("storage", lambda: reach.rights("s3://nobodys/root"))
        assert absent.state == "fault"
        assert "there is no bucket 'nobodys'" in absent.text


def test_rights_on_a_folder(tmp_path: Path) -> None:
    assert reach.rights(str(tmp_path)).state == "ok"
    assert not list(tmp_path.iterdir())
    assert reach.rights(str(tmp_path / "later")).state == "unasked"
    assert not list(tmp_path.iterdir())


def test_the_tracking_server(server: str, nobody: int) -> None:
    assert reach.mlflow_server(None).state == "ok"
    assert reach.mlflow_server(server).text == f"{server} answers: MLflow 3.1.0"
    assert reach.mlflow_server(f"{server}/other").text.endswith("answers, but not as MLflow")
    told = reach.mlflow_server(f"http://me:s3cret@127.0.0.1:{nobody}")
    assert (told.state, "s3cret" in str(told)) == ("fault", False)


def test_the_cluster(server: str, nobody: int) -> None:
    assert "commands start a session of this machine" in reach.ray_cluster(None, {}).text
    listening = server.removeprefix("http://")
    assert reach.ray_cluster(None, {"RAY_ADDRESS": listening}).text == f"{listening} listens, no token"
    gone = reach.ray_cluster(None, {"RAY_ADDRESS": f"127.0.0.1:{nobody}"})
    assert (gone.state, "refused" in gone.text) == ("fault", True)
    other = guarded("ray", lambda: reach.ray_cluster(server, {}))
    assert (other.state, "not as a Ray dashboard" in other.text) == ("fault", True)


@pytest.mark.parametrize(
    ("off", "state", "says"),
    [
        (0, "ok", "within 30 s"),
        (-29, "ok", "within"),
        (45, "warning", "45 s ahead"),
        (-400, "fault", "400 s behind"),
    ],
)
def test_the_time_of_a_server_that_refuses_counts(server: str, off: float, state: str, says: str) -> None:
    found = reach.clock([server], now=NOON + off)
    assert found.state == state
    assert says in found.text


def test_without_a_server_the_time_is_not_asked(nobody: int) -> None:
    assert reach.clock([]).state == "unasked"
    assert reach.clock([f"http://127.0.0.1:{nobody}"]).state == "unasked"


def test_whom_the_time_is_asked() -> None:
    outer = {"AWS_REGION": "eu-west-1", "RAY_ADDRESS": "http://ray:8265"}
    asked = reach.time_servers("s3://b/r", "http://u:p@mlflow", None, outer)
    assert asked == ["https://s3.eu-west-1.amazonaws.com", "http://mlflow", "http://ray:8265"]
    assert (
        reach.time_servers(
            "/root", "sqlite:///x", None, {"AWS_ENDPOINT_URL": "http://s3", "RAY_ADDRESS": "a:1"}
        )
        == []
    )
    assert reach.time_servers("s3://b/r", None, None, {"AWS_ENDPOINT_URL": "http://s3"}) == ["http://s3"]
