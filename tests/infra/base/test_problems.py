from __future__ import annotations

from pathlib import Path

import pytest

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from pipelines.config import BuildRecipe
from training.config import TrainRecipe


def told(recipe: str | None, **overrides: str) -> list[str]:
    """The problems of a build's recipe; double underscores in keys stand for dots."""
    with pytest.raises(RecipeError) as caught:
        load_recipe(BuildRecipe, recipe, [(k.replace("__", "."), v) for k, v in overrides.items()])
    assert not any("\n" in line for line in caught.value.problems)
    return list(caught.value.problems)


def test_without_a_recipe_the_shipped_ones_are_named_in_one_line() -> None:
    (line,) = told(None)
    assert line.startswith("no 'source', 'thresholds' without a recipe; name one with --config: ")
    assert "photos.yaml" in line
    assert "world.yaml" in line
    assert "tiny.yaml" not in line


def test_a_section_without_its_kind_names_the_kinds() -> None:
    lines = told(None, source__root="X")
    assert lines[0].startswith("no 'thresholds' without a recipe; name one with --config: ")
    assert lines[1].startswith(
        "source.kind is missing in the recipe; set --source.kind to one of image_folder, world, deepfashion2, "
    )


def test_a_recipe_that_lacks_a_section_says_which_keys_it_needs(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text("name: mine\n")
    first, second = told(str(tmp_path / "r.yaml"))
    assert "set --source.kind to one of image_folder, world, deepfashion2, " in first
    assert "'thresholds' is missing" in second
    assert "--thresholds.default.tau_valid VALUE" in second
    assert "max_words" not in second  # has a default


def test_an_unknown_kind_names_the_kinds() -> None:
    (line,) = told("photos", source__kind="folder")
    assert line.startswith(
        "source.kind = 'folder' in recipe photos; set --source.kind to one of image_folder, world, deepfashion2, "
    )


def test_a_key_of_another_kind_says_whose_it_is() -> None:
    (line,) = told("photos", source__kind="world")
    assert line == (
        "unknown key 'source.root' in recipe photos; it belongs to source.kind image_folder or deepfashion2 or"
        " stanford_cars or products10k or landmarks or webdataset or hf_datasets, and source.kind is world:"
        " leave it out, or set another --source.kind"
    )
    (line,) = told("photos", source__world__seed="1")
    assert line.startswith(
        "unknown key 'source.world' in recipe photos; it belongs to source.kind world, and source."
    )


def test_a_misspelt_key_is_compared_with_those_of_the_chosen_kind() -> None:
    (line,) = told("world", source__world__seeed="1")
    assert line.endswith("did you mean 'source.world.seed'?")
    (line,) = told("photos", source__rooot="1")
    assert line.endswith("did you mean 'source.root'?")
    (line,) = told("photos", zzz="1")
    assert "known keys: name, source.kind, source.root" in line
    assert "source.world.seed" not in line


def test_keys_inside_a_union_are_written_as_the_user_writes_them() -> None:
    (line,) = told("world", source__world__image_size_px="5")
    assert line.startswith(
        "source.world.image_size_px = '5': Input should be greater than or equal to 32; fix --source"
    )


def test_a_word_in_place_of_a_section_names_its_keys() -> None:
    (line,) = told("photos", source="world")
    assert line == "source = 'world' in recipe photos: is a section; set its keys (--source.kind VALUE …)"
    (line,) = told("photos", limits="large")
    assert "(--limits.min_side_px VALUE …)" in line


def test_what_a_section_as_a_whole_gets_wrong_does_not_print_the_section() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(
            TrainRecipe, "tiny", [("training.select", "best_on_dev"), ("training.dev_every_epochs", "null")]
        )
    assert str(caught.value) == (
        "training: select 'best_on_dev' needs dev_every_epochs; fix its keys (--training.…) in recipe tiny"
    )
