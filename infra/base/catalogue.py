"""What lies under a root: every version, finished or not, what refers to it, and what nothing needs any more."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from infra.base import storage
from infra.base.errors import VersionError
from infra.base.versions import MANIFEST, MARKER, Kind, Manifest, open_version

KINDS: tuple[Kind, ...] = get_args(Kind)
State = Literal["finished", "unfinished", "damaged"]
READERS = 16
WORKED_ON_DAYS = 1 / 24
"""An unfinished version that changed within this time is being worked on, however young garbage may be."""
MAIN_TABLES = ("quadruples", "listing", "index", "rankings", "history", "trials")
"""The table whose rows stand for a version: the first of these that it holds."""


@dataclass(frozen=True)
class Entry:
    """A place under the root where a version lies or is being made."""

    kind: Kind
    name: str
    key: str
    url: str
    manifest: Manifest | None
    """None while it is unfinished, or where its manifest cannot be read."""
    recipe: Mapping[str, Any]
    """What makes it; of an unfinished one as its marker says it."""
    problem: str = ""
    """Why the manifest cannot be read."""
    begun_from: Mapping[str, str] = field(default_factory=dict)
    """Role → content hash of what an unfinished one is being made from."""

    @property
    def state(self) -> State:
        """Whether readers see it."""
        return "finished" if self.manifest else "damaged" if self.problem else "unfinished"

    @property
    def rows(self) -> int | None:
        """Rows of its main table: queries of a benchmark, images of a world or a feature store, steps of a run,
        trials of a sweep."""
        return None if self.manifest is None else main_rows(self.manifest)

    @property
    def listed_bytes(self) -> int | None:
        """Bytes of the files its manifest lists."""
        return None if self.manifest is None else sum(f.size_bytes for f in self.manifest.files)

    def age_days(self, now: datetime.datetime) -> float | None:
        """Days since it was finished or, unfinished, since a file of it was last written; None where nothing lies."""
        if self.manifest is not None:
            return (now - datetime.datetime.fromisoformat(self.manifest.created_at)).total_seconds() / 86400
        changed = storage.last_change(self.url)
        return None if changed is None else (now.timestamp() - changed) / 86400


def main_rows(manifest: Manifest) -> int | None:
    """Rows of the table that stands for a version; None where it has none of them."""
    tables = table_sizes(manifest)
    return next((tables[name][1] for name in MAIN_TABLES if name in tables), None)


def table_sizes(manifest: Manifest) -> dict[str, tuple[int, int, int]]:
    """Table → files, rows, bytes; files that are no table of rows are left out."""
    sizes: dict[str, tuple[int, int, int]] = {}
    for file in manifest.files:
        if file.rows is not None:
            name = table_name(file.path)
            files, rows, size = sizes.get(name, (0, 0, 0))
            sizes[name] = (files + 1, rows + file.rows, size + file.size_bytes)
    return dict(sorted(sizes.items()))


def table_name(path: str) -> str:
    """The table that a file of a version belongs to: its folder, or its name where it lies at the top."""
    folder, slash, _ = path.rpartition("/")
    return folder if slash else path.removesuffix(".parquet")


def entries(root: str, kinds: Sequence[Kind] = KINDS, name: str | None = None) -> list[Entry]:
    """Every version of some kinds under a root, by kind, name and key. Folders that oacir did not make are left out."""
    base = storage.absolute(root)
    places = [
        (kind, one, key)
        for kind in kinds
        for one in storage.list_folders(storage.join(base, kind))
        if name in (None, one)
        for key in storage.list_folders(storage.join(base, kind, one))
    ]
    with ThreadPoolExecutor(READERS) as pool:  # a store answers in milliseconds, a root may hold thousands
        found = list(pool.map(lambda place: _entry(base, *place), places))
    return [entry for entry in found if entry is not None]


def _entry(base: str, kind: Kind, name: str, key: str) -> Entry | None:
    url = storage.join(base, kind, name, key)
    if storage.exists(storage.join(url, MANIFEST)):
        try:
            manifest = open_version(url).manifest
        except VersionError as error:
            return Entry(kind, name, key, url, None, {}, str(error))
        return Entry(kind, name, key, url, manifest, manifest.recipe)
    if not storage.exists(storage.join(url, MARKER)):
        return None
    begun = json.loads(storage.read_bytes(storage.join(url, MARKER)))
    return Entry(kind, name, key, url, None, begun.get("recipe", {}), begun_from=begun.get("parents", {}))


@dataclass(frozen=True)
class Garbage:
    """A version that may go."""

    entry: Entry
    why: str
    stored_bytes: int
    files: int


def garbage(
    everything: Sequence[Entry], kinds: Sequence[Kind], older_than_days: float, now: datetime.datetime
) -> list[Garbage]:
    """What nothing needs, of some kinds and older than an age.

    - An unfinished version is needed while it may still be worked on: until nothing in it changed for that long, and
      for an hour at least.
    - A finished one is needed if a manifest of any kind, or the marker of an unfinished version, names it as a parent,
      if a recipe (also of an unfinished version) says its name/key or a path or URL that goes through it, or if it is
      the newest of its name.
    - A damaged one is left alone: a person has to look.

    Args:
        everything: all versions of the root, whatever their kind; what refers to what is judged among these.
        kinds: of which some may go.
        older_than_days: of what may go.
        now: the time.
    """
    named = (e.manifest.parents if e.manifest else e.begun_from for e in everything)
    parents = {value for of in named for value in of.values()}
    said = "\n".join(f"/{text}/" for e in everything for text in strings(e.recipe))
    newest: dict[tuple[Kind, str], str] = {}
    for entry in everything:
        if entry.manifest:
            place = (entry.kind, entry.name)
            newest[place] = max(newest.get(place, ""), entry.manifest.created_at)
    found = []
    for entry in everything:
        if entry.kind not in kinds or entry.state == "damaged":
            continue
        age = entry.age_days(now)
        least = older_than_days if entry.manifest else max(older_than_days, WORKED_ON_DAYS)
        if age is None or age <= least:
            continue
        if entry.manifest is None:
            why = f"unfinished, untouched for {age:.1f} days"
        elif (
            entry.manifest.content_hash in parents
            or entry.manifest.created_at == newest[entry.kind, entry.name]
            or f"/{entry.name}/{entry.key}/" in said
        ):
            continue
        else:
            why = f"nothing refers to it, a newer {entry.name} exists, {age:.1f} days old"
            if any(table_name(file.path) == "files" for file in entry.manifest.files):
                why += "; it holds images, also of versions that --out put elsewhere"
        files = list(storage.list_files(entry.url))
        found.append(Garbage(entry, why, sum(max(0, f.size_bytes) for f in files), len(files)))
    return found


def delete(entry: Entry) -> None:
    """Delete a version: the manifest first, so that no reader ever sees half of it, the marker last."""
    storage.remove(storage.join(entry.url, MANIFEST))
    storage.remove(entry.url)


def strings(tree: Any) -> Iterator[str]:
    """Every string value of a recipe."""
    if isinstance(tree, str):
        yield tree
    elif isinstance(tree, Mapping):
        for value in tree.values():
            yield from strings(value)
    elif isinstance(tree, Iterable):
        for value in tree:
            yield from strings(value)
