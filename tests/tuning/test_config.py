"""Recipes of sweeps: the shipped ones, what they try, and what is refused before anything starts."""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Any

import pytest
from small_sweep import sweep

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from tuning.config import SweepRecipe
from tuning.space import applied

FOLDER = Path(str(resources.files("tuning"))) / "recipes"
SHIPPED = [path for path in sorted(FOLDER.glob("*.yaml")) if not path.stem.startswith("reproduce")]
"""Of sweeps; `reproduce/test_rows.py` looks at those of the ablation matrix."""
BETA = {"model.fixed_beta": {"kind": "grid", "values": [0, 2]}}
RATE = {"training.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-2}}
TRIALS = {"beta_sweep": 27, "depth": 12, "probes": 15, "learned_beta": 40, "rates": 2, "smoke": 3}


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_makes_training_recipes(path: Path) -> None:
    recipe = load_recipe(SweepRecipe, str(path))
    assert recipe.trials == TRIALS[path.stem]
    made = [applied(recipe.train, values) for values in recipe.given or ()]
    # no two trials are the same training
    assert len({m.identity("data", "features") for m in made}) == len(made)
    assert recipe.train.name == recipe.name


def test_all_of_the_papers_ablations_of_numbers_have_a_sweep() -> None:
    values = {
        name: next(iter(load_recipe(SweepRecipe, f"{name}.yaml").space.values())).model_dump()["values"]
        for name in ("beta_sweep", "depth", "probes")
    }
    assert values["depth"] == (1, 2, 3, 4)
    assert values["probes"] == (2, 4, 8, 16, 32)
    assert values["beta_sweep"][0] == 0
    assert len(values["beta_sweep"]) >= 6


@pytest.mark.parametrize(
    ("space", "fields", "says"),
    [
        (RATE, {"algorithm": {"kind": "grid"}}, "algorithm grid cannot list training.learning_rate"),
        (BETA, {"algorithm": {"kind": "tpe"}}, "use kind choice for model.fixed_beta"),
        (BETA, {"objectives": ["R@2"]}, "objectives: 'R@2' is unknown"),
        (BETA, {"objectives": ["avg", "avg"]}, "objectives avg twice"),
        (
            BETA,
            {"objectives": ["query_ms", "avg"], "scheduler": {"kind": "asha"}},
            "query_ms is known at the end; put another one first",
        ),
        (
            {"model.crm_layers": {"kind": "grid", "values": [1, 2]}},
            {"scheduler": {"kind": "pbt"}, "train": {"model": {"modulation": "scalar"}}},
            "scheduler pbt cannot change model.crm_layers while a model trains",
        ),
        (
            {"training.learning_rate": {"kind": "choice", "values": [1e-3, 1e-4]}},
            {"scheduler": {"kind": "pbt"}, "algorithm": {"kind": "random", "trials": 3}},
            "scheduler pbt trains all 3 trials at once, and some have the same values",
        ),
        (BETA, {"algorithm": {"kind": "random"}}, "would try the same combinations of grids 10 times"),
        ({}, {}, "space is empty"),
        (BETA, {"train": {"training": {"dev_every_epochs": None}}}, "trials are judged on dev"),
    ],
)
def test_what_cannot_be_searched_so_is_refused_in_one_line(
    space: dict[str, Any], fields: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(says)):
        sweep(space, **fields)


def test_every_problem_of_a_file_is_said_at_once(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "train: {extends: tiny.yaml}\nspace:\n  training.rate: {kind: grid, values: [1]}\n"
        "  training.batch_size: {kind: grid, values: [1]}\nobjectives: [best]\n"
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe(SweepRecipe, str(path))
    for part in ("space.training.rate", "training.batch_size = 1", "'best' is unknown"):
        assert part in str(caught.value)


def test_an_unknown_kind_of_dimension_is_answered_with_the_known_ones(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("train: {extends: tiny.yaml}\nspace:\n  training.seed: {kind: chioce, values: [1]}\n")
    with pytest.raises(
        RecipeError, match=r"kind = 'chioce' .* one of choice, grid, uniform, loguniform, int$"
    ):
        load_recipe(SweepRecipe, str(path))


def test_two_sweeps_of_like_trials_have_one_key_whatever_they_are_called() -> None:
    one = sweep(BETA, algorithm={"kind": "grid"})
    other = sweep(
        BETA, {"scaling": {"workers": 4}}, algorithm={"kind": "grid"}, name="b", concurrent=3, resume=True
    )
    assert one.identity("d", "f") == other.identity("d", "f")
    assert one.identity("d", "f") != one.identity("e", "f")
    longer = sweep(BETA, {"training": {"epochs": 9}}, algorithm={"kind": "grid"})
    assert one.identity("d", "f") != longer.identity("d", "f")
    wider = sweep({"model.fixed_beta": {"kind": "grid", "values": [0, 3]}}, algorithm={"kind": "grid"})
    assert one.identity("d", "f") != wider.identity("d", "f")
