"""The matrix: which trainings it asks for, and recipes that cannot work."""

from __future__ import annotations

import pytest

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from tuning.reproduce.config import ReproduceRecipe
from tuning.reproduce.rows import CROSSED, FULL, matrix, trials
from tuning.space import applied


def test_a_whole_seed_comes_before_the_next_and_left_out_domains_are_trainings_of_their_own() -> None:
    rows = matrix((1, 2, 4), everything=False)
    found = trials(rows, 2, ["car", "fashion"])
    assert len(found) == 2 * (3 + 3 + 2 + 2 * 2)
    assert [t.seed for t in found] == sorted(t.seed for t in found)
    assert len({t.name for t in found}) == len(found)
    left = [t for t in found if t.row.name == CROSSED[FULL] and t.seed == 1]
    assert [t.values["training.leave_out_domains"] for t in left] == [["car"], ["fashion"]]
    assert {t.values["model.seed"] for t in left} == {t.values["training.seed"] for t in left} == {1}


def test_every_row_makes_a_training_recipe_of_its_own() -> None:
    recipe = load_recipe(ReproduceRecipe, "reproduce_all.yaml", [])
    assert recipe.rows == "all"
    found = trials(matrix(recipe.betas, everything=True), 1, ["car"])
    keys = {applied(recipe.train, t.values).identity("data", "features") for t in found}
    assert len(keys) == len(found) == 7 + len(recipe.betas) + 16


@pytest.mark.parametrize(
    ("changed", "problem"),
    [
        (("only", "[adafocal, crop]"), "only: no row crop; there are adafocal, roi_crop"),
        (("train.model.modulation", "none"), "the first row is AdaFocal"),
        (("train.model.crm_layers", "2"), "row roi_crop does not fit train: .*crm_layers"),
        (("betas", "[1, 1, 2]"), "betas: one of them twice"),
        (("train.tower.mode", "frozen"), "all trials share stored features"),
    ],
)
def test_what_cannot_work_is_refused(changed: tuple[str, str], problem: str) -> None:
    with pytest.raises(RecipeError, match=problem):
        load_recipe(ReproduceRecipe, "reproduce.yaml", [changed])
