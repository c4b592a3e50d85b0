"""Versions: everything a verb makes lies under one root, is addressed by its recipe and inputs, and becomes visible
when `manifest.json` is written last. Without a manifest it does not exist for readers; half-finished ones resume."""

from __future__ import annotations

import datetime
import hashlib
import json
import logging
import subprocess
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import pydantic
from pydantic import Field, field_validator

from infra.base import logs, storage
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError, VersionError
from infra.base.secrets import require_no_password

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)
SCHEMA_VERSION = 1
MANIFEST, MARKER = "manifest.json", "started.json"
Kind = Literal["datasets", "features", "runs", "evaluations", "sweeps"]


class FileEntry(Config):
    """One file of a version."""

    path: str
    """Relative to the version."""
    size_bytes: int
    sha256: str
    rows: int | None = None
    """Rows, for tables."""

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        if path.startswith("/") or ".." in path.split("/"):
            raise ValueError(f"path {path!r} leads out of the version")
        return path


class Manifest(Config):
    """What a finished version holds and where it came from."""

    schema_version: int = SCHEMA_VERSION
    kind: Kind
    name: str
    key: str
    """Hash of the resolved recipe and the inputs."""
    content_hash: str
    """Equal for equal results, however the run went."""
    files: list[FileEntry]
    recipe: dict[str, Any]
    parents: dict[str, str] = Field(default_factory=dict)
    """Role → content hash of the version it was made from."""
    code_version: str
    created_at: str
    """ISO time in UTC. As texts these sort by time, also beside the whole seconds of earlier code."""
    seconds: dict[str, float] = Field(default_factory=dict)
    """Seconds by stage. Of a build, summed over its parallel workers and all runs that worked on it; of embed, train
    and evaluate, of the run that finished it alone."""
    wall_seconds: float | None = None
    """From the start to the end of the run that finished it; null in versions that earlier code made."""
    accounts: dict[str, list[Account]] = Field(default_factory=dict)
    """Per stage."""
    figures: dict[str, Any] = Field(default_factory=dict)
    """Kind-specific numbers."""


@dataclass(frozen=True)
class Version:
    """A finished version: its URL and manifest."""

    url: str
    manifest: Manifest

    def path(self, *parts: str) -> str:
        """The URL of something inside."""
        return storage.join(self.url, *parts)

    def holds(self, name: str | None) -> bool:
        """Whether it has a table of that name; of no name, always."""
        return name is None or any(
            f.path.startswith(f"{name}/") or f.path == f"{name}.parquet" for f in self.manifest.files
        )

    def table(self, name: str, columns: list[str] | None = None) -> pa.Table:
        """All rows of one of its tables (`<name>/part-*.parquet`, or `<name>.parquet`) in file order.

        Raises:
            VersionError: it holds no such table.
        """
        import pyarrow as pa

        paths = self.table_files(name)
        if not paths:
            raise VersionError(f"{self.url}: holds no table '{name}'; it is a {self.manifest.kind} version")
        return pa.concat_tables([storage.read_table(self.path(p), columns) for p in paths])

    def tables(self, name: str, columns: list[str] | None = None) -> Iterator[pa.Table]:
        """The same, one file in memory at a time; nothing where it holds no such table."""
        for path in self.table_files(name):
            yield storage.read_table(self.path(path), columns)

    def table_files(self, name: str) -> list[str]:
        """Paths of a table's files, in order."""
        return [
            f.path
            for f in self.manifest.files
            if f.path.startswith(f"{name}/") or f.path == f"{name}.parquet"
        ]


