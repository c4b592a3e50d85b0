"""Storage by URL: a local path or `s3://bucket/prefix`. Nothing else in the code knows where bytes lie.

Credentials and a custom endpoint come from the environment as the AWS tools read them (`AWS_ENDPOINT_URL`, …).
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from infra.base.cloud import bucket_of, in_one_line, require_bucket
from infra.base.errors import OacirError
from infra.base.file_info import FileInfo as FileInfo
from infra.base.file_info import file_info, in_order, object_info, temporary_name
from infra.base.folders import files_below, real_folders

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

CHUNK_BYTES = 8 << 20
_RANGE = re.compile(r"(.+)#bytes=(\d+)\+(\d+)")


def is_s3(url: str) -> bool:
    """Whether the URL lies on S3."""
    return url.startswith("s3://")


def absolute(url: str) -> str:
    """The URL in the one form used everywhere: an absolute local path or an s3:// URL, no trailing slash."""
    if is_s3(url):
        if not bucket_of(url):
            raise OacirError(f"{url}: names no bucket; allowed are a local path or s3://bucket/prefix")
        return url.rstrip("/")
    if "://" in url and not url.startswith("file://"):
        raise OacirError(f"{url}: unknown storage; allowed are a local path or s3://bucket/prefix")
    return str(Path(url.removeprefix("file://")).expanduser().absolute())


def join(url: str, *parts: str) -> str:
    """The URL of something below `url`; parts are plain relative paths and are never interpreted."""
    return "/".join([url.rstrip("/"), *(part.strip("/") for part in parts if part)])


def name_of(url: str) -> str:
    """The last component of a URL."""
    return PurePosixPath(url).name


def filesystem(url: str) -> tuple[Any, str]:
    """The fsspec file system of a URL and the path inside it."""
    if is_s3(url):
        from infra.base.s3 import file_system

        return file_system(), url.removeprefix("s3://")
    import fsspec

    return fsspec.filesystem("file"), absolute(url)


def arrow_filesystem(url: str) -> tuple[Any, str]:
    """The pyarrow file system of a URL and the path inside it (what Ray Train takes as `storage_filesystem`)."""
    import pyarrow.fs as arrow_fs

    filesystem_, path = filesystem(url)
    if is_s3(url):
        return arrow_fs.PyFileSystem(arrow_fs.FSSpecHandler(filesystem_)), path
    return arrow_fs.LocalFileSystem(), path


@in_one_line
def exists(url: str) -> bool:
    """Whether a file or folder lies there, asked of the store itself, not of a cached listing."""
    if not is_s3(url):
        return Path(url).exists()
    filesystem_, path = filesystem(url)
    filesystem_.invalidate_cache()
    if filesystem_.exists(path):
        return True
    require_bucket(url, filesystem_)
    return False


def byte_range(url: str, offset: int, length: int) -> str:
    """The URL of a run of bytes inside a file (a member of a tar), which `read_bytes` reads by itself."""
    return f"{url}#bytes={offset}+{length}"


@in_one_line
def read_bytes(url: str) -> bytes:
    """The whole file, or the run of bytes that a `byte_range` names, in one read.

    Raises:
        OacirError: nothing lies there, or it cannot be read, or it ends before the run does.
    """
    part = _RANGE.fullmatch(url)
    try:
        if part:
            return _read_range(part[1], int(part[2]), int(part[3]))
        return _read_whole(url) if is_s3(url) else Path(url).read_bytes()
    except EOFError as error:
        raise OacirError(f"{url}: {error}; run the command again, so that it is listed anew") from error
    except OSError as error:
        raise OacirError(
            f"{url}: cannot be read ({error.strerror or error}); check the path and access"
        ) from error


def _read_whole(url: str) -> bytes:
    filesystem_, path = filesystem(url)
    return bytes(filesystem_.cat_file(path, max_concurrency=1))  # more would ask for the size first


