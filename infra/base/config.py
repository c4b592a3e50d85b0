"""Recipes: frozen, typed, judged as a whole; YAML files with command-line overrides."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from infra.base.errors import RecipeError
from infra.base.fields import find_field, read_value
from infra.base.problems import problems
from infra.base.recipe_files import Tree, find_recipe, read_tree

C = TypeVar("C", bound="Config")
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
"""The name of something that is made. It becomes a folder or file under the root, so it can lead nowhere else."""


class Config(BaseModel):
    """Base of every recipe and section: frozen, unknown keys refused, attribute docstrings are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def load_recipe(cls: type[C], source: str | None, overrides: Sequence[tuple[str, str]] = ()) -> C:
    """Build a recipe from a YAML file (or a shipped recipe's name) and dotted overrides.

    A file may say `extends: other.yaml` (beside it, else a shipped one) and lists only what differs. An override's
    words are read by the type of its field (`fields.read_value`).

    Raises:
        RecipeError: naming every wrong key and value with what is allowed.
    """
    tree = read_tree(find_recipe(source)) if source else {}
    # kinds first: they decide which fields a section has
    for key, value in sorted(overrides, key=lambda item: not item[0].endswith("kind")):
        _put(cls, tree, key, value)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(problems(cls, tree, error, source)) from error


def _put(cls: type[Config], tree: Tree, key: str, words: str) -> None:
    annotation, path = find_field(cls, key.split("."), tree)
    try:
        value = read_value(annotation, words)
    except yaml.YAMLError as error:
        raise RecipeError([f"--{key} {words}: not valid YAML ({' '.join(str(error).split())})"]) from error
    *sections, leaf = path
    for section in sections:
        inner = tree.get(section)
        inner = dict(inner) if isinstance(inner, dict) else {}
        tree[section] = inner
        tree = inner
    tree[leaf] = value


def recipe_hash(value: Config | Mapping[str, Any], *more: str) -> str:
    """Sixteen hex digits over the canonical JSON of a resolved recipe and any further identifying strings."""
    data = value.model_dump(mode="json") if isinstance(value, Config) else dict(value)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256("\0".join((text, *more)).encode()).hexdigest()[:16]
