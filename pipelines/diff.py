"""`oacir data diff`: what one dataset version has that another has not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from infra.base import versions
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.tables import aligned
from infra.base.versions import Version
from pipelines.data import flat


class DiffRecipe(Config):
    """Which versions to compare."""

    before: str
    """The earlier dataset: a path or URL of a version, name/key, or name (the newest of it)."""
    after: str
    """The later one."""
    names: Annotated[int, Field(ge=0)] = 5
    """How many names of each change are shown, the first in order."""


@dataclass(frozen=True)
class Record:
    """What is compared of a record."""

    split: str | None
    content: Any
    """What it is, beside its split: an image's hash, a quadruple's images, box and text."""


Records = Mapping[str, Record]


def diff(recipe: DiffRecipe, context: Context) -> Outcome:
    """Instances, images and quadruples that were added, removed, changed, or moved to another split.

    Raises:
        VersionError: there is no such version.
    """
    before, after = (versions.resolve(context.root, "datasets", r) for r in (recipe.before, recipe.after))
    figures: dict[str, Any] = {"before": before.url, "after": after.url}
    same = before.manifest.content_hash == after.manifest.content_hash
    rows = [["", "before", "after", "added", "removed", "changed", "other split"]]
    named: list[str] = []
    for entity, table in TABLES.items():
        found = compare(_records(before, table), _records(after, table), recipe.names)
        figures[entity] = found
        counts = [f"{found[k]:,}" if found[k] else "–" for k in COUNTS]
        rows.append([entity, *counts])
        named += [f"{entity} {line}" for line in _first(found)]
    figures["recipe"] = recipe_changes(before.manifest.recipe, after.manifest.recipe)
    changes = [[f"  {key}", f"{old} → {new}"] for key, (old, new) in figures["recipe"].items()]
    said = ["the recipes differ in", *aligned(changes)] if changes else []
    what = "have the same content" if same else "differ"
    figures["same_content"] = same
    return Outcome(
        f"{_short(before)} and {_short(after)} {what}",
        after.url,
        figures,
        (*aligned(rows, right=range(1, 7)), *named, *said),
    )


COUNTS = ("before", "after", "added", "removed", "changed", "moved")


def compare(before: Records, after: Records, names: int) -> dict[str, Any]:
    """What happened to the records of a table between two versions.

    Args:
        before: name → record.
        after: the same, later.
        names: most names of each change.

    Returns:
        `before`, `after`, `added`, `removed`, `changed` (other content) and `moved` (other split) as counts; `moves`:
        "train → test" → count; `first`: change → the first names in order.
    """
    added, removed = sorted(after.keys() - before.keys()), sorted(before.keys() - after.keys())
    both = sorted(before.keys() & after.keys())
    changed = [k for k in both if before[k].content != after[k].content]
    moved = [k for k in both if before[k].split != after[k].split]
    moves = Counter(f"{before[k].split} → {after[k].split}" for k in moved)
    lists = {"added": added, "removed": removed, "changed": changed, "moved": moved}
    return {
        "before": len(before),
        "after": len(after),
        **{name: len(keys) for name, keys in lists.items()},
        "moves": dict(sorted(moves.items())),
        "first": {name: keys[:names] for name, keys in lists.items() if keys and names},
    }


def recipe_changes(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """Dotted key → (value before, value after) where they differ; — where a recipe has no such key."""
    old, new = flat(before), flat(after)
    return {
        key: (old.get(key, "—"), new.get(key, "—"))
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    }


TABLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "instances": ("splits", "instance_id", ("domain", "category")),
    "images": ("images", "image_id", ("sha256",)),
    "quadruples": (
        "quadruples",
        "query_id",
        ("reference_id", "target_ids", "reference_box", "modification_text"),
    ),
}
"""Entity → its table, its name there, and what it is beside its split."""


def _records(version: Version, table: tuple[str, str, tuple[str, ...]]) -> dict[str, Record]:
    name, key, columns = table
    if not any(f.path.startswith((f"{name}/", f"{name}.")) for f in version.manifest.files):
        return {}
    rows = version.table(name, [key, "split", *columns])
    values = [rows[c].to_pylist() for c in columns]
    records = (Record(split, row) for split, *row in zip(rows["split"].to_pylist(), *values, strict=True))
    return dict(zip(rows[key].to_pylist(), records, strict=True))


def _first(found: Mapping[str, Any]) -> list[str]:
    lines = []
    for change, keys in found["first"].items():
        moves = ", ".join(f"{k} {n:,}" for k, n in found["moves"].items()) if change == "moved" else ""
        more = ", …" if found[change] > len(keys) else ""
        lines.append(f"{change}{f' ({moves})' if moves else ''}: {', '.join(keys)}{more}")
    return lines


def _short(version: Version) -> str:
    return f"{version.manifest.name}/{version.manifest.key}"
