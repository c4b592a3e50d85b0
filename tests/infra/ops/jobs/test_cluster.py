"""The address and the token of a cluster, against a server that answers as a dashboard or not at all."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from infra.base.errors import OacirError, RecipeError
from infra.ops.jobs.cluster import connect, find_address, find_token


def test_the_flag_goes_before_the_variables() -> None:
    outer = {"RAY_API_SERVER_ADDRESS": "http://api:1", "RAY_ADDRESS": "https://ray:2/"}
    assert find_address("http://flag:3", outer) == ("http://flag:3", "--address")
    assert find_address(None, outer) == ("http://api:1", "RAY_API_SERVER_ADDRESS")
    del outer["RAY_API_SERVER_ADDRESS"]
    assert find_address(None, outer) == ("https://ray:2", "RAY_ADDRESS")
    assert find_address(None, {}) == ("http://127.0.0.1:8265", "the default")


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "ray://10.0.0.1:10001", "auto", "local", "http://"])
def test_an_address_for_drivers_is_none_for_jobs(address: str) -> None:
    with pytest.raises(RecipeError, match=f"RAY_ADDRESS {address}: jobs are submitted to the dashboard"):
        find_address(None, {"RAY_ADDRESS": address})


def test_where_a_token_comes_from(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("of the file\n")
    file.chmod(0o600)
    outer = {"RAY_AUTH_TOKEN": "direct", "RAY_AUTH_TOKEN_PATH": str(file), "HOME": str(tmp_path)}
    assert find_token(outer) == ("direct", "RAY_AUTH_TOKEN")
    del outer["RAY_AUTH_TOKEN"]
    assert find_token(outer) == ("of the file", f"RAY_AUTH_TOKEN_PATH {file}")
    assert find_token(outer | {"RAY_AUTH_MODE": "disabled"}) == (None, None)
    own = tmp_path / ".ray" / "auth_token"
    own.parent.mkdir()
    own.write_text("own")
    own.chmod(0o600)
    assert find_token({"HOME": str(tmp_path)}) == (None, None)  # it is some other cluster's
    assert find_token({"HOME": str(tmp_path), "RAY_AUTH_MODE": "token"}) == ("own", str(own))


def test_a_token_that_others_read_or_that_is_not_there(tmp_path: Path) -> None:
    file = tmp_path / "token"
    outer = {"RAY_AUTH_TOKEN_PATH": str(file), "HOME": str(tmp_path)}
    with pytest.raises(OacirError, match="the token cannot be read"):
        find_token(outer)
    file.write_text("x")
    file.chmod(0o640)
    with pytest.raises(OacirError, match=r"others may read this token \(mode 0640\); chmod 600"):
        find_token(outer)
    file.write_text("\n")
    file.chmod(0o600)
    with pytest.raises(OacirError, match="is empty"):
        find_token(outer)
    with pytest.raises(OacirError, match="RAY_AUTH_MODE is token, and there is none"):
        find_token({"RAY_AUTH_MODE": "token", "HOME": str(tmp_path)})


class Answers(BaseHTTPRequestHandler):
    """Answers by the path: /STATUS/… with that status, else a page."""

    def do_GET(self) -> None:
        first = self.path.split("/")[1]
        self.send_response(int(first) if first.isdigit() else 200)
        self.end_headers()
        self.wfile.write(b"<html>")

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    found = HTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=found.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{found.server_port}"
    found.shutdown()
    found.server_close()


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("", "answers, but not as a Ray dashboard"),
        ("/500", "answers 500, as no Ray dashboard does"),
        ("/401", "asks for a token, and none was sent; set RAY_AUTH_TOKEN"),
    ],
)
def test_another_program_there_is_one_line(server: str, path: str, says: str) -> None:
    with pytest.raises(OacirError, match=says) as caught:
        connect(f"{server}{path}", {})
    assert "\n" not in str(caught.value)


def test_a_refused_token_is_named_and_not_told(server: str) -> None:
    with pytest.raises(OacirError, match="refuses the token of RAY_AUTH_TOKEN") as caught:
        connect(f"{server}/403", {"RAY_AUTH_TOKEN": "s3cret"})
    assert "s3cret" not in str(caught.value)


def test_nobody_there_is_one_line() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{probe.getsockname()[1]}"
        with pytest.raises(
            OacirError, match=r"\(from RAY_ADDRESS\): no Ray cluster answers there \(.*refused"
        ):
            connect(None, {"RAY_ADDRESS": url})
