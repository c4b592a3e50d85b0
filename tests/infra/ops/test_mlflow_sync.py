"""`oacir mlflow sync` against a real server: what was left open, what was left unsent, and scores beside it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from mlflow_server import MlflowServer
from small_root import make_root, make_run

from infra.base import storage
from infra.base.command import Context
from infra.base.errors import OacirError, RecipeError
from infra.base.spool import FOLDER, Spool
from infra.base.versions import Version, resolve
from infra.ops.mlflow_sync import SyncRecipe, sync
from training.logged import by_epoch, mended, mending

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"
    )  # whoever asked for more before in this process


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_root(tmp_path_factory.mktemp("root"))


def killed_driver(run: Version) -> Spool:
    """What lies there after a driver was killed between the run's manifest and its last words."""
    spool = Spool(run.path(FOLDER))
    spool.begin("sync", run.manifest.name)
    spool.append([{"kind": "status", "status": "RUNNING", "time_s": 1e9}])
    values = {"train/loss": 2.5}
    spool.append([{"kind": "metrics", "group": "train", "step": 20, "time_s": 1e9, "values": values}])
    return spool


def found_run(server: MlflowServer, spool: Spool) -> Any:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(server.uri)
    experiment = client.get_experiment_by_name("sync")
    tag = f"tags.`oacir.spool` = '{spool.run['id']}'"
    (run,) = client.search_runs([experiment.experiment_id], tag)
    return run


def test_a_run_left_running_is_ended_with_its_results_once(
    mlflow_server: MlflowServer, context: Context
) -> None:
    from mlflow.tracking import MlflowClient

    run = resolve(context.root, "runs", "adafocal")
    card = run.path("export", "README.md")
    storage.write_bytes(card, b"# card")  # the small root's runs have none
    killed_driver(run)
    recipe = SyncRecipe(runs=["adafocal"], mlflow_uri=mlflow_server.uri)
    outcome = sync(recipe, context)
    spool = Spool(run.path(FOLDER))
    assert outcome.figures["records"] == len(spool.records) > 8
    assert outcome.details[0].endswith("(FINISHED)")
    found = found_run(mlflow_server, spool)
    assert found.info.status == "FINISHED"
    assert found.data.metrics["train/loss"] == 2.5
    assert found.data.metrics["run/loss"] == 0.625
    client = MlflowClient(mlflow_server.uri)
    rows = run.table("history").to_pylist()
    means = [sum(r["loss"] for r in rows if r["epoch"] == e) / 10 for e in range(4)]
    told = client.get_metric_history(found.info.run_id, "epoch/loss")
    assert [m.step for m in told] == [0, 1, 2, 3]
    assert [m.value for m in told] == pytest.approx(means)
    dev = client.get_metric_history(found.info.run_id, "epoch/dev/product/R_ID_at_1")
    assert [(m.step, m.value) for m in dev] == [(1, 20.0), (2, 40.0)]
    names = {f.path for f in client.list_artifacts(found.info.run_id)}
    assert names == {"model_card.md", "history.parquet", "dev.parquet"}
    assert sync(recipe, context).figures["records"] == 0
    assert mending(run, mlflow_server.uri) == ()


def test_a_command_with_nothing_to_do_mends_it_too(mlflow_server: MlflowServer, context: Context) -> None:
    run = resolve(context.root, "runs", "beta0")
    storage.write_bytes(run.path("export", "README.md"), b"# card")
    assert mending(run, mlflow_server.uri) == ()  # never tracked
    spool = killed_driver(run)
    assert mending(run, None) == ()
    (line,) = mending(run, "http://127.0.0.1:9")
    assert line.startswith("warning: MLflow at http://127.0.0.1:9: ")
    (line,) = mending(run, mlflow_server.uri)
    count = len(Spool(run.path(FOLDER)).records)
    assert line == f"{count:,} records that MLflow lacked of this run were sent"
    assert found_run(mlflow_server, spool).info.status == "FINISHED"


