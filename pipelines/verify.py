"""`oacir data verify`: holds everything a manifest states against what lies there."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from infra.base import storage, versions
from infra.base.catalogue import table_name
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import Progress
from infra.base.tables import aligned, size
from infra.base.versions import FileEntry, Kind, Version
from pipelines.contents import recompute
from pipelines.gallery import gallery_hash, gallery_id

READERS = 8
SHOWN = 40
"""Lines of the table of what is wrong; --json has all of it."""


class VerifyRecipe(Config):
    """Which version to verify."""

    dataset: str
    """The version: a path or URL, name/key, or name (the newest of it)."""
    kind: Kind = "datasets"
    """Its kind, where it is not given by a path or URL."""


@dataclass(frozen=True)
class Fault:
    """Something that is not as the manifest states it."""

    check: str
    """file | rows | account | content | gallery | query"""
    where: str
    """A file, an account, a gallery or a query."""
    problem: str


def verify(recipe: VerifyRecipe, context: Context) -> Outcome:
    """Read every byte of a version and say what is wrong with it; exit code 3 if anything is.

    Checked are the size, SHA-256 and rows of each file, also of those that a table of files lists; the accounts, their
    sums and the rows of rejects they speak of; the content hash, computed anew from the rows; and of a benchmark the
    hash of each gallery, and that every query finds its images there.

    Raises:
        VersionError: there is no such version.
    """
    version = versions.resolve(context.root, recipe.kind, recipe.dataset)
    listed = list(_listed_files(version))
    files = [*version.manifest.files, *listed]
    total = sum(f.size_bytes for f in files)
    if context.dry_run:
        return Outcome(f"would read {len(files):,} files, {size(total)}: {version.url}", version.url)
    faults = _file_faults(version, files)
    for name, check in CHECKS.items():
        try:
            faults += check(version)
        except (OacirError, OSError, ValueError, KeyError) as error:
            text = " ".join(str(error).split())[:160]
            faults.append(Fault(name, version.url, f"cannot be checked: {text}"))
    figures: dict[str, Any] = {
        "files": len(files),
        "bytes": total,
        "content_hash": version.manifest.content_hash,
        "faults": [vars(f) for f in faults],
    }
    if not faults:
        return Outcome(
            f"all is as the manifest states: {len(files):,} files, {size(total)}: {version.url}",
            version.url,
            figures,
        )
    rows = [["check", "where", "what is wrong"], *([f.check, f.where, f.problem] for f in faults[:SHOWN])]
    more = [f"… and {len(faults) - SHOWN:,} more (--json)"] if len(faults) > SHOWN else []
    return Outcome(
        f"{len(faults):,} things are not as the manifest states: {version.url}",
        version.url,
        figures,
        (*aligned(rows), *more),
        refused=f"{version.url} is damaged or was changed; make it again with its command, or restore it",
    )


def _listed_files(version: Version) -> Iterator[FileEntry]:
    """The files that a table `files` of the version lists (a rendered world's images)."""
    for file in version.manifest.files:
        if table_name(file.path) == "files":
            try:
                rows = storage.read_table(version.path(file.path)).to_pylist()
            except (OacirError, OSError, ValueError):
                continue  # the table itself is among the files that are checked
            yield from (FileEntry.model_validate(row) for row in rows)


def _file_faults(version: Version, files: Sequence[FileEntry]) -> list[Fault]:
    faults: list[Fault] = []
    with ThreadPoolExecutor(READERS) as pool, Progress("verify", len(files), "files") as progress:
        for found in pool.map(lambda file: _file_fault(version, file), files):
            faults += [found] if found else []
            progress.update()
    return faults


def _file_fault(version: Version, file: FileEntry) -> Fault | None:
    url = version.path(file.path)
    try:
        filesystem, inner = storage.filesystem(url)
        found_bytes = int(filesystem.size(inner))
        if found_bytes != file.size_bytes:
            return Fault("file", file.path, f"{found_bytes:,} bytes, stated are {file.size_bytes:,}")
        digest = storage.sha256_of(url)
    except OSError as error:
        return Fault("file", file.path, f"cannot be read ({error.strerror or type(error).__name__})")
    if digest != file.sha256:
        return Fault("file", file.path, f"SHA-256 {digest[:12]}…, stated is {file.sha256[:12]}…")
    if file.rows is not None and file.path.endswith(".parquet"):
        with storage.open_parquet(url) as table:
            rows = table.metadata.num_rows
        if rows != file.rows:
            return Fault("rows", file.path, f"{rows:,} rows, stated are {file.rows:,}")
    return None


def _account_faults(version: Version) -> Iterator[Fault]:
    """Accounts that do not add up, and those that speak of other rejects than there are rows."""
    stated: Counter[tuple[str, str]] = Counter()
    for stage, accounts in version.manifest.accounts.items():
        for account in accounts:
            if account.taken_in != account.accounted:
                problem = f"{account.taken_in:,} came in, {account.accounted:,} are accounted for"
                yield Fault("account", f"{stage}, {account.entity}", problem)
            for reason, count in account.rejected.items():
                stated[account.entity, reason] += count
    found: Counter[tuple[str, str]] = Counter()
    if any(table_name(f.path).startswith("rejects") for f in version.manifest.files):
        for row in version.table("rejects").to_pylist():
            found[row["entity"], row["reason"]] += row.get("records") or 1
    for key in sorted(found.keys() | stated.keys()):
        if found[key] != stated[key]:
            problem = f"{found[key]:,} records in the table of rejects, the accounts say {stated[key]:,}"
            yield Fault("account", ", ".join(key), problem)


def _content_faults(version: Version) -> Iterator[Fault]:
    found = recompute(version)
    if found not in (None, version.manifest.content_hash):
        stated = version.manifest.content_hash
        yield Fault("content", version.url, f"content hash {found[:12]}…, stated is {stated[:12]}…")


def _gallery_faults(version: Version) -> Iterator[Fault]:
    """Galleries that are not the stated ones, and queries whose images are not where they are looked for."""
    stated = version.manifest.figures.get("galleries", {})
    if version.manifest.kind != "datasets" or not stated:
        return
    galleries: dict[str, set[str]] = {}
    for row in version.table("gallery", ["gallery_id", "image_id"]).to_pylist():
        galleries.setdefault(row["gallery_id"], set()).add(row["image_id"])
    for place in sorted(stated.keys() | galleries.keys()):
        found = gallery_hash(galleries.get(place, ()))
        claimed = str(stated.get(place, {}).get("sha256"))
        if found != claimed:
            yield Fault("gallery", place, f"hash {found[:12]}…, stated is {claimed[:12]}…")
    images = set(version.table("images", ["image_id"])["image_id"].to_pylist())
    columns = ["query_id", "domain", "split", "reference_id", "target_ids"]
    for row in version.table("quadruples", columns).to_pylist():
        inside = galleries.get(gallery_id(row["domain"], row["split"]), images)
        for image_id in {row["reference_id"], *row["target_ids"]} - images:
            yield Fault("query", row["query_id"], f"{image_id} is not in the table of images")
        for image_id in set(row["target_ids"]) - inside:
            yield Fault("query", row["query_id"], f"its target {image_id} is not in its gallery")


CHECKS: dict[str, Callable[[Version], Iterator[Fault]]] = {
    "account": _account_faults,
    "content": _content_faults,
    "gallery": _gallery_faults,
}
"""What is checked beside the files."""
