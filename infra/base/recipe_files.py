"""Where recipes lie: files of the user, and the shipped ones by name; `extends` joins them to one tree."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from infra.base.errors import RecipeError

RECIPE_PACKAGES = ("pipelines", "training", "tuning")
Tree = dict[str, Any]


def find_recipe(source: str) -> Path:
    """The path of a recipe: a file as given, else a shipped recipe of that name.

    Raises:
        RecipeError: neither, with the shipped name most like it, else all of them.
    """
    found = Path(source) if Path(source).is_file() else _shipped(source)
    if found is None:
        raise RecipeError([f"--config {source}: no such file; {_meant(source)}"])
    return found


def read_tree(path: Path, seen: tuple[Path, ...] = ()) -> Tree:
    """What a recipe file says, over what the file says that it extends: one beside it, else a shipped one of that name.
    A section at the top of the file may extend a file, too.

    Raises:
        RecipeError: a file that is absent, no mapping or no YAML, or a circle.
    """
    path = path.resolve()
    if path in seen:
        raise RecipeError([f"{path}: 'extends' goes in a circle; remove one of them"])
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: not valid YAML ({' '.join(str(error).split())})"]) from error
    if not isinstance(tree, dict):
        raise RecipeError([f"{path}: a recipe is a mapping of keys to values, found {type(tree).__name__}"])
    tree = {
        key: _over(path, value, seen) if isinstance(value, dict) else value for key, value in tree.items()
    }
    return _over(path, tree, seen)


def _over(path: Path, tree: Tree, seen: tuple[Path, ...]) -> Tree:
    """A mapping of the file over what it extends, if anything."""
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return merge(read_tree(_extended(path, str(parent)), (*seen, path)), tree)


def merge(base: Tree, top: Mapping[str, Any]) -> Tree:
    """Both trees; where they differ, the top one's value."""
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def shipped_for(cls: type[BaseModel]) -> list[str]:
    """File names of the shipped recipes of a class: those of its package that know none but its keys."""
    package = cls.__module__.partition(".")[0]
    paths = sorted(p for p in _all_shipped().values() if p.parents[1].name == package)
    return [path.name for path in paths if set(read_tree(path)) <= set(cls.model_fields)]


def _extended(path: Path, parent: str) -> Path:
    """The file that `path` extends. A file of a shipped one's name may extend that one: itself it cannot mean."""
    beside = path.parent / parent
    shipped = _shipped(parent)
    if beside.is_file() and not (shipped and beside.resolve() == path):
        return beside
    if shipped is None:
        raise RecipeError([f"{path}: extends {parent}: no such file beside it; {_meant(parent)}"])
    return shipped


def _shipped(name: str) -> Path | None:
    file = name.removeprefix("./") if name.endswith(".yaml") else f"{name}.yaml"
    return _all_shipped().get(file)


def _all_shipped() -> dict[str, Path]:
    found: dict[str, Path] = {}
    for package in RECIPE_PACKAGES:
        folder = Path(str(resources.files(package))) / "recipes"
        found |= {p.name: p for p in sorted(folder.glob("*.yaml"))}
    return found


def _meant(name: str) -> str:
    known = sorted(_all_shipped())
    near = difflib.get_close_matches(f"{Path(name).name.removesuffix('.yaml')}.yaml", known, n=1, cutoff=0.75)
    return f"did you mean '{near[0]}'?" if near else f"shipped recipes: {', '.join(known) or 'none'}"
