from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import pytest
from pydantic import Field

from infra.base.config import Config, field_rows, load_recipe, recipe_hash
from infra.base.errors import RecipeError


class Inner(Config):
    batch_size: int = Field(default=8, ge=1)
    """Global over all workers."""
    rate: float = 1e-3


class Outer(Config):
    name: str
    inner: Inner = Inner()
    sizes: list[int] = Field(default_factory=list)
    note: str | None = None


class Cat(Config):
    kind: Literal["cat"] = "cat"
    lives: int = 9


class Dog(Config):
    kind: Literal["dog"] = "dog"
    inner: Inner = Inner()


class Owner(Config):
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]


def write(folder: Path, name: str, text: str) -> str:
    path = folder / name
    path.write_text(text)
    return str(path)


def test_file_then_extension_then_command_line_win_in_that_order(tmp_path: Path) -> None:
    write(tmp_path, "base.yaml", "name: base\ninner: {batch_size: 2, rate: 1e-4}\n")
    top = write(tmp_path, "top.yaml", "extends: base.yaml\ninner: {batch_size: 4}\n")
    recipe = load_recipe(Outer, top, [("name", "line"), ("sizes", "[1, 2]"), ("note", "null")])
    assert recipe == Outer(name="line", inner=Inner(batch_size=4, rate=1e-4), sizes=[1, 2], note=None)


def test_every_problem_is_reported_at_once_with_its_fix(tmp_path: Path) -> None:
    path = write(tmp_path, "bad.yaml", "inner: {batch_sise: 2, rate: fast}\n")
    with pytest.raises(RecipeError) as caught:
        load_recipe(Outer, path, [("inner.batch_size", "0")])
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "'name' is missing" in text
    assert "did you mean 'inner.batch_size'?" in text
    assert "inner.rate = 'fast'" in text
    assert "--inner.batch_size" in text
    assert "greater than or equal to 1" in text


def test_keys_of_a_union_are_named_as_they_are_written() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe(Owner, None, [("pet.kind", "dog"), ("pet.inner.rate", "fast"), ("pet.lives", "3")])
    first, second = caught.value.problems
    assert first.startswith("pet.inner.rate = 'fast'")
    assert second.startswith("unknown key 'pet.lives'")
    rows = {row[0]: row[3] for row in field_rows(Owner)}
    assert rows["pet.lives"].startswith("(kind cat)")
    assert rows["pet.inner.rate"].startswith("(kind dog)")


def test_a_circle_of_extends_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.yaml", "extends: b.yaml\n")
    write(tmp_path, "b.yaml", "extends: a.yaml\n")
    with pytest.raises(RecipeError, match="circle"):
        load_recipe(Outer, str(tmp_path / "a.yaml"))


@pytest.mark.parametrize(("text", "says"), [("a: [", "not valid YAML"), ("- 1\n", "mapping")])
def test_a_file_that_is_no_recipe_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says) as caught:
        load_recipe(Outer, write(tmp_path, "x.yaml", text))
    assert "\n" not in str(caught.value)


def test_unknown_recipe_name_lists_the_shipped_ones() -> None:
    with pytest.raises(RecipeError, match="no such file; shipped recipes"):
        load_recipe(Outer, "nowhere.yaml")


def test_hash_depends_on_every_value_and_not_on_how_it_was_written(tmp_path: Path) -> None:
    written = load_recipe(Outer, write(tmp_path, "r.yaml", "name: a\ninner: {rate: 0.001}\n"))
    assert recipe_hash(written) == recipe_hash(Outer(name="a"))
    assert recipe_hash(Outer(name="a", sizes=[1])) != recipe_hash(Outer(name="a"))
    assert recipe_hash(Outer(name="a"), "input 1") != recipe_hash(Outer(name="a"), "input 2")


def test_help_rows_are_dotted_with_docstrings() -> None:
    rows = {row[0]: row for row in field_rows(Outer)}
    assert rows["inner.batch_size"] == ("inner.batch_size", "int", "8", "Global over all workers.")
    assert rows["name"][2] == "required"
