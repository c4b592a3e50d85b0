from __future__ import annotations

import re
from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from infra.base.config import Config, Name
from infra.base.fields import field_rows, in_words
from infra.cli import VERBS

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]


class Inner(Config):
    batch_size: int = Field(default=8, ge=1)
    """Global over all workers."""


class Cat(Config):
    """A cat."""

    kind: Literal["cat"] = "cat"
    """Which pet."""
    lives: int = 9


class Dog(Config):
    """A dog."""

    kind: Literal["dog"] = "dog"
    owner: str
    inner: Inner = Inner()


class Owner(Config):
    name: str
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    """Who is fed."""
    second: Annotated[Cat | Dog, Field(discriminator="kind")] | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int, "whole number"),
        (Positive, "whole number > 0"),
        (Positive | None, "whole number > 0 or null"),
        (Share, "number from 0 to 1"),
        (Annotated[float, Field(gt=-1.5, le=1)], "number > -1.5 and ≤ 1"),
        (bool, "true | false"),
        (str | None, "text or null"),
        (Literal["dev", "test"], "dev | test"),
        (Literal[1, 2], "1 | 2"),
        (Literal["dev"] | None, "dev or null"),
        (list[str], "list of text"),
        (Annotated[list[Positive], Field(min_length=1)], "list of whole number > 0, at least 1"),
        (tuple[Share, Share], "[number from 0 to 1, number from 0 to 1]"),
        (tuple[str, ...], "list of text"),
        (dict[str, Any], "mapping of text to any value"),
        (dict[str, Inner], "mapping of text to {batch_size}"),
        (Name, "text like ^[A-Za-z0-9][A-Za-z0-9._-]*$"),
    ],
)
def test_types_are_said_in_words(annotation: Any, words: str) -> None:
    assert in_words(annotation) == words


def test_rows_are_dotted_with_bounds_and_docstrings() -> None:
    rows = {row.key: row for row in field_rows(Owner)}
    assert rows["inner.batch_size"] == (
        "inner.batch_size",
        "whole number ≥ 1",
        "8",
        "Global over all workers.",
        (),
    )
    assert rows["name"].default == "required"


def test_the_kinds_of_a_union_are_listed_once_with_the_fields_of_each() -> None:
    rows = [row for row in field_rows(Owner) if row.key.startswith("pet.")]
    assert rows[0] == ("pet.kind", "cat | dog", "required", "Who is fed.", ())
    assert [(row.key, row.default, row.only) for row in rows[1:]] == [
        ("pet.lives", "9", (("pet.kind", "cat"),)),
        ("pet.owner", "required", (("pet.kind", "dog"),)),
        ("pet.inner.batch_size", "8", (("pet.kind", "dog"),)),
    ]
    assert [row.default for row in field_rows(Owner) if row.key == "second.kind"] == ["null"]


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_of_every_command_speaks_no_python_and_says_what_null_means(verb: str) -> None:
    for row in field_rows(VERBS[verb].load()[0]):
        python = {"Annotated", "Field", "Optional", "Literal", "str", "int", "None"}
        assert not python & set(re.findall(r"\w+", row.type)), row.key
        assert "or null" not in row.type or "null" in row.help, f"--{row.key}: what does null mean?"