@dataclass(frozen=True)
class Draft:
    """A version being made. `finished` is its manifest if the same recipe over the same input is already done."""

    url: str
    kind: Kind
    name: str
    key: str
    recipe: dict[str, Any]
    finished: Manifest | None
    began: float = field(default_factory=time.monotonic)
    """When this run started on it, on the clock `time.monotonic`."""

    def path(self, *parts: str) -> str:
        """The URL of something inside."""
        return storage.join(self.url, *parts)

    def uses(self, parents: Mapping[str, str]) -> None:
        """Say what it is being made from (role → content hash), so that `data gc` leaves that alone meanwhile."""
        place = self.path(MARKER)
        begun = json.loads(storage.read_bytes(place))
        if begun.get("parents", {}) != parents:
            storage.write_bytes(place, json.dumps(begun | {"parents": dict(parents)}).encode())

    def commit(
        self,
        *,
        content_hash: str,
        files: Iterable[FileEntry],
        parents: Mapping[str, str] | None = None,
        seconds: Mapping[str, float] | None = None,
        accounts: Mapping[str, list[Account]] | None = None,
        figures: Mapping[str, Any] | None = None,
    ) -> Version:
        """Check the accounts and make the version visible.

        Raises:
            OacirError: an account does not add up, or another process committed other content meanwhile.
        """
        manifest = Manifest(
            kind=self.kind,
            name=self.name,
            key=self.key,
            content_hash=content_hash,
            files=sorted(files, key=lambda f: f.path),
            recipe=self.recipe,
            parents=dict(parents or {}),
            code_version=code_version(),
            created_at=datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds"),
            seconds={k: round(v, 3) for k, v in (seconds or {}).items()},
            wall_seconds=round(time.monotonic() - self.began, 3),
            accounts={stage: [a.check() for a in items] for stage, items in (accounts or {}).items()},
            figures=dict(figures or {}),
        )
        text = json.dumps(manifest.model_dump(mode="json"), indent=1, ensure_ascii=False, sort_keys=True)
        if not storage.write_new(self.path(MANIFEST), text.encode()):
            other = open_version(self.url)
            if other.manifest.content_hash != content_hash:
                raise OacirError(
                    f"{self.url}: another process finished it with other content; run again to compare"
                )
            return other
        return Version(self.url, manifest)


def start(kind: Kind, name: str, key: str, recipe: Config, *, root: str, out: str | None = None) -> Draft:
    """Open the place of a version for writing, new or half-finished.

    Raises:
        OacirError: the recipe holds a password, or `out` another version, or files that are none.
    """
    url = storage.absolute(out) if out else storage.join(storage.absolute(root), kind, name, key)
    require_no_password(recipe.model_dump(mode="json"), "the version")
    logs.now(kind=kind, run=f"{name}/{key}")
    finished = None
    if storage.exists(storage.join(url, MANIFEST)):
        finished = open_version(url).manifest
        _same_key(url, finished.key, key, "a finished version")
    elif storage.exists(storage.join(url, MARKER)):
        begun = json.loads(storage.read_bytes(storage.join(url, MARKER)))
        _same_key(url, begun["key"], key, "a half-finished version")
    elif next(iter(storage.list_files(url)), None) is not None:
        raise OacirError(
            f"{url}: holds files that are no version of oacir; choose an empty folder with --out"
        )
    else:
        marker = {"kind": kind, "name": name, "key": key, "recipe": recipe.model_dump(mode="json")}
        storage.write_bytes(storage.join(url, MARKER), json.dumps(marker).encode())
    return Draft(url, kind, name, key, recipe.model_dump(mode="json"), finished)


def open_version(url: str) -> Version:
    """A finished version at a URL.

    Raises:
        VersionError: none, unfinished, damaged, or of a schema this code does not know.
    """
    url = storage.absolute(url)
    place = storage.join(url, MANIFEST)
    if not storage.exists(place):
        state = (
            "is unfinished; the same command goes on (run again what makes it)"
            if storage.exists(storage.join(url, MARKER))
            else "is no version of oacir (no manifest.json); check the path"
        )
        raise VersionError(f"{url}: {state}")
    try:
        data = json.loads(storage.read_bytes(place))
        number = data.get("schema_version")
        if number != SCHEMA_VERSION:
            raise VersionError(
                f"{url}: schema version {number} is not known here (this code reads {SCHEMA_VERSION});"
                " make it again with its command, or use the oacir release that wrote it"
            )
        return Version(url, Manifest.model_validate(data))
    except (ValueError, pydantic.ValidationError) as error:
        raise VersionError(
            f"{place}: damaged manifest ({' '.join(str(error).split())[:200]}); make it again"
        ) from error


