"""MLflow against a real server: nothing is lost while it is away, nothing is there twice."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import Door, MlflowServer

from infra.base import tracking
from infra.base.errors import OacirError
from infra.base.spool import Spool
from infra.base.tracking import Sender, Tracker, forget_if_gone, metric_name, send, shown, tracking_uri

SHUT = "http://127.0.0.1:9"
"""A port that nobody listens on."""


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracking, "PAUSE_S", 0.02)
    monkeypatch.setattr(tracking, "LONGEST_PAUSE_S", 0.2)


@pytest.fixture
def door(mlflow_server: MlflowServer) -> Iterator[Door]:
    found = Door(mlflow_server.port)
    yield found
    found.shut()
    found.socket.close()


def client(server: MlflowServer) -> Any:
    from mlflow.tracking import MlflowClient

    return MlflowClient(server.uri)


def history(server: MlflowServer, run_id: str, name: str) -> list[tuple[int, float]]:
    return [(m.step, m.value) for m in client(server).get_metric_history(run_id, name)]


def runs(server: MlflowServer, experiment: str) -> list[Any]:
    found = client(server).get_experiment_by_name(experiment)
    return list(client(server).search_runs([found.experiment_id]))


def runs_of(server: MlflowServer, experiment: str) -> list[Any]:
    """Those of an experiment, which may not exist."""
    return runs(server, experiment) if client(server).get_experiment_by_name(experiment) else []


def tell(tracker: Tracker, steps: range) -> None:
    for step in steps:
        tracker.metrics("train", step, {"loss": 10.0 / step}, 1e9 + step)


def gone(folder: Path, uri: str) -> Spool:
    """A spool that was sent to another database at this address."""
    spool = Spool(str(folder))
    spool.begin("anew", folder.name)
    spool.append([{"kind": "status", "status": "RUNNING", "time_s": 1e9}])
    spool.note_sent(uri, "f" * 32, 2)
    return spool


def test_a_database_made_anew_at_the_same_address_gets_all(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    spool = gone(tmp_path / "a", mlflow_server.uri)
    assert send(spool, mlflow_server.uri) == 0
    forget_if_gone(spool, mlflow_server.uri)
    assert send(spool, mlflow_server.uri) == 2
    forget_if_gone(spool, mlflow_server.uri)
    assert send(Spool(spool.url), mlflow_server.uri) == 0
    tracker = Tracker(gone(tmp_path / "b", mlflow_server.uri), mlflow_server.uri, "anew", "b")
    tell(tracker, range(1, 3))
    assert tracker.close("FINISHED") is None
    states = {run.info.run_name: run.info.status for run in runs_of(mlflow_server, "anew")}
    assert states == {"a": "RUNNING", "b": "FINISHED"}
    with pytest.raises(OacirError, match=r"MLflow at http://127\.0\.0\.1:9: .* the records lie in"):
        forget_if_gone(gone(tmp_path / "c", "http://127.0.0.1:9"), "http://127.0.0.1:9")


@pytest.mark.slow
def test_what_is_told_is_there(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    tracker = Tracker(Spool(str(tmp_path)), mlflow_server.uri, "told", "run 1")
    many = {f"p{i}": i for i in range(150)}  # more than a request may hold
    tracker.params({"training": {"rate": 1e-3, "steps": None}, "long": "x" * 7000, "many": many})
    tracker.tags({"oacir.run": "a/b", "note": "y" * 9000})
    tell(tracker, range(1, 1200))
    tracker.metrics("dev", 9, {"a/R_ID@1": 55.5}, 1e9)
    tracker.text("recipe.yaml", "name: é\n")
    assert tracker.close("FINISHED") is None
    run = client(mlflow_server).get_run(tracker.run_id)
    assert (run.info.run_name, run.info.status) == ("run 1", "FINISHED")
    assert run.data.params["training.rate"] == "0.001"
    assert run.data.params["training.steps"] == "null"
    assert run.data.params["many.p149"] == "149"
    assert len(run.data.params["long"]) == tracking.PARAM_LENGTH
    assert run.data.tags["oacir.run"] == "a/b"
    assert len(run.data.tags["note"]) == tracking.TAG_LENGTH
    assert run.data.metrics["dev/a/R_ID_at_1"] == 55.5
    assert history(mlflow_server, run.info.run_id, "train/loss") == [(s, 10.0 / s) for s in range(1, 1200)]
    assert client(mlflow_server).list_artifacts(run.info.run_id)[0].path == "recipe.yaml"


@pytest.mark.slow
def test_a_server_that_comes_late_and_goes_away_misses_nothing(
    mlflow_server: MlflowServer, door: Door, tmp_path: Path
) -> None:
    tracker = Tracker(Spool(str(tmp_path)), door.uri, "late", "run")
    tell(tracker, range(1, 50))
    assert tracker.unsent == 51  # the run, its state and 49 steps
    door.open()
    while tracker.unsent:
        time.sleep(0.01)
    door.shut()
    tell(tracker, range(50, 100))
    tracker.metrics("train", 99, {"loss": -1.0}, 2e9)  # told of again after a lost worker
    assert tracker.unsent == 50
    door.open()
    assert tracker.close("FINISHED") is None
    (run,) = runs(mlflow_server, "late")
    assert history(mlflow_server, run.info.run_id, "train/loss") == [(s, 10.0 / s) for s in range(1, 100)]


@pytest.mark.slow
def test_a_run_that_goes_on_is_one_run_also_after_lost_answers(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    first = Tracker(Spool(str(tmp_path)), mlflow_server.uri, "resumed", "run")
    first.params({"a": 1})
    tell(first, range(1, 6))
    first.close("KILLED")
    (tmp_path / "sent.json").unlink()  # as if killed before any answer was noted
    second = Tracker(Spool(str(tmp_path)), mlflow_server.uri, "resumed", "run")
    second.params({"a": 2})  # MLflow refuses to change one
    tell(second, range(3, 9))
    assert second.close("FINISHED") is None
    (run,) = runs(mlflow_server, "resumed")
    assert run.info.run_id == first.run_id
    assert (run.info.status, run.data.params) == ("FINISHED", {"a": "1"})
    assert history(mlflow_server, run.info.run_id, "train/loss") == [(s, 10.0 / s) for s in range(1, 9)]


@pytest.mark.slow
def test_what_was_not_sent_is_sent_later(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    tracker = Tracker(Spool(str(tmp_path)), SHUT, "later", "run")
    tell(tracker, range(1, 8))
    line = tracker.close("FINISHED", patience_s=0.1)
    assert line is not None
    assert line.startswith(f"10 of 10 records are not in MLflow at {SHUT} (")
    assert line.endswith(
        f"they lie in {tmp_path}, and `oacir mlflow sync --runs {tmp_path.parent}` sends them"
    )
    assert "\n" not in line
    with pytest.raises(OacirError, match=r"the records lie in .*, try again"):
        send(Spool(str(tmp_path)), SHUT)
    assert send(Spool(str(tmp_path)), mlflow_server.uri) == 10
    assert send(Spool(str(tmp_path)), mlflow_server.uri) == 0
    (run,) = runs(mlflow_server, "later")
    assert len(history(mlflow_server, run.info.run_id, "train/loss")) == 7
    assert run.info.status == "FINISHED"


@pytest.mark.slow
def test_a_run_under_another_waits_until_that_one_is_there(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    above, below = Spool(str(tmp_path / "above")), Spool(str(tmp_path / "below"))
    above.begin("nested", "above")
    below.begin("nested", "below", above.run["id"])
    below.append([{"kind": "tags", "values": {"a": "1"}}])
    with pytest.raises(OacirError, match=r"the run above this one .* is not there yet"):
        send(below, mlflow_server.uri)
    assert runs_of(mlflow_server, "nested") == []
    send(above, mlflow_server.uri)
    # a driver that only began it has no record but its own
    assert send(below, mlflow_server.uri) == 2
    found = {run.info.run_name: run for run in runs(mlflow_server, "nested")}
    assert found["below"].data.tags["mlflow.parentRunId"] == found["above"].info.run_id
    assert "mlflow.parentRunId" not in found["above"].data.tags
    assert Spool(str(tmp_path / "below")).run["parent"] == above.run["id"]


def test_one_batch_holds_no_more_than_a_request_may(tmp_path: Path) -> None:
    class Taken:
        def __init__(self) -> None:
            self.batches: list[int] = []

        def log_batch(self, run_id: str, metrics: list[Any]) -> None:
            self.batches.append(len(metrics))

    spool = Spool(str(tmp_path))
    values = {f"m{i}": 0.0 for i in range(400)}
    spool.append([{"kind": "metrics", "step": s, "time_s": 0.0, "values": values} for s in range(5)])
    spool.append([{"kind": "metrics", "step": 9, "time_s": 0.0, "values": {}}])
    sender = Sender(spool, "http://x")
    spool.note_sent("http://x", "run", 0)
    sender._client = taken = Taken()
    sender._looked = True
    while sender.batch():
        pass
    assert taken.batches == [800, 800, 400]


def test_where_to_track(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_uri(None) is None
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://there")
    assert tracking_uri(None) == "http://there"
    assert tracking_uri("http://here") == "http://here"


@pytest.mark.slow
def test_a_connection_that_breaks_as_it_is_used_costs_nothing(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in tracking.ENVIRONMENT:
        monkeypatch.setenv(name, "")  # restored behind the test
        monkeypatch.delenv(name)
    tracking.settle_environment()
    from mlflow.tracking import MlflowClient

    asking = MlflowClient(door.uri)
    door.open()
    assert asking.get_experiment_by_name("of nobody") is None
    door.lose_next = True
    assert asking.get_experiment_by_name("of nobody") is None
    assert not door.lose_next


def test_names_and_addresses_fit_where_they_go() -> None:
    assert metric_name("dev/a b/R_ID@1") == "dev/a b/R_ID_at_1"
    assert metric_name("β (mean)") == "β _mean_"
    assert shown("https://me:secret@host:5000/x") == "https://host:5000/x"
    assert shown("sqlite:////tmp/a.db") == "sqlite:////tmp/a.db"
