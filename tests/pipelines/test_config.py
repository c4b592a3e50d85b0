from __future__ import annotations

from pathlib import Path

import pytest

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from pipelines.config import BuildRecipe

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
    assert key(workers="7", images_per_part="9") == same
    monkeypatch.chdir(tmp_path)
    assert key(source__root="x") == key(source__root=str(tmp_path / "x"))
    different = [key("other"), key(seed="1"), key(max_pairs_per_instance="9"), key(source__root="elsewhere")]
    different.append(key(thresholds__domains__video__tau_high="0.8"))
    assert len({same, *different}) == 6


def test_all_problems_are_told_together() -> None:
    wrong = [("thresholds.default.tau_high", "1.5"), ("annotator", "nobody"), ("wrokers", "2")]
    with pytest.raises(RecipeError) as error:
        load_recipe(BuildRecipe, "photos", wrong)
    assert len(error.value.problems) == 3
    assert "did you mean 'workers'?" in str(error.value)
