"""Files and data of a run in a real MLflow: each once, whatever was killed, and said where they cannot be sent."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer

from infra.base import tracking
from infra.base.spool import Spool
from infra.base.tracking import Tracker, send

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAUSE_S", 0.02)


def client(server: MlflowServer) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(server.uri)


def write(file: Path, data: bytes) -> tuple[str, str]:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(data)
    return str(file), hashlib.sha256(data).hexdigest()


def content(server: MlflowServer, run_id: str, path: str) -> bytes:
    from mlflow.artifacts import download_artifacts

    return Path(download_artifacts(run_id=run_id, artifact_path=path, tracking_uri=server.uri)).read_bytes()


def test_files_and_data_are_there_once_also_after_lost_answers(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    model, page = write(run / "export" / "model.bin", b"\0\1" * 9), write(tmp_path / "elsewhere.html", b"<p>")

    def tell() -> Tracker:
        tracker = Tracker(Spool(str(run / "tracking")), mlflow_server.uri, "files", "run")
        tracker.file("export/model.bin", *model)
        tracker.file("pages/report.html", *page)  # under another name than it has
        tracker.input("world", "/data/world", "a" * 64, "training", {"files": 3})
        tracker.input("features", "s3://b/features", "b" * 64, "features")
        tracker.text("environment.txt", "python 3\n")
        tracker.tags({"oacir.run": "a/b"})
        assert tracker.close("FINISHED") is None
        return tracker

    first = tell()
    told = len(first.spool.records)
    (run / "tracking" / "sent.json").unlink()  # as if killed before any answer was noted
    again = tell()
    assert again.run_id == first.run_id
    assert len(again.spool.records) == told + 2  # RUNNING and FINISHED, nothing else
    run_id = str(again.run_id)
    assert content(mlflow_server, run_id, "export/model.bin") == b"\0\1" * 9
    assert content(mlflow_server, run_id, "pages/report.html") == b"<p>"
    found = {d.dataset.name: d for d in client(mlflow_server).get_run(run_id).inputs.dataset_inputs}
    assert found.keys() == {"world", "features"}
    assert found["world"].dataset.digest == "a" * 36
    assert f'"content_hash": "{"a" * 64}"' in found["world"].dataset.profile
    assert [(t.key, t.value) for t in found["world"].tags] == [("mlflow.data.context", "training")]
    assert found["features"].dataset.source_type == "s3"


def test_a_run_may_be_moved_before_it_is_sent(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    run = tmp_path / "run"
    tracker = Tracker(Spool(str(run / "tracking")), "http://127.0.0.1:9", "moved", "run")
    tracker.file("history.parquet", *write(run / "history.parquet", b"rows"))
    line = tracker.close("FINISHED", patience_s=0.05)
    assert line is not None
    assert f"`oacir mlflow sync --runs {run}` sends them" in line
    shutil.move(run, tmp_path / "archive")
    spool = Spool(str(tmp_path / "archive" / "tracking"))
    assert send(spool, mlflow_server.uri) == 4
    run_id = str(spool.sent(mlflow_server.uri)[0])
    assert content(mlflow_server, run_id, "history.parquet") == b"rows"


def test_a_file_that_is_gone_or_changed_is_named_and_holds_nothing_up(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    spool = Spool(str(run / "tracking"))
    tracker = Tracker(spool, "http://127.0.0.1:9", "lost", "run")
    gone, changed = write(run / "gone.bin", b"1"), write(run / "changed.bin", b"2")
    tracker.file("gone.bin", *gone)
    tracker.file("changed.bin", *changed)
    tracker.metrics("train", 1, {"loss": 2.0}, 1e9)
    tracker.close("FINISHED", patience_s=0.05)
    Path(gone[0]).unlink()
    Path(changed[0]).write_bytes(b"3")
    later = Tracker(Spool(str(run / "tracking")), mlflow_server.uri, "lost", "run")
    line = later.close("FINISHED")
    assert line is not None
    assert line.startswith("2 files are not in MLflow")
    assert f"gone.bin: no longer lies at {run}/gone.bin" in line
    assert f"changed.bin: {run}/changed.bin was changed after it was noted" in line
    found = client(mlflow_server).get_run(later.run_id)
    assert found.data.metrics == {"train/loss": 2.0}
    assert found.info.status == "FINISHED"
    assert not client(mlflow_server).list_artifacts(later.run_id)


def test_a_run_ends_when_it_ended_and_not_when_it_was_sent(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    spool = Spool(str(tmp_path / "run" / "tracking"))
    spool.append(
        [{"kind": "run", "id": "x1", "experiment": "times", "name": "run", "time_s": 1_700_000_000.0}]
    )
    spool.append([{"kind": "status", "status": "FINISHED", "time_s": 1_700_000_100.5}])
    assert (spool.ended, send(spool, mlflow_server.uri)) == ("FINISHED", 2)
    info = client(mlflow_server).get_run(spool.sent(mlflow_server.uri)[0]).info
    assert (info.start_time, info.end_time) == (1_700_000_000_000, 1_700_000_100_500)