def _read_range(url: str, offset: int, length: int) -> bytes:
    if not length:  # a store answers an empty range with the whole file or with an error
        return b""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        data = bytes(filesystem_.cat_file(path, start=offset, end=offset + length))
    else:
        with Path(path).open("rb", buffering=0) as stream:
            data = os.pread(stream.fileno(), length, offset)
    if len(data) != length:
        raise EOFError(f"{length:,} bytes wanted, {len(data):,} are there: the file was cut or replaced")
    return data


@in_one_line
def write_bytes(url: str, data: bytes | memoryview) -> None:
    """Write a file so that a reader sees all of it or nothing, also after a kill in mid-write."""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.pipe_file(path, data)
        return
    target = Path(path)
    temporary = temporary_name(target)
    try:
        _write(temporary, data)
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(url, temporary, error) from error


@in_one_line
def write_new(url: str, data: bytes) -> bool:
    """Write a file only if none lies there (conditional put on S3, hard link locally); says whether it did.

    On S3 a file with these very bytes is taken for ours: the answer to a put may be lost, and the put sent again.
    """
    filesystem_, path = filesystem(url)
    if is_s3(url):
        try:
            filesystem_.pipe_file(path, data, mode="create")
        except FileExistsError:
            return False
        return True
    temporary = temporary_name(Path(path))
    try:
        _write(temporary, data)
        try:
            os.link(temporary, path)
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
    except OSError as error:
        raise _unwritable(url, temporary, error) from error
    return True


