"""What the sources of published collections share: files and labels as Arrow tables, matched, sorted and refused.

A collection may hold millions of images, so that what is known of one is a row of a table and not an object: labels are
read as columns, matched with the files by index, sorted by index, and given out a few thousand rows at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.records import LISTING, conform
from pipelines.sources.image_folder import IMAGE_SUFFIXES

ROWS_PER_TABLE = 4096
FILES = pa.schema([("path", pa.string()), ("size_bytes", pa.int64()), ("mark", pa.string())])
REFUSED = pa.schema([("key", pa.string()), ("reason", pa.string()), ("detail", pa.string())])
SCANNED = pa.schema(
    [*(f.with_nullable(True) for f in LISTING), ("reason", pa.string()), ("detail", pa.string())]
)
"""What a scan says of an entry: a row of the listing, or its key as `image_id` with a reason."""
_IMAGE = rf"(?i)({'|'.join(s.replace('.', '[.]') for s in sorted(IMAGE_SUFFIXES))})$"
_HOSTILE = r"(^|/)[.]{0,2}(/|$)|[\x00-\x1f\x7f]"
"""Names with an empty, `.` or `..` component, or control characters."""


class TabledSource:
    """A source whose images and refusals are two tables; see `Source`. A subclass says how to look and read.

    Attributes:
        name: of the source.
        layout: what lies where, for messages.
        base: what the listing's `uri` is relative to.
    """

    name: ClassVar[str]
    layout: ClassVar[str]

    def __init__(self, root: str) -> None:
        self.root = self.base = storage.absolute(root)
        self._files: pa.Table | None = None
        self._refused: pa.Table | None = None
        self._digest = ""

    def look(self) -> pa.Table:
        """One look at the files that are read, as `FILES`.

        Raises:
            OacirError: the folder is not of this form.
        """
        raise NotImplementedError

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """Rows of `records.LISTING`, in any order, and rows of `REFUSED`, of what was looked at."""
        raise NotImplementedError

    def listing(self) -> Iterator[pa.Table]:
        """See `Source`."""
        rows, self._refused = self._read()
        yield from _in_order(rows, self.base)

    def rejects(self) -> Iterator[dict[str, Any]]:
        """See `Source`."""
        if self._refused is None:
            self._refused = self._read()[1]
        for batch in _sorted(self._refused, "key", "detail"):
            for row in batch.to_pylist():
                yield {"stage": "collect", "entity": "images", **row}

    def fingerprint(self) -> str:
        """SHA-256 over path, size and change mark of every file that is looked at."""
        self._look()
        return self._digest

    def wrong(self, what: str) -> OacirError:
        """The error for a folder that is not of this form."""
        return OacirError(f"source.root {self.root}: {what}; the layout of {self.name} is {self.layout}")

    def _look(self) -> pa.Table:
        if self._files is None:
            self._files = self.look()
            self._digest = _digest(self._files)
        return self._files

    def _read(self) -> tuple[pa.Table, pa.Table]:
        rows, refused = self.read(self._look())
        self._files = None  # as large as the listing; of this look only the digest is asked for later
        rows, harmful = _sound(rows)
        return rows.combine_chunks(), pa.concat_tables([refused, harmful]).combine_chunks()


def files_below(root: str, folder: str = "") -> pa.Table:
    """Every file below a folder as `FILES`, paths relative to the root; memory is bounded by the largest sub-folder.

    A name that is no UTF-8 is written out with backslashes, with a size of −1 as a dangling link has: none can read it.
    """
    place = storage.join(root, folder)
    parts = [_files_table(storage.files_in(place), folder)]
    for name in storage.list_folders(place):
        inner = storage.join(folder, name) if folder else name
        parts.append(_files_table(storage.list_files(storage.join(root, inner)), inner))
    return pa.concat_tables(parts).combine_chunks()


def _files_table(files: Iterable[storage.FileInfo], folder: str) -> pa.Table:
    columns: dict[str, list[Any]] = {name: [] for name in FILES.names}
    for file in files:
        path = file.path.encode("utf-8", "backslashreplace").decode()
        columns["path"].append(f"{folder}/{path}" if folder else path)
        columns["size_bytes"].append(file.size_bytes if path == file.path else -1)
        columns["mark"].append(file.mark)
    return pa.table(columns, schema=FILES)


def _digest(files: pa.Table) -> str:
    found = hashlib.sha256()
    for batch in _sorted(files, "path"):
        for row in zip(*(batch[name].to_pylist() for name in FILES.names), strict=True):
            found.update("{}\0{}\0{}\n".format(*row).encode())
    return found.hexdigest()


def read_csv(url: str, needed: tuple[str, ...], optional: tuple[str, ...] = ()) -> pa.Table:
    """Columns of a CSV as text, read in pieces; an empty cell, and an optional column that is not there, is null.

    Raises:
        OacirError: the file cannot be read, is no CSV, or lacks a column.
    """
    import pyarrow.csv as pa_csv

    try:
        with storage.local_copy(url) as file:
            with file.open("rb") as stream:
                there = [c.strip().strip('"') for c in stream.readline().decode("utf-8-sig").split(",")]
            missing = [name for name in needed if name not in there]
            if missing:
                raise OacirError(f"{url}: no column {', '.join(missing)}; needed are {', '.join(needed)}")
            wanted = [name for name in (*needed, *optional) if name in there]
            table = pa_csv.open_csv(  # of a path: its reading thread may hold no Python object (`storage.open_parquet`)
                str(file),
                pa_csv.ReadOptions(column_names=there, skip_rows=1),
                pa_csv.ParseOptions(newlines_in_values=True),
                pa_csv.ConvertOptions(
                    include_columns=wanted,
                    column_types=dict.fromkeys(there, pa.string()),
                    null_values=[""],
                    strings_can_be_null=True,
                ),
            ).read_all()
    except pa.ArrowInvalid as error:
        raise OacirError(f"{url}: not valid CSV ({' '.join(str(error).split())[:200]})") from error
    except UnicodeDecodeError as error:
        raise OacirError(f"{url}: not UTF-8 ({error}); save the file as UTF-8") from error
    except OSError as error:
        raise OacirError(f"{url}: cannot be read ({error.strerror or error}); check the path") from error
    for name in optional:
        if name not in there:
            table = table.append_column(name, pa.nulls(len(table), pa.string()))
    return table


def match(claims: pa.Table, files: pa.Table, said_by: str) -> tuple[pa.Table, pa.Table]:
    """Labels matched with the files that they speak of.

    Args:
        claims: a column `key` and what is said of it; where it has a `reason`, it is refused with that and `detail`.
        files: those of the image folders: `FILES` with a column `key`.
        said_by: what holds the labels, for messages.

    Returns:
        The claims whose file is there, with its `path`, `size_bytes` and `mark`; and `REFUSED`: claims without a file,
        and files that no claim speaks of or that can be no image.

    Raises:
        OacirError: two claims for one file.
    """
    if pc.count_distinct(claims["key"]).as_py() < len(claims):
        counts = pc.value_counts(claims["key"])
        twice = counts.field("values").filter(pc.greater(counts.field("counts"), 1))[0]
        raise OacirError(f"{said_by}: a second row for {twice}; keep one")
    where = pc.index_in(claims["key"], value_set=files["key"])
    gone = claims["key"].filter(pc.is_null(where))
    found, here = _where(claims, pc.is_valid(where)), files.take(where.drop_null())
    for name in FILES.names:
        found = found.append_column(name, here[name])
    found, unusable = _usable(found)
    refused = [unusable]
    if "reason" in found.column_names:
        wrong = found.filter(pc.is_valid(found["reason"]))
        refused.append(wrong.select(["path", "reason", "detail"]).rename_columns(REFUSED.names))
        found = _where(found, pc.is_null(found["reason"]))
    stray = files.filter(pc.is_null(pc.index_in(files["key"], value_set=claims["key"])))
    stray, no_image = _usable(stray)
    return found, pa.concat_tables(
        [
            *refused,
            refusals(gone, "not_a_file", f"{said_by} names it, there is no such file"),
            refusals(stray["path"], "no_identity", f"{said_by} does not name it"),
            no_image,
        ]
    )


def _usable(files: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The files that may hold an image, judged without opening them, and the others as `REFUSED`."""
    absent = pc.less(files["size_bytes"], 0)
    named = pc.match_substring_regex(files["path"], _IMAGE)
    refused = [
        refusals(files["path"].filter(absent), "not_a_file", "a link to nothing, or a name that is no UTF-8"),
        refusals(
            files["path"].filter(pc.and_(pc.invert(absent), pc.invert(named))),
            "unsupported_format",
            f"not named like an image ({', '.join(sorted(IMAGE_SUFFIXES))})",
        ),
    ]
    return _where(files, pc.and_(named, pc.invert(absent))), pa.concat_tables(refused)


