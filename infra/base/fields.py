"""The fields of a recipe by their dotted keys: what each holds, in words, and how a command line's words become it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, NamedTuple, Union, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

LISTS = (list, tuple, set, frozenset, Sequence, Iterable)
Section = type[BaseModel]


class FieldRow(NamedTuple):
    """What help says of a field."""

    key: str
    """Dotted."""
    type: str
    """What it holds, in words."""
    default: str
    """JSON, or "required"."""
    help: str
    only: tuple[tuple[str, str], ...] = ()
    """Choices (key, kind) under which there is such a field; outermost first."""


def field_rows(cls: Section, prefix: str = "", only: tuple[tuple[str, str], ...] = ()) -> list[FieldRow]:
    """The rows of every field, nested sections flattened.

    Of a union of sections there is one row for its `kind`, then the fields of each kind of their own.
    """
    rows: list[FieldRow] = []
    for name, field in cls.model_fields.items():
        key, text = prefix + name, " ".join((field.description or "").split())
        kinds = sections_of(field)
        default = "required" if field.is_required() else _short(field.get_default(call_default_factory=True))
        if len(kinds) > 1:
            rows.append(FieldRow(f"{key}.kind", " | ".join(kinds), default, text, only))
            for kind, section in kinds.items():
                inner = field_rows(section, f"{key}.", (*only, (f"{key}.kind", kind)))
                rows += [row for row in inner if row.key != f"{key}.kind"]
        elif kinds:
            rows += field_rows(next(iter(kinds.values())), f"{key}.", only)
        else:
            rows.append(FieldRow(key, in_words(field.annotation, field.metadata), default, text, only))
    return rows


def sections_of(field: Any) -> dict[str, Section]:
    """Kind → section of what a field or an annotation may hold; a single section, also an optional one, is kind ""."""
    options = [_bare(o) for o in _options(field.annotation if isinstance(field, FieldInfo) else field)]
    found = [o for o in options if isinstance(o, type) and issubclass(o, BaseModel)]
    if len(found) < 2:
        return {"": found[0]} if found else {}
    return {str(section.model_fields["kind"].default): section for section in found}


def in_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type as people say it: `whole number > 0 or null`, `list of text`, `dev | test`."""
    options = _options(annotation)
    if len(options) > 1:
        return " or ".join(in_words(o, metadata if o is not NoneType else ()) for o in options)
    (only,) = options
    metadata = [*metadata, *_metadata(only)]
    kind, inner = _bare(only), get_args(_bare(only))
    origin = get_origin(kind) or kind
    if origin is Literal:
        return " | ".join(str(value) for value in inner)
    if origin is tuple and inner[-1:] != (...,):
        return f"[{', '.join(in_words(i) for i in inner)}]"
    if origin in LISTS:
        least = _bound(metadata, "min_length")
        return f"list of {in_words(inner[0])}" + (f", at least {least}" if least else "")
    if origin is dict:
        return f"mapping of {in_words(inner[0])} to {in_words(inner[1])}"
    if sections_of(kind):
        return f"{{{', '.join(kind.model_fields)}}}"
    names = {bool: "true | false", int: "whole number", float: "number", str: "text", NoneType: "null"}
    return names.get(kind, "any value") + _bounds(metadata)


def find_field(cls: Section, path: Sequence[str], tree: Any) -> tuple[Any, list[str]]:
    """The annotation of the field that a dotted path names, and the path as the recipe's tree has it.

    In a union of sections the tree's `kind` decides. Below a mapping to anything at all, dots are part of the key.
    The annotation is None where there is no such field.
    """
    if not path or path[0] not in cls.model_fields:
        return None, list(path)
    field = cls.model_fields[path[0]]
    found, rest = _below(field.annotation, path[1:], tree.get(path[0]) if isinstance(tree, Mapping) else None)
    return found, [path[0], *rest]


def _below(annotation: Any, path: Sequence[str], tree: Any) -> tuple[Any, list[str]]:
    if not path:
        return annotation, []
    kinds = sections_of(annotation)
    if kinds:
        chosen = kinds.get(str(tree.get("kind"))) if isinstance(tree, Mapping) else None
        having = [s for s in kinds.values() if path[0] in s.model_fields]
        section = chosen or next(iter(having), None)
        return find_field(section, path, tree) if section else (None, list(path))
    for option in map(_bare, _options(annotation)):
        if get_origin(option) is dict:
            value = get_args(option)[1]
            if value is Any:
                return Any, [".".join(path)]
            inner = tree.get(path[0]) if isinstance(tree, Mapping) else None
            found, rest = _below(value, path[1:], inner)
            return found, [path[0], *rest]
    return None, list(path)


def read_value(annotation: Any, words: str) -> Any:
    """What a command line's words mean for a field of that type; what they may not mean is left to validation.

    A text takes the words as they are, a list takes one bare word as a list of one. Lists, mappings and sections that
    begin with a bracket, values of any type and `null` where it is allowed are read as YAML.

    Raises:
        yaml.YAMLError: the words begin as a list or mapping and are none.
    """
    options = [_bare(o) for o in _options(annotation)]
    if words == "null" and NoneType in options:
        return None
    origins = [get_origin(o) or o for o in options]
    lists = [o for o in options if get_origin(o) in LISTS]
    trees = lists or dict in origins or bool(sections_of(annotation))
    if trees and words[:1] in ("[", "{"):
        return yaml.safe_load(words)
    if str in options or annotation is None:
        return words
    if any(get_origin(o) is not tuple or get_args(o)[-1:] == (...,) for o in lists):
        return [words]
    if Any in options or any(
        not isinstance(v, str) for o in options if get_origin(o) is Literal for v in get_args(o)
    ):
        return yaml.safe_load(words)
    return words


def _options(annotation: Any) -> list[Any]:
    """The members of a union, None last; a type that is no union is its own only member."""
    bare = _bare(annotation)
    if get_origin(bare) not in (Union, UnionType):
        return [annotation]
    inner = [o for member in get_args(bare) for o in _options(member)]
    return [o for o in inner if o is not NoneType] + [o for o in inner if o is NoneType]


def _bare(annotation: Any) -> Any:
    while get_origin(annotation) is Annotated:
        annotation = get_args(annotation)[0]
    return annotation


def _metadata(annotation: Any) -> list[Any]:
    if get_origin(annotation) is not Annotated:
        return []
    inner, *data = get_args(annotation)
    return [*_metadata(inner), *(m for d in data for m in (d.metadata if isinstance(d, FieldInfo) else [d]))]


def _bound(metadata: Sequence[Any], name: str) -> Any:
    return next((getattr(m, name) for m in metadata if getattr(m, name, None) is not None), None)


def _bounds(metadata: Sequence[Any]) -> str:
    above, least, below, most = (_bound(metadata, name) for name in ("gt", "ge", "lt", "le"))
    pattern = _bound(metadata, "pattern")
    if least is not None and most is not None:
        return f" from {_plain(least)} to {_plain(most)}"
    stated = ((">", above), ("≥", least), ("<", below), ("≤", most))
    parts = [f"{sign} {_plain(value)}" for sign, value in stated if value is not None]
    return f" {' and '.join(parts)}" if parts else f" like {pattern}" if pattern else ""


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def _short(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False) if not isinstance(value, BaseModel) else "{…}"
    return text if len(text) <= 60 else text[:57] + "…"
