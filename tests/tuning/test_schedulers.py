"""Sweeps whose trials end early, change on the way, or depend on each other: minutes of real trainings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import ray
from small_benchmark import write_benchmark
from small_sweep import sweep

from infra.base.command import Context, Outcome
from infra.base.versions import MANIFEST, open_version
from training import checkpoints
from tuning.config import SweepRecipe
from tuning.records import TrialRecord
from tuning.sweep import tune

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(600)]

LEARNS, LEARNS_NOT = 3e-3, 1e-9
EPOCHS = 20
STEPS = 3 * EPOCHS


@pytest.fixture
def root(ray_session: None, tmp_path: Path) -> Path:
    write_benchmark(tmp_path, identities=12)
    return tmp_path


def records(outcome: Outcome) -> list[TrialRecord]:
    rows = open_version(str(outcome.location)).table("trials").to_pylist()
    return [TrialRecord.model_validate(json.loads(row["record"])) for row in rows]


def rates(values: list[float], **fields: Any) -> SweepRecipe:
    space = {"training.learning_rate": {"kind": "grid", "values": values}}
    training = {"epochs": EPOCHS, "checkpoint_every_steps": 3}
    return sweep(space, {"training": training}, algorithm={"kind": "grid"}, intervals=False, **fields)


def reserved() -> list[Any]:
    """Placement groups that still hold something."""
    return [g for g in ray.util.placement_group_table().values() if g["state"] != "REMOVED"]


def test_halving_stops_what_does_not_learn_and_the_next_trial_has_its_place(root: Path) -> None:
    asha = {"kind": "asha", "grace": 2, "reduction": 2}
    outcome = tune(
        rates([LEARNS, LEARNS_NOT, 1.1 * LEARNS], scheduler=asha, concurrent=1), Context(root=str(root))
    )
    first, stopped, last = records(outcome)
    assert (first.state, stopped.state) == ("finished", "stopped")
    assert len(first.readings) == EPOCHS
    assert "after 2 dev measurements" in stopped.reason
    assert stopped.figures == stopped.readings[1].figures
    assert last.state in ("finished", "stopped")
    # its workers left soon, by themselves, and what they had done lies there
    assert not (Path(stopped.run) / MANIFEST).exists()
    assert 6 <= checkpoints.complete_steps(stopped.run)[-1] < STEPS / 2
    assert not reserved()
    assert outcome.figures["stopped"] >= 1
    assert outcome.figures["best"]["number"] != 1


def test_the_median_stops_too(root: Path) -> None:
    median = {"kind": "median", "grace": 1, "least": 1}
    outcome = tune(rates([LEARNS, LEARNS_NOT], scheduler=median, concurrent=1), Context(root=str(root)))
    first, stopped = records(outcome)
    assert (first.state, stopped.state) == ("finished", "stopped")


def test_a_population_copies_its_best_and_goes_on_from_there(root: Path) -> None:
    pbt = {"kind": "pbt", "interval": 4, "quantile": 0.5, "resample": 0.0}
    space = {
        "training.learning_rate": {"kind": "grid", "values": [LEARNS, LEARNS_NOT]},
    }
    training = {"epochs": EPOCHS, "checkpoint_every_steps": 3, "schedule": "constant"}
    recipe = sweep(space, {"training": training}, algorithm={"kind": "grid"}, scheduler=pbt, intervals=False)
    outcome = tune(recipe, Context(root=str(root)))
    best, copied = records(outcome)
    assert (best.state, copied.state) == ("finished", "finished")
    assert best.changes == ()
    assert copied.changes[0].startswith(f"went on from small/{best.run.rsplit('/', 1)[-1]} with ")
    assert copied.origin
    # the copy's history is that of the other run up to the step it was taken from
    history, other = (open_version(r.run).table("history").to_pydict() for r in (copied, best))
    assert history["step"] == list(range(1, STEPS + 1))
    assert history["loss"][:3] == other["loss"][:3]
    assert copied.figures["avg"] > 1.25 * copied.readings[0].figures["avg"]  # its own rate learns nothing
    assert not reserved()


def test_the_estimator_tries_all_and_its_values_are_in_range(root: Path) -> None:
    space = {
        "model.fixed_beta": {"kind": "uniform", "low": 0, "high": 8},
        "training.learning_rate": {"kind": "loguniform", "low": 1e-3, "high": 1e-2},
    }
    recipe = sweep(
        space, algorithm={"kind": "tpe", "trials": 5, "startup": 2}, objectives=["avg", "ms_per_step"]
    )
    outcome = tune(recipe, Context(root=str(root)))
    found = records(outcome)
    assert [r.state for r in found] == ["finished"] * 5
    assert len({r.values["model.fixed_beta"] for r in found}) == 5
    assert all(0 <= r.values["model.fixed_beta"] <= 8 for r in found)
    assert outcome.figures["front"]
