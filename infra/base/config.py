"""Recipes: frozen, typed, judged as a whole; YAML files with command-line overrides."""

from __future__ import annotations

import difflib
import hashlib
import json
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from infra.base.errors import RecipeError

C = TypeVar("C", bound="Config")
RECIPE_PACKAGES = ("pipelines", "training", "tuning")


class Config(BaseModel):
    """Base of every recipe and section: frozen, unknown keys refused, attribute docstrings are the help."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


def load_recipe(cls: type[C], source: str | None, overrides: Sequence[tuple[str, str]] = ()) -> C:
    """Build a recipe from a YAML file (or a shipped recipe's name) and dotted overrides.

    A file may say `extends: other.yaml` (beside it) and lists only what differs. Override values stay strings, which
    pydantic converts; a value starting with `[` or `{`, and `null`, is read as YAML.

    Raises:
        RecipeError: naming every wrong key and value with what is allowed.
    """
    tree = _read_tree(source) if source else {}
    for key, value in overrides:
        _put(tree, key, value)
    try:
        return cls.model_validate(tree)
    except ValidationError as error:
        raise RecipeError(_problems(cls, tree, error, source)) from error


def recipe_hash(value: Config | Mapping[str, Any], *more: str) -> str:
    """Sixteen hex digits over the canonical JSON of a resolved recipe and any further identifying strings."""
    data = value.model_dump(mode="json") if isinstance(value, Config) else dict(value)
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256("\0".join((text, *more)).encode()).hexdigest()[:16]


def field_rows(cls: type[Config], prefix: str = "") -> list[tuple[str, str, str, str]]:
    """Rows (dotted key, type, default, help) of every field, nested sections flattened."""
    rows: list[tuple[str, str, str, str]] = []
    for name, field in cls.model_fields.items():
        sections = _section_types(field)
        for section in sections:
            only = f"(kind {_kind(section)}) " if len(sections) > 1 else ""
            rows += [(k, t, d, only + text) for k, t, d, text in field_rows(section, f"{prefix}{name}.")]
        if sections:
            continue
        kind = _type_name(field.annotation)
        default = "required" if field.is_required() else _short(field.get_default(call_default_factory=True))
        rows.append((prefix + name, kind, default, " ".join((field.description or "").split())))
    return rows


def find_recipe(source: str) -> Path:
    """The path of a recipe: a file as given, else a shipped recipe of that file name."""
    if Path(source).is_file():
        return Path(source)
    shipped: dict[str, Path] = {}
    for package in RECIPE_PACKAGES:
        folder = Path(str(resources.files(package))) / "recipes"
        shipped |= {p.name: p for p in sorted(folder.glob("*.yaml"))}
    name = Path(source).name if source.endswith(".yaml") else f"{source}.yaml"
    if "/" not in source.removeprefix("./") and name in shipped:
        return shipped[name]
    raise RecipeError(
        [f"--config {source}: no such file; shipped recipes: {', '.join(sorted(shipped)) or 'none'}"]
    )


def _read_tree(source: str, seen: tuple[Path, ...] = ()) -> dict[str, Any]:
    path = find_recipe(source).resolve()
    if path in seen:
        raise RecipeError([f"{path}: 'extends' goes in a circle; remove one of them"])
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise RecipeError([f"{path}: not valid YAML ({' '.join(str(error).split())})"]) from error
    if not isinstance(tree, dict):
        raise RecipeError([f"{path}: a recipe is a mapping of keys to values, found {type(tree).__name__}"])
    parent = tree.pop("extends", None)
    if parent is None:
        return tree
    return _merge(_read_tree(str(path.parent / str(parent)), (*seen, path)), tree)


def _merge(base: dict[str, Any], top: Mapping[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        old = merged.get(key)
        merged[key] = _merge(old, value) if isinstance(old, dict) and isinstance(value, Mapping) else value
    return merged


def _put(tree: dict[str, Any], key: str, value: str) -> None:
    *sections, leaf = key.split(".")
    for section in sections:
        inner = tree.get(section)
        inner = dict(inner) if isinstance(inner, dict) else {}
        tree[section] = inner
        tree = inner
    if value[:1] in ("[", "{") or value == "null":
        try:
            tree[leaf] = yaml.safe_load(value)
            return
        except yaml.YAMLError as error:
            raise RecipeError(
                [f"--{key} {value}: not valid YAML ({' '.join(str(error).split())})"]
            ) from error
    tree[leaf] = value


def _problems(
    cls: type[Config], tree: Mapping[str, Any], error: ValidationError, source: str | None
) -> list[str]:
    where = f"recipe {source}" if source else "the recipe"
    known = [row[0] for row in field_rows(cls)]
    lines = []
    for item in error.errors():
        key = ".".join(_written_key(tree, item["loc"])) or "(the whole recipe)"
        if item["type"] == "extra_forbidden":
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"
            lines.append(f"unknown key '{key}' in {where}; {hint}")
        elif item["type"] == "missing":
            lines.append(f"'{key}' is missing in {where}; set --{key} VALUE or the key in the file")
        else:
            message = item["msg"].removeprefix("Value error, ")
            lines.append(f"{key} = {item['input']!r}: {message}; fix --{key} or the key in {where}")
    return lines


def _written_key(tree: Any, place: Sequence[str | int]) -> list[str]:
    """The place of an error as the user writes it: pydantic also names the chosen member of a union."""
    parts: list[str] = []
    for index, part in enumerate(place):
        inside = isinstance(tree, Mapping) and part in tree
        if inside or isinstance(part, int) or index == len(place) - 1:
            parts.append(str(part))
        if inside:
            tree = tree[part]
    return parts


def _section_types(field: FieldInfo) -> list[type[Config]]:
    """The nested sections a field may hold: one, also when it is optional, or those of a union."""
    kind = field.annotation
    if _is_collection(kind):
        return []
    options = (kind, *get_args(kind))
    return [o for o in options if isinstance(o, type) and issubclass(o, Config)]


def _kind(section: type[Config]) -> str:
    """The value of `kind` that selects a section of a union."""
    return str(section.model_fields["kind"].default)


def _is_collection(kind: Any) -> bool:
    return getattr(kind, "__origin__", None) in (list, tuple, dict)


def _type_name(kind: Any) -> str:
    text = kind.__name__ if isinstance(kind, type) and not get_args(kind) else str(kind)
    for noise in ("typing.", "collections.abc.", "NoneType"):
        text = text.replace(noise, "")
    return text.replace(" | None", "?")


def _short(value: Any) -> str:
    text = json.dumps(value, default=str) if not isinstance(value, Config) else "{…}"
    return text if len(text) <= 60 else text[:57] + "…"