def _where(table: pa.Table, mask: pa.ChunkedArray) -> pa.Table:
    """The rows of which the mask is true; where all are, as usual, without a copy of a table that may be large."""
    return table if pc.all(mask, min_count=0).as_py() else table.filter(mask)


def refusals(keys: pa.ChunkedArray | pa.Array, reason: str, detail: str) -> pa.Table:
    """Rows of `REFUSED` that share a reason."""
    return pa.table([keys, pa.repeat(reason, len(keys)), pa.repeat(detail, len(keys))], schema=REFUSED)


def divide(scanned: pa.Table) -> tuple[pa.Table, pa.Table]:
    """Rows of `SCANNED` as those of the listing and those of `REFUSED`."""
    good = pc.is_null(scanned["reason"])
    refused = scanned.filter(pc.invert(good)).select(["image_id", "reason", "detail"])
    return scanned.filter(good).select(LISTING.names), refused.rename_columns(REFUSED.names)


def rows(found: pa.Table, domain: str) -> pa.Table:
    """Rows for the listing of matched claims: `instance`, `category`, and any of `box`, `licence`, `attribution`.

    Columns may be dictionaries of texts, and those that the data do not have are left out: pieces are made whole later.
    """
    here = pa.repeat(domain, len(found))
    columns = {
        "image_id": pc.binary_join_element_wise(here, found["path"], "/"),
        "domain": here,
        "instance_id": pc.binary_join_element_wise(here, component(found["instance"]), "/"),
        "category": found["category"],
        "uri": found["path"],
        "size_bytes": found["size_bytes"],
        "mark": found["mark"],
    }
    more = [n for n in ("box", "licence", "attribution") if n in found.column_names]
    return pa.table(columns | {n: found[n] for n in more})