def resolve(root: str, kind: Kind, reference: str, holding: str | None = None) -> Version:
    """The finished version a user means: a URL or path, `<name>/<key>`, or `<name>` (the newest of that name).

    Args:
        root: where versions lie.
        kind: of the version.
        reference: what the user said.
        holding: a table; a bare name then means the newest version of that name that has it.

    Raises:
        VersionError: nothing of that name, with what there is.
    """
    place = storage.absolute(reference)
    if storage.is_s3(reference) or any(storage.exists(storage.join(place, f)) for f in (MANIFEST, MARKER)):
        return open_version(reference)
    base = storage.join(storage.absolute(root), kind)
    name, _, key = reference.partition("/")
    if key and any(storage.exists(storage.join(base, name, key, f)) for f in (MANIFEST, MARKER)):
        return open_version(storage.join(base, name, key))
    found = [v for v in list_versions(root, kind, name) if v.holds(holding)] if not key else []
    if not found:
        there = (
            ", ".join(sorted({f"{v.manifest.name}/{v.manifest.key}" for v in list_versions(root, kind)}))
            or "none"
        )
        raise VersionError(
            f"no finished {kind} '{reference}'{f' with {holding}' if holding else ''} (neither the path of one nor"
            f" under {base}); there are: {there}{_begun(base, name) if not key else ''}"
        )
    return max(found, key=lambda v: v.manifest.created_at)


def list_versions(root: str, kind: Kind, name: str | None = None) -> list[Version]:
    """Every finished version of a kind under the root; one that cannot be read is left out with a warning."""
    base = storage.join(storage.absolute(root), kind)
    names = [name] if name else storage.list_folders(base)
    places = [
        storage.join(base, n, key) for n in names for key in storage.list_folders(storage.join(base, n))
    ]
    found = []
    for place in places:
        if storage.exists(storage.join(place, MANIFEST)):
            try:
                found.append(open_version(place))
            except VersionError as error:
                _warn_once(f"left out: {error}")
    return found


@cache
def _warn_once(text: str) -> None:
    """A command may look through the same versions several times."""
    log.warning(text)


def _begun(base: str, name: str) -> str:
    """What lies unfinished under a name, for the message that nothing finished does."""
    places = [storage.join(base, name, key) for key in storage.list_folders(storage.join(base, name))]
    found = [
        f"{name}/{storage.name_of(p)}"
        for p in places
        if storage.exists(storage.join(p, MARKER)) and not storage.exists(storage.join(p, MANIFEST))
    ]
    return f"; unfinished, the same command goes on: {', '.join(found)}" if found else ""


def file_entry(version_url: str, path: str, rows: int | None = None) -> FileEntry:
    """The entry of a file that lies in a version, its bytes read and hashed."""
    url = storage.join(version_url, path)
    filesystem, inner = storage.filesystem(url)
    return FileEntry(
        path=path, size_bytes=int(filesystem.size(inner)), sha256=storage.sha256_of(url), rows=rows
    )


def rows_hash(rows: Iterable[Mapping[str, Any]]) -> int:
    """A hash of a multiset of rows: equal for equal rows in any order; hashes of parts add up (see `combine`)."""
    total = 0
    for row in rows:
        text = json.dumps(row, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        total += int.from_bytes(hashlib.sha256(text.encode()).digest())
    return total % (1 << 256)


def combine(hashes: Iterable[int]) -> int:
    """The hash of all rows of parts from the hashes of the parts, in any order."""
    return sum(hashes) % (1 << 256)


def content_hash(parts: Mapping[str, int | str]) -> str:
    """The content hash of a version from the hashes of its named contents."""
    text = json.dumps({k: f"{v:064x}" if isinstance(v, int) else v for k, v in parts.items()}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _same_key(url: str, found: str, wanted: str, what: str) -> None:
    if found != wanted:
        raise OacirError(
            f"{url}: holds {what} of another recipe or input (key {found}, this one is {wanted});"
            " choose another --out, or delete it"
        )


@cache
def code_version() -> str:
    """The package version, with the git revision where the code lies in a checkout."""
    version = metadata.version("oacir")
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return version
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty"], cwd=here, capture_output=True, text=True, check=False
    )
    return f"{version}+{done.stdout.strip()}" if done.returncode == 0 else version
