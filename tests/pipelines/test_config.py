from __future__ import annotations

from pathlib import Path

import pytest

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from pipelines.config import BuildRecipe

DOMAINS = ("fashion", "car", "product", "landmark")
SHIPPED = sorted((Path(__file__).parents[2] / "pipelines" / "recipes").glob("*.yaml"))


@pytest.mark.parametrize("path", [p for p in SHIPPED if "thresholds:" in p.read_text()], ids=lambda p: p.stem)
def test_shipped_recipes_are_valid_builds(path: Path) -> None:
    recipe = load_recipe(BuildRecipe, str(path))
    for thresholds in (recipe.thresholds.default, *recipe.thresholds.domains.values()):
        assert thresholds.tau_centric <= thresholds.tau_high


def test_thresholds_of_a_domain_fall_back_to_the_default() -> None:
    recipe = load_recipe(BuildRecipe, "photos")
    assert recipe.thresholds.of("video").tau_count == 8
    assert recipe.thresholds.of("unknown") == recipe.thresholds.default


def test_the_key_names_what_is_made_not_how_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def key(fingerprint: str = "f", **options: str) -> str:
        overrides = [(k.replace("__", "."), v) for k, v in options.items()]
        return load_recipe(BuildRecipe, "photos", overrides).key(fingerprint)

    same = key()
    assert key(workers="7", images_per_part="9", encoder__gpus="1") == same
    monkeypatch.chdir(tmp_path)
    assert key(source__root="x") == key(source__root=str(tmp_path / "x"))
    different = [key("other"), key(seed="1"), key(max_pairs_per_instance="9"), key(source__root="elsewhere")]
    different.append(key(thresholds__domains__video__tau_high="0.8"))
    assert len({same, *different}) == 6


def test_thresholds_of_another_descriptor_are_refused() -> None:
    with pytest.raises(
        RecipeError, match=r"calibrated for 'offline' say nothing of encoder.model = some/model"
    ):
        load_recipe(BuildRecipe, "photos", [("encoder.model", "some/model")])
    with pytest.raises(
        RecipeError, match=r"set thresholds made for it and thresholds.calibrated_for = offline"
    ):
        load_recipe(BuildRecipe, "oacirr", [("encoder.model", "null")])


def test_the_worlds_oracle_is_refused_for_photos_before_any_work() -> None:
    with pytest.raises(RecipeError) as error:
        load_recipe(BuildRecipe, "photos", [("annotator", "world")])
    (line,) = error.value.problems
    assert "annotator" in line
    assert "for source.kind = image_folder set annotator to plain or auto" in line
    assert load_recipe(BuildRecipe, "world", [("annotator", "world")]).annotator == "world"


def test_the_papers_thresholds() -> None:
    of = load_recipe(BuildRecipe, "oacirr").thresholds.of
    table = {d: (t.tau_valid, t.tau_high, t.tau_centric, t.tau_count) for d in DOMAINS if (t := of(d))}
    assert table == {
        "fashion": (8, 0.92, 0.88, 3),
        "car": (10, 0.88, 0.85, 2),
        "product": (20, 0.88, 0.85, 2),
        "landmark": (15, 0.90, 0.88, 3),
    }
    assert [of(d).max_words for d in DOMAINS] == [30, 25, 30, 30]


def test_all_problems_are_told_together() -> None:
    wrong = [("thresholds.default.tau_high", "1.5"), ("annotator", "nobody"), ("wrokers", "2")]
    with pytest.raises(RecipeError) as error:
        load_recipe(BuildRecipe, "photos", wrong)
    assert len(error.value.problems) == 3
    assert "did you mean 'workers'?" in str(error.value)
