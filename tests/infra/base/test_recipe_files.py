from __future__ import annotations

from pathlib import Path

import pytest

from infra.base.config import Config
from infra.base.errors import RecipeError
from infra.base.recipe_files import find_recipe, read_tree, shipped_for
from pipelines.config import BuildRecipe
from pipelines.retrieval.config import QueryRecipe
from training.config import TrainRecipe


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.write_text(text)
    return path


def test_a_recipe_beside_goes_before_a_shipped_one_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine = write(tmp_path, "mine.yaml", "extends: tiny.yaml\nname: mine\n")
    shipped = read_tree(find_recipe("tiny.yaml"))
    assert read_tree(mine) == shipped | {"name": "mine"}
    assert read_tree(write(tmp_path, "short.yaml", "extends: tiny\nname: mine\n")) == shipped | {
        "name": "mine"
    }
    write(tmp_path, "tiny.yaml", "name: beside\nmodel: {seed: 3}\n")
    assert read_tree(mine) == {"name": "mine", "model": {"seed": 3}}
    elsewhere = tmp_path / "cwd"
    elsewhere.mkdir()
    write(elsewhere, "other.yaml", "name: here\n")
    monkeypatch.chdir(elsewhere)
    with pytest.raises(
        RecipeError, match=r"extends other\.yaml: no such file beside it; shipped recipes: .*tiny\.yaml"
    ):
        read_tree(write(tmp_path, "lost.yaml", "extends: other.yaml\n"))


def test_a_copy_may_extend_the_shipped_recipe_whose_name_it_has(tmp_path: Path) -> None:
    tree = read_tree(write(tmp_path, "tiny.yaml", "extends: tiny.yaml\nname: mine\n"))
    assert tree == read_tree(find_recipe("tiny")) | {"name": "mine"}


def test_a_section_may_extend_a_recipe(tmp_path: Path) -> None:
    path = write(tmp_path, "sweep.yaml", "name: s\ntrain:\n  extends: tiny.yaml\n  training: {epochs: 9}\n")
    tree, tiny = read_tree(path), read_tree(find_recipe("tiny"))
    assert tree == {"name": "s", "train": tiny | {"training": tiny["training"] | {"epochs": 9}}}


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(RecipeError, match="circle"):
        read_tree(tmp_path / "a.yaml")
    with pytest.raises(RecipeError, match="circle"):
        read_tree(write(tmp_path, "c.yaml", "extends: c.yaml\n"))


@pytest.mark.parametrize(("text", "says"), [("a: [", "not valid YAML"), ("- 1\n", "mapping")])
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        read_tree(write(tmp_path, "x.yaml", text))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "source", ["photo", "phtos.yaml", "recipes/photos.yaml", "pipelines/recipes/photos.yml"]
)
def test_a_mistyped_recipe_name_says_which_is_meant(source: str) -> None:
    with pytest.raises(RecipeError) as error:
        find_recipe(source)
    assert list(error.value.problems) == [f"--config {source}: no such file; did you mean 'photos.yaml'?"]


def test_a_mistyped_name_to_extend_says_which_is_meant(tmp_path: Path) -> None:
    with pytest.raises(
        RecipeError, match=r"extends tinny: no such file beside it; did you mean 'tiny\.yaml'\?$"
    ):
        read_tree(write(tmp_path, "mine.yaml", "extends: tinny\n"))


@pytest.mark.parametrize("source", ["nowhere.yaml", "a/b.yaml"])
def test_unknown_recipe_name_lists_the_shipped_ones(source: str) -> None:
    with pytest.raises(RecipeError, match=r"no such file; shipped recipes: .*photos\.yaml.*tiny\.yaml"):
        find_recipe(source)


def test_each_command_has_its_own_shipped_recipes() -> None:
    assert {"photos.yaml", "world.yaml"} <= set(shipped_for(BuildRecipe))
    assert {"tiny.yaml", "paper.yaml"} <= set(shipped_for(TrainRecipe))
    assert not set(shipped_for(BuildRecipe)) & set(shipped_for(TrainRecipe))
    assert shipped_for(QueryRecipe) == []
    assert shipped_for(Config) == []
