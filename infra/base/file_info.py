"""What is known of a stored file, and the names under which files wait until they are whole."""

from __future__ import annotations

import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{8}\.tmp")
"""Names under which a file is written before it is whole; other names that end in .tmp are a user's files."""


@dataclass(frozen=True, slots=True)
class FileInfo:
    """One stored file: path relative to the listed folder, size, and the store's own change mark (etag or mtime)."""

    path: str
    size_bytes: int
    mark: str


def temporary_name(target: Path) -> Path:
    """A name beside a file for it to be written under."""
    return target.with_name(f".{target.name}.{uuid.uuid4().hex[:8]}.tmp")


def in_order(entries: Iterable[FileInfo]) -> list[FileInfo]:
    """Sorted by path, without our temporary files and without the empty objects that mark folders on S3."""
    files = (e for e in entries if e.path and not e.path.endswith("/"))
    whole = (e for e in files if not _TEMPORARY.fullmatch(PurePosixPath(e.path).name))
    return sorted(whole, key=lambda e: e.path)


def object_info(key: str, info: Mapping[str, Any], folder: str) -> FileInfo:
    """An object of S3 as a file below a folder."""
    path = key[len(folder.rstrip("/")) + 1 :]
    return FileInfo(path, int(info["size"]), str(info.get("ETag", "")).strip('"'))


def file_info(file: Path, folder: Path) -> FileInfo:
    """A file of this machine below a folder."""
    try:
        status = file.stat()
    except OSError:
        status = None  # a dangling link: listed with no size, refused when it is read
    size, mark = (status.st_size, str(status.st_mtime_ns)) if status else (-1, "")
    return FileInfo(file.relative_to(folder).as_posix(), size, mark)
