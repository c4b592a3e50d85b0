"""What is wrong with a recipe, one line each: the key as the user writes it, what is allowed, how to mend it."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from infra.base.fields import FieldRow, Section, field_rows, find_field, sections_of
from infra.base.recipe_files import shipped_for

NO_SECTION = ("model_type", "model_attributes_type", "dict_type")


def problems(cls: Section, tree: Mapping[str, Any], error: ValidationError, source: str | None) -> list[str]:
    """The lines for every problem that validation found in a recipe's tree."""
    where = f"recipe {source}" if source else "the recipe"
    found = [(_written_key(cls, tree, item["loc"]), item) for item in error.errors()]
    lines, absent = [], [key for key, item in found if item["type"] == "missing" and "." not in key]
    shipped = shipped_for(cls) if absent and source is None else []
    if shipped:
        names = ", ".join(f"'{key}'" for key in absent)
        lines.append(
            f"no {names} without a recipe; name one with --config: {', '.join(shipped)} (shipped), or a file of yours"
        )
    for key, item in found:
        if item["type"] == "missing" and key in absent and shipped:
            continue
        lines.append(_line(cls, tree, key, item, where))
    return lines


def _line(cls: Section, tree: Mapping[str, Any], key: str, item: Any, where: str) -> str:
    kind, value = item["type"], item["input"]
    section = find_field(cls, key.split("."), tree)[0]
    kinds = sections_of(section) if section is not None else {}
    if kind == "extra_forbidden":
        return f"unknown key '{key}' in {where}; {_hint(cls, tree, key)}"
    if kind in ("union_tag_not_found", "union_tag_invalid") or (kind == "missing" and len(kinds) > 1):
        said = f" = {value['kind']!r}" if kind == "union_tag_invalid" else " is missing"
        # of a section inside a mapping pydantic alone knows them
        known = ", ".join(kinds) or str(item.get("ctx", {}).get("expected_tags", "")).replace("'", "")
        return f"{key}.kind{said} in {where}; set --{key}.kind to one of {known}"
    if kind == "missing" and kinds:
        needed = [r.key for r in field_rows(kinds[""], f"{key}.") if r.default == "required"]
        return f"'{key}' is missing in {where}; set {' '.join(f'--{k} VALUE' for k in needed)} or the keys in the file"
    if kind == "missing":
        return f"'{key}' is missing in {where}; set --{key} VALUE or the key in the file"
    if kind in NO_SECTION and kinds:
        keys = [f"{key}.kind"] if len(kinds) > 1 else [r.key for r in field_rows(kinds[""], f"{key}.")]
        return f"{key} = {value!r} in {where}: is a section; set its keys (--{keys[0]} VALUE …)"
    message = item["msg"].removeprefix("Value error, ")
    if not key:
        return f"{where}: {message}"
    if isinstance(value, Mapping | BaseModel):
        return f"{key}: {message}; fix its keys (--{key}.…) in {where}"
    return f"{key} = {value!r}: {message}; fix --{key} or the key in {where}"


def _hint(cls: Section, tree: Mapping[str, Any], key: str) -> str:
    """For an unknown key: the kind of section it belongs to, else the known key most like it, else all of them."""
    rows = field_rows(cls)
    own = [row for row in rows if row.key == key or row.key.startswith(f"{key}.")]
    wrong = [(choice, kind) for row in own for choice, kind in row.only if _value(tree, choice) != kind]
    if wrong:
        choice = wrong[0][0]
        kinds = " or ".join(dict.fromkeys(kind for other, kind in wrong if other == choice))
        found = _value(tree, choice)
        return f"it belongs to {choice} {kinds}, and {choice} is {found}: leave it out, or set another --{choice}"
    known = [row.key for row in rows if _holds(row, tree)]
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"did you mean '{near[0]}'?" if near else f"known keys: {', '.join(known)}"


def _holds(row: FieldRow, tree: Mapping[str, Any]) -> bool:
    """Whether the tree's choices leave a place for the field."""
    return all(_value(tree, choice) in (kind, None) for choice, kind in row.only)


def _value(tree: Any, key: str) -> Any:
    for part in key.split("."):
        tree = tree.get(part) if isinstance(tree, Mapping) else None
    return tree


def _written_key(cls: Section, tree: Any, place: Sequence[str | int]) -> str:
    """The place of an error as the user writes it: pydantic also names the chosen member of a union."""
    parts: list[str] = []
    section: Section | None = cls
    rest = list(place)
    while rest:
        part = rest.pop(0)
        known = section is not None and part in section.model_fields
        kinds = sections_of(section.model_fields[str(part)]) if section and known else {}
        inside = isinstance(tree, Mapping) and part in tree
        if known or inside or isinstance(part, int) or not rest:
            parts.append(str(part))
        tree = tree[part] if inside else None if known else tree
        tag = str(rest.pop(0)) if len(kinds) > 1 and rest else ""
        section = kinds.get(tag)
    return ".".join(parts)
