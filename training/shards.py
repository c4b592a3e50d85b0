"""The shards of a store as files of this machine: where they lie, or fetched from S3 once for all its processes.

A shard is fetched by one process, in ranges over several connections (`storage.fetch`), under a name that nobody
reads; it is compared with the manifest, and renamed when it is whole. The others wait for the lock, a file lock that
the system takes away from a process that ends, however it ends; what a killed one left is written over.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from infra.base import storage
from infra.base.errors import VersionError
from infra.base.versions import FileEntry, Version

FETCH_THREADS = 4
"""Shards fetched at once, each over the connections of `s3.PIECES_AT_ONCE`."""


def local_shards(version: Version, entries: Sequence[FileEntry], cache: Path) -> list[Path]:
    """The files of these shards, all there and of full length.

    Args:
        version: the store.
        entries: its shards.
        cache: local folder for shards of a store on S3.

    Raises:
        VersionError: a shard is missing, short, or not the one of the manifest.
    """
    if not storage.is_s3(version.url):
        paths = [Path(version.path(entry.path)) for entry in entries]
        for path, entry in zip(paths, entries, strict=True):
            if not _whole(path, entry):
                raise VersionError(
                    f"{path}: missing or not {entry.size_bytes} bytes long; delete the store and run `oacir embed`"
                )
        return paths
    folder = cache / version.manifest.content_hash
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        return list(pool.map(lambda entry: _fetch(version, entry, folder), entries))


def _whole(path: Path, entry: FileEntry) -> bool:
    return path.is_file() and path.stat().st_size == entry.size_bytes


def _fetch(version: Version, entry: FileEntry, folder: Path) -> Path:
    path = folder / entry.path
    if _whole(path, entry):
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not _whole(path, entry):  # else another process fetched it meanwhile
            _fetch_alone(version.path(entry.path), entry, path)
    return path


def _fetch_alone(url: str, entry: FileEntry, path: Path) -> None:
    part = path.with_name(f".{path.name}.part")
    storage.fetch(url, part)
    if storage.sha256_of(str(part)) != entry.sha256:
        part.unlink()
        raise VersionError(
            f"{url}: its bytes are not those of the manifest; delete the store and run `oacir embed`"
        )
    with part.open("rb") as written:
        os.fsync(written.fileno())
    part.replace(path)