def _write(file: Path, data: bytes | memoryview) -> None:
    """Write a file of this machine until it is on the disk; a full one says so here."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("wb") as stream:
        stream.write(data)
        stream.flush()
        os.fsync(stream.fileno())


def _unwritable(url: str, temporary: Path, error: OSError) -> OacirError:
    with suppress(OSError):  # nor can it be deleted where its folder is a file
        temporary.unlink(missing_ok=True)
    return OacirError(
        f"{url}: cannot be written ({error.strerror or error}); free space or choose --out, and run the command again"
    )


@in_one_line
def fetch(url: str, file: Path) -> None:
    """Copy a stored file to a path on this machine without holding it in memory.

    Raises:
        OacirError: nothing lies there, or it cannot be read.
    """
    filesystem_, path = filesystem(url)
    try:
        filesystem_.get_file(path, str(file))
    except OSError as error:
        raise OacirError(
            f"{url}: cannot be read ({error.strerror or error}); check the path and access"
        ) from error


@in_one_line
def send(file: Path, url: str) -> None:
    """Copy a file of this machine to a URL without holding it in memory, so that a reader sees all of it or nothing."""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.put_file(str(file), path)
        return
    target = Path(path)
    temporary = temporary_name(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, temporary)
        temporary.replace(target)
    except OSError as error:
        raise _unwritable(url, temporary, error) from error


@in_one_line
def list_files(url: str) -> Iterator[FileInfo]:
    """Every file below a folder in path order (byte order of the relative path); our own temporary files are left out.

    A directory is never an entry of its own, whatever its name, nor is a folder marker on S3. Links are followed, each
    folder once (`folders.files_below`).

    Raises:
        OacirError: a folder cannot be listed.
    """
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.invalidate_cache(path)
        found = filesystem_.find(path, detail=True)
        entries = [object_info(key, info, path) for key, info in found.items()]
    else:
        entries = [file_info(file, Path(path)) for file in files_below(Path(path))]
    return iter(in_order(entries))


@in_one_line
def files_in(url: str) -> list[FileInfo]:
    """The files directly in a folder, by name, as `list_files` gives them; none where nothing lies."""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.invalidate_cache(path)
        require_bucket(url, filesystem_)
        found = filesystem_.ls(path, detail=True) if filesystem_.isdir(path) else []
        files = [e for e in found if e["type"] == "file" and e["name"].rstrip("/") != path.rstrip("/")]
        entries = [object_info(e["name"], e, path) for e in files]
    else:
        root = Path(path)
        there = root.iterdir() if root.is_dir() else ()
        entries = [file_info(file, root) for file in there if not file.is_dir()]
    return in_order(entries)


@in_one_line
def last_change(url: str) -> float | None:
    """When a file below a folder was last written, in seconds since the epoch; None where none lies."""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.invalidate_cache(path)
    found = filesystem_.find(path, detail=True).values()
    times = (info["LastModified"].timestamp() if is_s3(url) else float(info["mtime"]) for info in found)
    return max(times, default=None)


@in_one_line
def list_folders(url: str) -> list[str]:
    """Names of the folders directly below a URL, sorted; empty where nothing lies."""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.invalidate_cache()
        require_bucket(url, filesystem_)
    if not filesystem_.isdir(path):
        return []
    return sorted(
        name_of(e["name"].rstrip("/")) for e in filesystem_.ls(path, detail=True) if e["type"] == "directory"
    )


@in_one_line
def folders_below(url: str) -> list[str]:
    """Every folder below a URL, as paths relative to it, in no order; links are not followed. On S3 what keys imply."""
    filesystem_, path = filesystem(url)
    if not is_s3(url):
        return [folder.relative_to(path).as_posix() for folder in real_folders(Path(path))]
    found = filesystem_.find(path, withdirs=True, detail=True)
    base = len(path.rstrip("/")) + 1
    return [name.rstrip("/")[base:] for name, entry in found.items() if entry["type"] == "directory"]


@in_one_line
def remove(url: str) -> None:
    """Delete a file or a whole folder; nothing there is fine."""
    filesystem_, path = filesystem(url)
    if is_s3(url):
        filesystem_.invalidate_cache()
    if filesystem_.exists(path):
        filesystem_.rm(path, recursive=True)


@in_one_line
def sha256_of(url: str) -> str:
    """SHA-256 of a file's bytes, read in pieces."""
    filesystem_, path = filesystem(url)
    digest = hashlib.sha256()
    with filesystem_.open(path, "rb") as stream:
        while piece := stream.read(CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


@contextmanager
def open_parquet(url: str) -> Iterator[pq.ParquetFile]:
    """A large parquet file, for reading piece by piece with `use_threads=arrow_threads(url)` and no other.

    No thread of Arrow's may ever hold a Python object: one that lets go of it while the interpreter ends kills the
    process ("terminate called without an active exception"), even of a command that had said its error already. So a
    local file is opened by Arrow itself, and one on S3 is read in the calling thread alone.

    Raises:
        OSError, pyarrow.ArrowInvalid: it cannot be read, or is no parquet file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    filesystem_, path = filesystem(url)
    with (
        filesystem_.open(path, "rb") if is_s3(url) else pa.OSFile(path) as source,
        pq.ParquetFile(source, pre_buffer=False) as file,
    ):
        yield file


def arrow_threads(url: str) -> bool:
    """Whether Arrow's threads may read what `open_parquet` opened."""
    return not is_s3(url)


@contextmanager
def local_copy(url: str) -> Iterator[Path]:
    """A stored file as one of this machine, for readers that take a path only: itself, or a copy for as long as it is
    open.

    Raises:
        OacirError: nothing lies there, or it cannot be read.
    """
    if not is_s3(url):
        yield Path(absolute(url))
        return
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name_of(url)
        fetch(url, file)
        yield file


@in_one_line
def read_table(url: str, columns: list[str] | None = None) -> pa.Table:
    """One parquet file as an Arrow table, with these columns in this order.

    Raises:
        OacirError: nothing lies there, it is no parquet file, or a column is missing.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # Of S3 all of it in one call, which is checked; a range is not, and several take longer.
        with (
            pa.BufferReader(_read_whole(url)) if is_s3(url) else pa.OSFile(url) as source,
            pq.ParquetFile(source, pre_buffer=False) as file,
        ):
            table = file.read(columns, use_threads=arrow_threads(url))
            return table if columns is None else table.select(columns)
    except OSError as error:
        raise OacirError(
            f"{url}: cannot be read ({error.strerror or error}); check the path and access"
        ) from error
    except (pa.ArrowInvalid, KeyError) as error:
        raise OacirError(
            f"{url}: no table as expected ({' '.join(str(error).split())}); make it again"
        ) from error


@in_one_line
def write_table(url: str, table: pa.Table) -> None:
    """One Arrow table as a parquet file, whole or not at all."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    write_bytes(url, sink.getvalue().to_pybytes())
