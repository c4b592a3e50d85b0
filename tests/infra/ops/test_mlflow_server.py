"""`oacir mlflow start`: a real server, real signals, artifacts on a real S3 server."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import psutil
import pydantic
import pytest
from s3_server import s3_bucket

from infra.base import storage
from infra.base.command import Context
from infra.base.errors import OacirError
from infra.ops.mlflow_server import StartRecipe, environment, is_loopback, start

REPOSITORY = Path(__file__).parents[3]


@pytest.mark.slow
def test_it_serves_says_where_and_ends_with_all_its_processes(tmp_path: Path) -> None:
    with s3_bucket("artifacts") as bucket:
        command = [sys.executable, "-m", "infra.cli", "mlflow", "start", "--port", "0"]
        command += ["--root", str(tmp_path), "--artifacts", f"{bucket}/files"]
        server = subprocess.Popen(
            command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
        )
        try:
            assert server.stderr is not None
            line = server.stderr.readline()
            found = re.match(r"MLflow serves at (http://127\.0\.0\.1:\d+) \(database and log in (\S+),", line)
            assert found, line + server.stderr.read()
            uri, folder = found.groups()
            assert folder == str(tmp_path / "mlflow")
            assert (tmp_path / "mlflow" / "mlflow.db").is_file()
            _use(uri, bucket, tmp_path)
            children = psutil.Process(server.pid).children(recursive=True)
            assert children
            words = [word for child in children for word in child.cmdline()]
            assert "--artifacts-destination" in words
            assert not any("mlflow.db" in word for word in words)  # other databases' URIs hold a password
            server.send_signal(signal.SIGTERM)
            out, err = server.communicate(timeout=60)
        finally:
            server.kill()
        assert server.returncode == 0, err
        assert out.startswith(f"ended the server of {uri}; the same command starts it again: ")
        assert not [child for child in children if child.is_running()]


def _use(uri: str, bucket: str, folder: Path) -> None:
    """A run with a file: it goes to S3 through the server, this process calls nobody else."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(uri)
    run = client.create_run("0")
    client.log_text(run.info.run_id, "hello", "note.txt")
    (found,) = [f.path for f in storage.list_files(f"{bucket}/files")]
    assert found.endswith(f"{run.info.run_id}/artifacts/note.txt")
    assert storage.read_bytes(f"{bucket}/files/{found}") == b"hello"


def test_what_others_can_reach_has_to_be_said(tmp_path: Path) -> None:
    with pytest.raises(
        pydantic.ValidationError, match=r"host 0\.0\.0\.0 can be reached by others, .* --public"
    ):
        StartRecipe(host="0.0.0.0")
    with pytest.raises(pydantic.ValidationError, match="allowed_hosts"):
        StartRecipe(host="0.0.0.0", public=True)
    with pytest.raises(pydantic.ValidationError, match="no effect"):
        StartRecipe(public=True)
    told = StartRecipe(host="0.0.0.0", public=True, allowed_hosts=("team.example.org:5000",), port=0)
    outcome = start(told, Context(root=str(tmp_path), dry_run=True))
    assert outcome.figures["uri"].startswith("http://0.0.0.0:")
    assert [is_loopback(h) for h in ("localhost", "127.0.0.2", "::1", "10.0.0.1", "team.example.org")] == [
        True, True, True, False, False,
    ]  # fmt: skip


def test_a_taken_port_is_one_line(tmp_path: Path) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(OacirError, match=r"127\.0\.0\.1:\d+: .*in use; another server may run there"):
            start(StartRecipe(port=other.getsockname()[1]), Context(root=str(tmp_path)))
    assert not list(tmp_path.iterdir())


def test_a_database_needs_a_folder_of_this_machine() -> None:
    with pytest.raises(OacirError, match=r"s3://b/r/mlflow: a database needs a folder of this machine"):
        start(StartRecipe(port=0), Context(root="s3://b/r"))


def test_the_server_calls_the_same_store() -> None:
    assert environment({"AWS_ENDPOINT_URL": "http://a"})["MLFLOW_S3_ENDPOINT_URL"] == "http://a"
    own = environment({"AWS_ENDPOINT_URL": "http://a", "MLFLOW_S3_ENDPOINT_URL": "http://b"})
    assert own["MLFLOW_S3_ENDPOINT_URL"] == "http://b"
    assert "MLFLOW_S3_ENDPOINT_URL" not in environment({})
