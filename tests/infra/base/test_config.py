from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from infra.base.config import Config, Name, load_recipe, recipe_hash
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
    words: list[str] | None = None
    stage: Literal[1, 2] = 2
    pair: tuple[float, float] = (0.0, 0.0)
    anything: dict[str, Any] = Field(default_factory=dict)
    sections: dict[str, Inner] = Field(default_factory=dict)


class Named(Config):
    name: Name = "x"


class Cat(Config):
    kind: Literal["cat"] = "cat"
    lives: int = 9
    note: str = ""


class Dog(Config):
    kind: Literal["dog"] = "dog"
    inner: Inner = Inner()
    note: list[str] = Field(default_factory=list)


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


def test_hash_depends_on_every_value_and_not_on_how_it_was_written(tmp_path: Path) -> None:
    written = load_recipe(Outer, write(tmp_path, "r.yaml", "name: a\ninner: {rate: 0.001}\n"))
    assert recipe_hash(written) == recipe_hash(Outer(name="a"))
    assert recipe_hash(Outer(name="a", sizes=[1])) != recipe_hash(Outer(name="a"))
    assert recipe_hash(Outer(name="a"), "input 1") != recipe_hash(Outer(name="a"), "input 2")


@pytest.mark.parametrize("name", ["../../evil", "a b", "a/b", ".hidden", "", "a\n", "..", "/etc/x", "ü"])
def test_a_name_cannot_lead_out_of_its_folder(name: str) -> None:
    with pytest.raises(RecipeError, match=r"name = .*; fix --name"):
        load_recipe(Named, None, [("name", name)])


def test_usual_names_are_allowed() -> None:
    assert [load_recipe(Named, None, [("name", n)]).name for n in ("a", "B-2_c.3", "0")] == [
        "a",
        "B-2_c.3",
        "0",
    ]


@pytest.mark.parametrize(
    ("key", "words", "meant"),
    [
        ("note", "[red] sky", "[red] sky"),
        ("note", "[0,0,10,10]", "[0,0,10,10]"),
        ("note", "{", "{"),
        ("note", "null", None),
        ("name", "null", "null"),
        ("sizes", "[1, 2]", [1, 2]),
        ("sizes", "3", [3]),
        ("words", "scores", ["scores"]),
        ("words", "[a, b]", ["a", "b"]),
        ("words", "null", None),
        ("stage", "1", 1),
        ("pair", "[1, 2.5]", (1.0, 2.5)),
        ("anything.depth", "3", {"depth": 3}),
        ("anything.inner.depth", "[3]", {"inner.depth": [3]}),
        ("anything", "{a: 1}", {"a": 1}),
        ("sections.x.batch_size", "3", {"x": Inner(batch_size=3)}),
        ("inner", "{batch_size: 3}", Inner(batch_size=3)),
    ],
)
def test_words_are_read_by_the_type_of_their_field(key: str, words: str, meant: object) -> None:
    recipe = load_recipe(Outer, None, [("name", "a"), (key, words)])
    assert getattr(recipe, key.split(".")[0]) == meant


def test_a_list_that_is_none_is_one_line() -> None:
    with pytest.raises(RecipeError, match=r"--sizes \[1: not valid YAML") as caught:
        load_recipe(Outer, None, [("name", "a"), ("sizes", "[1")])
    assert "\n" not in str(caught.value)


def test_the_kind_decides_wherever_it_stands() -> None:
    owner = load_recipe(Owner, None, [("pet.note", "[soft]"), ("pet.kind", "cat")])
    assert owner.pet == Cat(note="[soft]")
    owner = load_recipe(Owner, None, [("pet.note", "[soft]"), ("pet.kind", "dog")])
    assert owner.pet == Dog(note=["soft"])
