"""A sweep of real trainings under Ray Tune: what it leaves, what it repeats, what it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_benchmark import write_benchmark
from small_sweep import STEPS, sweep

from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, RecipeError
from infra.base.spool import Spool
from infra.base.versions import Version, open_version
from infra.ops.mlflow_sync import SyncRecipe, sync
from pipelines.contents import recompute
from training.trainer import train
from tuning.config import SweepRecipe
from tuning.records import TrialRecord, read, write
from tuning.space import applied
from tuning.sweep import tune

pytestmark = [pytest.mark.ray, pytest.mark.slow]

SPACE = {"training.learning_rate": {"kind": "grid", "values": [3e-3, 1e30, 2e-3]}}
"""Two trials that learn and, between them, one whose loss is no number."""


def recipe(root: Path, **fields: Any) -> SweepRecipe:
    tracked = {"tracking": {"mlflow_uri": f"sqlite:///{root}/mlflow.db", "experiment": "tune"}}
    return sweep(SPACE, tracked, algorithm={"kind": "grid"}, objectives=["avg", "query_ms"], **fields)


@dataclass
class Swept:
    """A finished sweep, in whose root one of its trainings had been done by `oacir train` before."""

    root: Path
    before: Outcome
    outcome: Outcome
    again: Outcome

    @property
    def version(self) -> Version:
        return open_version(str(self.outcome.location))

    @property
    def records(self) -> list[TrialRecord]:
        rows = self.version.table("trials").to_pylist()
        return [TrialRecord.model_validate(json.loads(row["record"])) for row in rows]


@pytest.fixture(scope="module")
def swept(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    from pipelines.embed import embed

    root = tmp_path_factory.mktemp("sweep")
    write_benchmark(root, identities=12)
    whole = recipe(root)
    embed(whole.train, Context(root=str(root)))
    first = applied(sweep(SPACE, algorithm={"kind": "grid"}).train, {"training.learning_rate": 3e-3})
    before = train(first, Context(root=str(root)))
    outcome = tune(whole, Context(root=str(root)))
    return Swept(root, before, outcome, tune(whole, Context(root=str(root))))


def test_broken_trials_stop_nothing_and_say_why(swept: Swept) -> None:
    states = {r.number: r.state for r in swept.records}
    assert states == {0: "finished", 1: "failed", 2: "finished"}
    reason = swept.records[1].reason
    assert reason.startswith("the loss is nan at step")
    assert "\n" not in reason
    assert any(line == f"trial 1 failed: {reason}" for line in swept.outcome.details)
    assert "3 trials (2 finished, 1 failed)" in swept.outcome.message


def test_a_trial_is_a_run_like_any_other_and_an_earlier_one_is_found(swept: Swept) -> None:
    found, _, own = swept.records
    assert found.run == swept.before.location
    assert (found.found, own.found) == (True, False)
    run = open_version(own.run)
    assert run.manifest.figures["steps"] == STEPS
    assert run.manifest.recipe["training"]["learning_rate"] == 2e-3
    assert own.run_hash == run.manifest.content_hash
    # all read the same features
    stores = {open_version(r.run).manifest.parents["features"] for r in (found, own)}
    assert stores == {swept.version.manifest.parents["features"]}
    assert len(list((swept.root / "features" / "small").iterdir())) == 1


def test_measurements_and_figures_are_those_of_the_runs(swept: Swept) -> None:
    for record in (swept.records[0], swept.records[2]):
        rows = open_version(record.run).table("dev").to_pylist()
        assert [r.step for r in record.readings] == [3, 6, 9]
        for item in record.readings:
            of_step = [row for row in rows if row["step"] == item.step]
            assert item.figures["R@1"] == pytest.approx(sum(row["R@1"] for row in of_step) / 2)
            assert {row["domain"]: row["R@5"] for row in of_step} == {
                d: item.figures[f"{d}/R@5"] for d in ("a", "b")
            }
        assert record.figures["avg"] == pytest.approx(record.readings[-1].figures["avg"])
        assert 0.1 < record.figures["query_ms"] < 1000
        # the evaluation on dev, beside the measurement while training
        assert record.domains["a"]["R@1"].value == pytest.approx(record.figures["a/R@1"])
        assert record.domains["all"]["avg"].value == pytest.approx(record.figures["avg"])
        low, high = record.domains["all"]["R@5"].low, record.domains["all"]["R@5"].high
        assert low is not None
        assert high is not None
        assert low <= record.figures["R@5"] <= high


def test_the_version_holds_what_its_manifest_says(swept: Swept) -> None:
    version = swept.version
    folder = Path(version.url)
    lying = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    known = {f.path for f in version.manifest.files} | {"manifest.json", "started.json"}
    assert {p for p in lying if not p.startswith(("tracking/", "found/"))} == known
    assert known >= {"trials.parquet", "curves.parquet", "report.html"}
    assert recompute(version) == version.manifest.content_hash
    assert version.manifest.parents["trial 2"] == swept.records[2].run_hash
    figures = version.manifest.figures
    assert figures["best"]["number"] in (0, 2)
    assert set(figures["front"]) <= {0, 2}
    assert figures["selected_on"] == "dev"
    assert f"oacir evaluate --model {figures['best']['run']}" in "\n".join(swept.outcome.details)
    assert "1 of 3 trials failed" in (folder / "report.html").read_text()


def test_the_same_sweep_is_a_no_op(swept: Swept) -> None:
    assert swept.again.message.startswith("nothing to do")
    assert swept.again.location == swept.outcome.location


def test_mlflow_has_a_run_for_the_sweep_and_one_under_it_for_each_trial(swept: Swept) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{swept.root}/mlflow.db")
    experiment = client.get_experiment_by_name("tune")
    runs = client.search_runs([experiment.experiment_id])
    (above,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert above.info.status == "FINISHED"
    assert above.info.run_name == "sweep"
    names = {f.path for f in client.list_artifacts(above.info.run_id)}
    assert names == {"recipe.yaml", "report.html"}
    under = {run.info.run_name: run for run in runs if run is not above}
    assert {run.data.tags["mlflow.parentRunId"] for run in under.values()} == {above.info.run_id}
    assert {name: run.info.status for name, run in under.items()} == {
        "sweep 0": "FINISHED", "sweep 1": "FAILED", "sweep 2": "FINISHED",
    }  # fmt: skip
    assert len(runs) == 4
    assert under["sweep 0"].data.tags["oacir.found"] == "true"
    told = client.get_metric_history(under["sweep 2"].info.run_id, "dev/a/R_at_1")
    assert [m.step for m in told] == [3, 6, 9]
    assert under["sweep 2"].data.params["training.learning_rate"] == "0.002"
    best = client.get_metric_history(above.info.run_id, "trial/avg")
    assert {m.step: m.value for m in best} == {
        r.number: pytest.approx(r.figures["avg"]) for r in swept.records if r.figures
    }
    assert above.data.tags["oacir.content_hash"] == swept.version.manifest.content_hash


def test_a_driver_killed_before_its_last_words_is_made_up_for(swept: Swept) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{swept.root}/mlflow.db")
    folder = Path(swept.version.path("tracking"))
    spool = Spool(str(folder))
    place = f"sqlite:///{swept.root}/mlflow.db"
    run_id, _ = spool.sent(place)
    told = 1 + max(i for i, record in enumerate(spool.records) if record.get("group") == "trial")
    lacking = len(spool.records) - told
    assert lacking >= 4  # figures, page, hash, end
    (file,) = folder.glob("records-*.jsonl")
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:told]))
    spool.note_sent(place, str(run_id), told)
    client.update_run(run_id, status="RUNNING")
    again = tune(recipe(swept.root), Context(root=str(swept.root)))
    assert again.details == (f"{lacking} records that MLflow lacked of this sweep were sent",)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_another_server_gets_the_sweep_with_its_trials(swept: Swept, tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    elsewhere = f"sqlite:///{tmp_path}/other.db"
    client = MlflowClient(elsewhere)
    client.create_experiment("tune", artifact_location=f"file://{tmp_path}/artifacts")
    asked = SyncRecipe(runs=[swept.version.manifest.name], mlflow_uri=elsewhere)
    assert sync(asked, Context(root=str(swept.root))).figures["runs"] == 4
    runs = client.search_runs([client.get_experiment_by_name("tune").experiment_id])
    assert {run.info.run_name: run.info.status for run in runs} == {
        "sweep": "FINISHED", "sweep 0": "FINISHED", "sweep 1": "FAILED", "sweep 2": "FINISHED",
    }  # fmt: skip
    (above,) = [run for run in runs if run.info.run_name == "sweep"]
    parents = {run.data.tags["mlflow.parentRunId"] for run in runs if run is not above}
    assert parents == {above.info.run_id}
    assert sync(asked, Context(root=str(swept.root))).figures["records"] == 0


def test_what_cannot_run_is_refused_before_anything_is_begun(swept: Swept) -> None:
    context = Context(root=str(swept.root))
    before = sorted(swept.root.rglob("started.json"))
    wide = sweep(SPACE, {"scaling": {"workers": 7}}, algorithm={"kind": "grid"})
    with pytest.raises(
        OacirError, match=r"train\.scaling\.workers 7: each needs 1 CPU .* room for 2; lower train"
    ) as caught:
        tune(wide, context)
    assert "\n" not in str(caught.value)
    with pytest.raises(OacirError, match=r"driver_gib 9000: no machine .* lower driver_gib"):
        tune(sweep(SPACE, algorithm={"kind": "grid"}, driver_gib=9000), context)
    with pytest.raises(RecipeError, match=r"objectives: c/R@1: dev has the domains a, b"):
        tune(sweep(SPACE, algorithm={"kind": "grid"}, objectives=["c/R@1"]), context)
    pair = {
        "training.batch_size": {"kind": "grid", "values": [8, 24]},
        "training.micro_batch_size": {"kind": "grid", "values": [4, 12]},  # 12 does not cut 8
    }
    with pytest.raises(RecipeError, match=r"trial 1 .*micro_batch_size 12 never cuts a batch of 8"):
        tune(sweep(pair, algorithm={"kind": "grid"}), context)
    with pytest.raises(OacirError, match=r"nothing was begun there to go on with"):
        tune(
            sweep(
                {"training.seed": {"kind": "grid", "values": [5]}}, algorithm={"kind": "grid"}, resume=True
            ),
            context,
        )
    assert sorted(swept.root.rglob("started.json")) == before


def test_a_dry_run_says_what_would_be_tried(swept: Swept) -> None:
    plan = tune(
        sweep(SPACE, algorithm={"kind": "grid"}, name="other"), Context(root=str(swept.root), dry_run=True)
    )
    assert plan.figures == {"trials": 3, "concurrent": 2, "workers": 1}
    assert not (swept.root / "sweeps" / "other").exists()


@pytest.mark.long
def test_failed_trials_are_tried_again_where_that_is_asked_for(swept: Swept) -> None:
    space = {"training.learning_rate": {"kind": "grid", "values": [1e30]}}
    context = Context(root=str(swept.root))
    wanted = sweep(space, algorithm={"kind": "grid"}, name="hopeless")
    with pytest.raises(OacirError, match=r"all 1 trials failed: the loss is nan .* --retry_failed true"):
        tune(wanted, context)
    (place,) = (swept.root / "sweeps" / "hopeless").iterdir()
    (record,) = read(str(place))
    write(str(place), record.model_copy(update={"reason": "the disk was full"}))
    with pytest.raises(OacirError, match="the disk was full"):
        tune(wanted, context)
    with pytest.raises(OacirError, match="the loss is nan"):
        tune(wanted.model_copy(update={"retry_failed": True}), context)
    (again,) = read(str(place))
    assert again.reason.startswith("the loss is nan")
    with pytest.raises(OacirError, match=r"finished with 1 failed trial and stays .* another --name"):
        tune(recipe(swept.root, retry_failed=True), context)
