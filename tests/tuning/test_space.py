"""What a space draws, lists, puts into a recipe, and refuses."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from pydantic import TypeAdapter

from training.config import TrainRecipe
from tuning.space import Dimension, applied, draw, drawn, every, listed, refusals

READ = TypeAdapter(dict[str, Dimension])
BASE = TrainRecipe.model_validate({"model": {"modulation": "fixed"}})


def space(**kinds: Any) -> dict[str, Dimension]:
    return READ.validate_python({name.replace("__", "."): tree for name, tree in kinds.items()})


def test_every_combination_once_the_last_field_turning_fastest() -> None:
    found = every(
        space(
            model__fixed_beta={"kind": "grid", "values": [0, 2]},
            training__seed={"kind": "int", "low": 1, "high": 5, "step": 2},
        )
    )
    pairs = [(v["model.fixed_beta"], v["training.seed"]) for v in found]
    assert pairs == [(0, 1), (0, 3), (0, 5), (2, 1), (2, 3), (2, 5)]


def test_draws_stay_in_their_range_and_fill_it() -> None:
    generator = np.random.default_rng(0)
    kinds = space(
        a={"kind": "uniform", "low": -1, "high": 3},
        b={"kind": "loguniform", "low": 1e-4, "high": 1e-2},
        c={"kind": "int", "low": 2, "high": 8, "step": 3},
        d={"kind": "choice", "values": ["x", None]},
    )
    found = {name: [draw(dimension, generator) for _ in range(2000)] for name, dimension in kinds.items()}
    assert all(-1 <= v <= 3 for v in found["a"])
    assert np.mean(found["a"]) == pytest.approx(1.0, abs=0.1)
    assert all(1e-4 <= v <= 1e-2 for v in found["b"])
    # the logarithm's mean is that of the ends, the number's own far above
    assert np.mean([math.log10(v) for v in found["b"]]) == pytest.approx(-3.0, abs=0.05)
    assert sorted(set(found["c"])) == [2, 5, 8]
    assert found["d"].count(None) == pytest.approx(1000, abs=100)


def test_more_draws_begin_with_the_same_ones_and_each_meets_every_grid() -> None:
    kinds = space(
        training__seed={"kind": "grid", "values": [0, 1]},
        training__learning_rate={"kind": "loguniform", "low": 1e-4, "high": 1e-2},
    )
    few, more = drawn(kinds, 3, seed=5), drawn(kinds, 10, seed=5)
    assert more[:6] == few
    assert [v["training.seed"] for v in few] == [0, 1, 0, 1, 0, 1]
    assert few[0]["training.learning_rate"] == few[1]["training.learning_rate"]
    assert len({v["training.learning_rate"] for v in more}) == 10
    assert drawn(kinds, 3, seed=6) != few


def test_values_reach_sections_and_the_models_own_configuration() -> None:
    recipe = applied(
        BASE, {"model.fixed_beta": 2, "model.overrides.qformer.hidden_size": 32, "training.betas": [0.8, 0.9]}
    )
    assert recipe.model.fixed_beta == 2.0
    assert recipe.model.overrides == {"qformer.hidden_size": 32}
    assert recipe.training.betas == (0.8, 0.9)
    assert BASE.model.overrides == {}
    with pytest.raises(ValueError, match=r"training\.batch_size = 1: .*greater than or equal to 2") as caught:
        applied(BASE, {"training.batch_size": 1})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("training.rate", "no field of a training recipe"),
        ("tracking.experiment", "changes no result"),
        ("scaling.workers", "changes no result"),
        ("training.checkpoints_kept", "changes no result"),
        ("model.preset", "feature store for each value"),
        ("model.overrides.vision_config.patch_size", "feature store for each value"),
        ("model.seed", "random image tower"),
    ],
)
def test_fields_that_cannot_be_searched_are_refused(name: str, says: str) -> None:
    (line,) = refusals(BASE, READ.validate_python({name: {"kind": "choice", "values": [1, 2]}}))
    assert line.startswith(f"space.{name}: ")
    assert says in line


def test_a_seed_of_the_weights_may_be_searched_where_the_tower_is_not_drawn_by_it() -> None:
    base = BASE.model_copy(update={"model": BASE.model.model_copy(update={"weights": "there"})})
    assert not list(refusals(base, space(model__seed={"kind": "choice", "values": [1, 2]})))


def test_a_value_that_fits_no_combination_is_refused_and_one_that_fits_some_is_not() -> None:
    kinds = {"model.fixed_beta": {"kind": "grid", "values": [0, -1]}}
    (line,) = refusals(BASE, READ.validate_python(kinds))
    assert "model.fixed_beta = -1" in line
    some = {
        "model.modulation": {"kind": "choice", "values": ["fixed", "scalar"]},
        "model.fixed_beta": {"kind": "choice", "values": [0, 2]},  # 2 fits fixed alone
    }
    assert not list(refusals(BASE, READ.validate_python(some)))


@pytest.mark.parametrize("kind", ["uniform", "loguniform", "int"])
def test_a_range_without_length_is_refused(kind: str) -> None:
    with pytest.raises(ValueError, match=r"high 2(\.0)? is not above low 2"):
        READ.validate_python({"a": {"kind": kind, "low": 2, "high": 2}})


def test_ranges_of_numbers_cannot_be_listed() -> None:
    kinds = space(a={"kind": "uniform", "low": 0, "high": 1}, b={"kind": "int", "low": 1, "high": 3})
    assert listed(kinds["a"]) is None
    assert listed(kinds["b"]) == [1, 2, 3]