def test_an_unfinished_run_stays_running(mlflow_server: MlflowServer, tmp_path: Path) -> None:
    spool = Spool(str(tmp_path / "runs" / "half" / "k" / FOLDER))
    spool.begin("sync", "half")
    spool.append([{"kind": "status", "status": "RUNNING", "time_s": 1e9}])
    outcome = sync(SyncRecipe(runs=["half"], mlflow_uri=mlflow_server.uri), Context(root=str(tmp_path)))
    assert outcome.details[0].endswith("(not ended, stays RUNNING)")
    assert found_run(mlflow_server, spool).info.status == "RUNNING"


def test_scores_and_pages_are_put_beside_a_run(
    mlflow_server: MlflowServer, context: Context, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    from pipelines.retrieval.config import EvaluateRecipe
    from pipelines.retrieval.evaluate import evaluate

    dataset = resolve(context.root, "datasets", "benchmark")
    run = make_run(context.root, dataset, "scored", "none", seed=0)
    storage.write_bytes(run.path("export", "README.md"), b"# card")
    spool = killed_driver(run)
    asked = EvaluateRecipe(name="scored", model="scored", dataset="benchmark", bootstrap_samples=100)
    figures = evaluate(asked, context).figures
    page = tmp_path / "report.html"
    page.write_text("<h1>report</h1>")
    recipe = SyncRecipe(
        runs=["scored"], mlflow_uri=mlflow_server.uri, evaluations=["scored"], files=[str(page)]
    )
    sync(recipe, context)
    assert sync(recipe, context).figures["records"] == 0
    found = found_run(mlflow_server, spool)
    assert found.info.status == "FINISHED"
    for domain, part in figures["domains"].items():
        value = part["metrics"]["R_ID@1"]["value"]
        assert found.data.metrics[f"test/benchmark/{domain}/R_ID_at_1"] == pytest.approx(value)
    overall = figures["overall"]["metrics"]["Avg"]["value"]
    assert found.data.metrics["test/benchmark/mean/Avg"] == pytest.approx(overall)
    client = MlflowClient(mlflow_server.uri)
    assert [f.path for f in client.list_artifacts(found.info.run_id, "pages")] == ["pages/report.html"]
    assert client.list_artifacts(found.info.run_id, "evaluations/scored")
    contexts = {d.tags[0].value for d in found.inputs.dataset_inputs}
    assert contexts == {"test"}
    with pytest.raises(OacirError, match="evaluates none of the runs named"):
        sync(recipe.model_copy(update={"runs": ["adafocal"], "files": []}), context)


def test_the_model_goes_along_where_the_recipe_asked_for_it(
    mlflow_server: MlflowServer, context: Context, tmp_path: Path
) -> None:
    from mlflow.tracking import MlflowClient

    dataset = resolve(context.root, "datasets", "benchmark")
    made = make_run(context.root, dataset, "whole", "none")
    storage.write_bytes(made.path("export", "README.md"), b"# card")
    recipe = {"tracking": {"log_model": True}}
    run = Version(made.url, made.manifest.model_copy(update={"recipe": recipe}))
    spool = killed_driver(run)
    assert mended(run, mlflow_server.uri)
    client = MlflowClient(mlflow_server.uri)
    run_id = found_run(mlflow_server, spool).info.run_id
    names = {f.path: f.file_size for f in client.list_artifacts(run_id, "export")}
    weights = next(f for f in run.manifest.files if f.path.endswith("model.safetensors"))
    assert names[weights.path] == weights.size_bytes
    assert "export/config.json" in names


def test_what_is_missing_is_said_in_one_line(
    context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(RecipeError, match="mlflow_uri is null: name the server"):
        sync(SyncRecipe(runs=["adafocal"]), context)
    with pytest.raises(OacirError, match="nothing: no tracked run"):
        sync(SyncRecipe(runs=["nothing"], mlflow_uri="http://127.0.0.1:9"), context)
    with pytest.raises(OacirError, match="was never tracked"):
        sync(SyncRecipe(runs=[str(tmp_path)], mlflow_uri="http://127.0.0.1:9"), context)


def test_epochs_hold_what_was_measured_in_them(context: Context) -> None:
    epochs = by_epoch(resolve(context.root, "runs", "adafocal"))
    assert list(epochs) == [0, 1, 2, 3]
    assert epochs[2]["dev/car/R@5"] == 40.0
    assert "dev/car/R@5" not in epochs[3]