def component(names: pa.ChunkedArray) -> pa.ChunkedArray:
    """Names as one component of a path each: `%` and `/` are escaped, different names stay different."""
    return pc.replace_substring(pc.replace_substring(names, "%", "%25"), "/", "%2F")


def boxes(corners: NDArray[np.float64]) -> tuple[pa.Array, pa.Array]:
    """Corners x1, y1, x2, y2 [n, 4] as a column of boxes, and which of them are none: not finite, or without area."""
    sound = np.isfinite(corners).all(axis=1) & (corners[:, 2:] > corners[:, :2]).all(axis=1)
    offsets = pa.array(np.arange(0, corners.size + 1, 4, dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(corners.ravel().astype(np.float32))), pa.array(~sound)


def _sound(listing: pa.Table) -> tuple[pa.Table, pa.Table]:
    """The rows with names that can do no harm as a path, each image once; and the others as `REFUSED`."""
    harmful = pc.match_substring(listing["domain"], "/")
    for name in ("image_id", "instance_id"):
        harmful = pc.or_(harmful, pc.match_substring_regex(listing[name], _HOSTILE))
    refused = refusals(listing["image_id"].filter(harmful), "bad_label", "a name that is no plain path")
    listing = _where(listing, pc.invert(harmful))
    if pc.count_distinct(listing["image_id"]).as_py() < len(listing):
        listing = listing.sort_by([("image_id", "ascending"), ("uri", "ascending")])
        ids = listing["image_id"].combine_chunks()
        again = pa.concat_arrays([pa.array([False]), pc.equal(ids[1:], ids[:-1])])
        twice = refusals(ids.filter(again), "duplicate_name", "another image has the same name")
        listing, refused = listing.filter(pc.invert(again)), pa.concat_tables([refused, twice])
    return listing, refused


def _in_order(listing: pa.Table, base: str) -> Iterator[pa.Table]:
    for table in _sorted(listing, "domain", "instance_id", "image_id"):
        uris = pc.binary_join_element_wise(base, table["uri"], "/")
        yield conform(table.set_column(table.schema.get_field_index("uri"), "uri", uris), "listing")


def _sorted(table: pa.Table, *names: str) -> Iterator[pa.Table]:
    """The table in order, piece by piece, without a sorted copy of it; of few chunks, or each piece takes long."""
    order = pc.sort_indices(table, sort_keys=[(name, "ascending") for name in names])
    for start in range(0, len(order), ROWS_PER_TABLE):
        yield table.take(order.slice(start, ROWS_PER_TABLE))
