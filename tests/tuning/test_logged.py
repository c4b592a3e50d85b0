"""What a sweep tells MLflow of trials whose runs were found, while the server is away."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from mlflow_server import MlflowServer
from small_benchmark import write_benchmark
from small_sweep import ended, sweep

from infra.base.command import Context
from infra.base.spool import FOLDER, Spool
from infra.base.versions import start
from infra.ops.mlflow_sync import SyncRecipe, sync
from tuning.logged import SweepLog, trial_spools
from tuning.records import write
from tuning.sweep import Plan, _run

SPACE = {"training.seed": {"kind": "grid", "values": [0]}}
SHUT = "http://127.0.0.1:9"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")


def away(book: SweepLog) -> None:
    """Wait until it knows that its server is away."""
    assert book.tracker is not None
    deadline = time.monotonic() + 30
    while book.tracker.error is None and time.monotonic() < deadline:
        time.sleep(0.05)


@pytest.mark.slow
def test_a_found_trial_waits_no_minute_of_its_own_and_is_sent_by_the_command_that_is_named(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    recipe = sweep(SPACE, {"tracking": {"experiment": "away"}}, algorithm={"kind": "grid"})
    draft = start("sweeps", "sweep", "key", recipe, root=str(tmp_path))
    book = SweepLog(recipe, draft, SHUT)
    away(book)
    record = ended(0, {"training.seed": 0}, avg=1.0).model_copy(update={"found": True})
    write(draft.url, record)
    began = time.monotonic()
    book.ended(record)
    assert time.monotonic() - began < 30
    book.close("KILLED", 0.0)
    book.send_trials()
    own, trials = book.line()
    assert re.match(r"warning: \d of \d records are not in MLflow at http://127", own)
    assert re.match(
        r"warning: 6 records of 1 trial are not in MLflow \(MLflow at http://127.0.0.1:9: ", trials
    )
    place = trials.partition("`oacir mlflow sync --runs ")[2].partition("`")[0]
    outcome = sync(SyncRecipe(runs=[place], mlflow_uri=mlflow_server.uri), Context(root=str(tmp_path)))
    assert outcome.figures["runs"] == 2
    for _, spool in trial_spools(draft.url):
        assert spool.sent(mlflow_server.uri)[1] == len(spool.records) == 6


@pytest.mark.slow
def test_what_a_trial_could_not_send_is_sent_at_the_end_of_the_sweep(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    recipe = sweep(SPACE, {"tracking": {"experiment": "back"}}, algorithm={"kind": "grid"})
    draft = start("sweeps", "sweep", "key", recipe, root=str(tmp_path))
    book = SweepLog(recipe, draft, mlflow_server.uri)
    run = f"{tmp_path}/runs/small/0"
    Spool(f"{run}/{FOLDER}").begin("back", "sweep 0", book.spool_id)
    write(draft.url, ended(0, {"training.seed": 0}, avg=1.0).model_copy(update={"run": run}))
    book.close("FINISHED")
    book.send_trials()
    assert Spool(f"{run}/{FOLDER}").sent(mlflow_server.uri)[1] == 1
    assert [line.split()[:2] for line in book.line()] == [["MLflow", "run"]]


@pytest.mark.slow
def test_a_trial_that_a_killed_driver_kept_and_did_not_tell_is_told_once(
    mlflow_server: MlflowServer, tmp_path: Path
) -> None:
    recipe = sweep(SPACE, {"tracking": {"experiment": "kept"}}, algorithm={"kind": "grid"})
    draft = start("sweeps", "sweep", "key", recipe, root=str(tmp_path))
    write(draft.url, ended(0, {"training.seed": 0}, avg=1.0).model_copy(update={"found": True}))
    plan = Plan(recipe, write_benchmark(tmp_path, identities=6), None, "key", 1)
    counts = []
    for _ in range(2):
        book = SweepLog(recipe, draft, mlflow_server.uri)
        assert [r.number for r in _run(plan, draft, Context(root=str(tmp_path)), book)] == [0]
        book.close("FINISHED")
        told = [r for r in Spool(draft.path(FOLDER)).records if r["kind"] == "metrics"]
        assert [(r["group"], r["step"], r["values"]) for r in told] == [("trial", 0, {"trial/avg": 1.0})]
        ((_, short),) = trial_spools(draft.url)
        counts.append(len(short.records))
    assert counts == [6, 6]


def test_a_run_that_stands_under_another_sweep_goes_along_with_that_one(tmp_path: Path) -> None:
    recipe = sweep(SPACE, algorithm={"kind": "grid"})
    draft = start("sweeps", "sweep", "key", recipe, root=str(tmp_path))
    above = Spool(draft.path(FOLDER))
    above.begin("e", "sweep")
    for number, parent in enumerate((above.run["id"], "another", None)):
        run = f"{tmp_path}/runs/small/{number}"
        Spool(f"{run}/{FOLDER}").begin("e", "run", parent)
        write(draft.url, ended(number, {}, avg=1.0).model_copy(update={"run": run}))
    assert [url[-1] for url, _ in trial_spools(draft.url)] == ["0", "2"]
