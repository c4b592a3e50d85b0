"""Photos in folders: `<root>/<domain>/<instance>/<image>`, local or on S3.

Beside the domains the root may hold
- `manifest.csv` with a column `image_path` (relative to the root) and any of `identity` (`<domain>/<name>`, in place
  of the folder), `category`, `licence`, `attribution`, `source_repo` (the attribution where that is absent or empty),
  `mask_path` (relative to the root, below `masks/`, in place of the mask of the image's name);
- any number of `boxes*.csv` with columns `image_path, x, y, w, h`, in pixels of the image as stored, from its top left;
- `masks/<domain>/…/<image name>.png`, one per image: a PNG of the upright image's width and height, every sample but 0
  inside the object (`training/masks.py`). Where an image has a mask and no box, the box around the mask is its box.

Deeper folders belong to the instance above them; an image that lies directly in a domain is an instance of its own.
Rows of a CSV that name no image of the folder, and masks of no image, are counted in a warning; a row that cannot be
understood, or a second one for the same image, is an error. Other files at the root, and folders there that start
with a dot, are no part of the collection.
"""

from __future__ import annotations

import csv
import hashlib
import io
import itertools
import logging
import math
import sys
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from infra.base import storage
from infra.base.config import Config
from infra.base.errors import OacirError

if TYPE_CHECKING:
    import pyarrow as pa

log = logging.getLogger(__name__)

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".gif", ".tif", ".tiff", ".bmp"}
)
"""Names that count as images, in any case; what a file holds is judged when it is decoded."""
LAYOUT = "<root>/<domain>/<instance>/<image>"
MANIFEST, MASKS = "manifest.csv", "masks"
SAID = ("identity", "category", "licence", "attribution", "source_repo", "mask_path")
"""Columns of the manifest that say something of an image."""
ROWS_PER_TABLE = 4096
FILES_AT_ONCE = 1 << 15


class ImageFolderConfig(Config):
    """A folder of photos, one sub-folder per domain and instance."""

    kind: Literal["image_folder"] = "image_folder"
    """Which source this is."""
    root: str
    """URL of the folder that holds the domains."""
    domains: list[str] | None = None
    """Domains to read; null reads every folder."""


@dataclass
class _Scan:
    """What one look at the folder found, everything in path order."""

    images: pa.Table
    """Path, size_bytes and mark of each: a hundred bytes of an image, where objects would take a thousand."""
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path → reason and detail."""
    masks: set[str] = field(default_factory=set)
    tables: list[str] = field(default_factory=list)
    """Names of the CSV files at the root."""
    digest: str = ""


class _Said(NamedTuple):
    """What the CSVs say of the images, by their place in the scan."""

    texts: dict[str, list[str]]
    """Column of the manifest → text of each image, empty where it says nothing; no column where no row has it."""
    boxes: array[float]
    """Four corners of each image, NaN where it has no box; empty without boxes."""

    def text(self, column: str, place: int) -> str | None:
        return (self.texts[column][place] or None) if column in self.texts else None

    def box(self, place: int) -> list[float] | None:
        box = self.boxes[4 * place : 4 * place + 4].tolist()
        return box if box and not math.isnan(box[0]) else None


class ImageFolder:
    """The source over such a folder. It looks at the folder once; listing and fingerprint speak of the same look."""

    name = "image_folder"

    def __init__(self, config: ImageFolderConfig) -> None:
        self.root = storage.absolute(config.root)
        self.domains = config.domains

    def listing(self) -> Iterator[pa.Table]:
        """See `Source`."""
        import pyarrow as pa

        from pipelines.records import LISTING

        scan, said = self._scan, self._said()
        self._tell_lost_masks(said)
        self._tell_flat(said)
        places = _sorted_places(scan.images, said)
        for start in range(0, len(places), ROWS_PER_TABLE):
            some = places.slice(start, ROWS_PER_TABLE)
            rows = zip(some.to_pylist(), scan.images.take(some).to_pylist(), strict=True)
            yield pa.Table.from_pylist([self._row(place, file, said) for place, file in rows], schema=LISTING)

    def rejects(self) -> Iterator[dict[str, Any]]:
        """See `Source`."""
        for path, (reason, detail) in sorted(self._scan.refused.items()):
            yield {
                "stage": "collect",
                "entity": "images",
                "key": _as_text(path),
                "reason": reason,
                "detail": detail,
            }

    def fingerprint(self) -> str:
        """SHA-256 over path, size and change mark of every file that is read: images, masks, CSVs."""
        return self._scan.digest

    @cached_property
    def _scan(self) -> _Scan:
        domains = self._found_domains()
        named_like_images = self._folders_named_like_images(domains)
        images, digest = _Columns(), hashlib.sha256()
        scan = _Scan(images.table())
        for file in storage.list_files(self.root):
            parts = PurePosixPath(file.path).parts
            if len(parts) == 1:
                if file.path == MANIFEST or (file.path.startswith("boxes") and file.path.endswith(".csv")):
                    scan.tables.append(file.path)
                elif _looks_like_image(file.path):
                    where = f"lies in no domain; the layout is {LAYOUT}"
                    scan.refused[file.path] = ("unsupported_format", where)
                else:
                    continue
            elif parts[0] == MASKS and len(parts) > 2 and parts[1] in domains:
                scan.masks.add(file.path)
            elif parts[0] not in domains:
                continue
            elif (folder := _first(file.path, named_like_images)) is not None:
                named_like_images[folder] += 1
            elif (verdict := _verdict(file)) is not None:
                scan.refused[file.path] = verdict
            else:
                images.add(file)
            digest.update(f"{file.path}\0{file.size_bytes}\0{file.mark}\n".encode("utf-8", "surrogateescape"))
        for folder, count in named_like_images.items():
            scan.refused[folder] = ("not_a_file", f"a folder named like an image, {count} files in it")
            digest.update(f"{folder}/\n".encode("utf-8", "surrogateescape"))
        scan.images, scan.digest = images.table(), digest.hexdigest()
        return scan

    def _found_domains(self) -> set[str]:
        if not storage.is_s3(self.root) and not storage.exists(self.root):
            raise OacirError(f"source.root {self.root}: no such folder; the layout is {LAYOUT}")
        there = [n for n in storage.list_folders(self.root) if n != MASKS and not n.startswith(".")]
        missing = sorted(set(self.domains or ()) - set(there))
        if missing or not there:
            what = f"no domain {', '.join(missing)}" if missing else "no domain folders"
            raise OacirError(
                f"source.root {self.root}: {what}; there are: {', '.join(there) or 'none'}; the layout is {LAYOUT}"
            )
        return set(there if self.domains is None else self.domains)

    def _folders_named_like_images(self, domains: set[str]) -> dict[str, int]:
        """Relative paths of such folders (the outermost ones), empty ones too, with a count of zero."""
        found: dict[str, int] = {}
        for domain in sorted(domains):
            for name in sorted(storage.folders_below(storage.join(self.root, domain))):
                inner = f"{domain}/{name}"
                if _looks_like_image(inner) and _first(inner, found) is None:
                    found[inner] = 0
        return found

    def _row(self, place: int, file: dict[str, Any], said: _Said) -> dict[str, Any]:
        """The listing's row of an image."""
        path = file["path"]
        domain, _ = path.split("/", 1)
        mask = _mask(path, place, said) if self._scan.masks else ""
        return {
            "image_id": path,
            "domain": domain,
            "instance_id": _instance(path, place, said),
            "category": said.text("category", place) or domain,
            "uri": storage.join(self.root, path),
            "size_bytes": file["size_bytes"],
            "mark": file["mark"],
            "box": said.box(place),
            "mask_uri": storage.join(self.root, mask) if mask in self._scan.masks else None,
            "licence": said.text("licence", place),
            "attribution": said.text("attribution", place) or said.text("source_repo", place),
            "context_json": None,
        }

    def _tell_lost_masks(self, said: _Said) -> None:
        if masks := self._scan.masks:
            used = {_mask(path, place, said) for place, path in enumerate(_texts(self._scan.images["path"]))}
            if lost := sorted(masks - used):
                log.warning(
                    "%s: %d masks belong to no image, the first: %s", self.root, len(lost), _as_text(lost[0])
                )

    def _tell_flat(self, said: _Said) -> None:
        """Most images directly in a domain: as a rule the level of the domains is missing."""
        import pyarrow.compute as pc

        paths = self._scan.images["path"]
        alone = pc.sum(pc.equal(pc.count_substring(paths, "/"), 1)).as_py() or 0
        if 2 * alone > len(paths) and "identity" not in said.texts:
            log.warning(
                "%s: %d of %d images lie directly in a domain, so each is an instance of its own; the layout is %s",
                self.root,
                alone,
                len(paths),
                LAYOUT,
            )

    def _said(self) -> _Said:
        """What the CSVs at the root say, read anew each time: the listing is read once."""
        said = _Said({}, array("d"))
        if self._scan.tables:
            places = {path: place for place, path in enumerate(_texts(self._scan.images["path"]))}
            self._read_manifest(places, said)
            self._read_boxes(places, said)
        return said

    def _read_manifest(self, places: dict[str, int], said: _Said) -> None:
        if MANIFEST not in self._scan.tables:
            return
        seen = bytearray(len(places))
        for where, row in self._read(MANIFEST, ("image_path",), places):
            path, identity = row["image_path"], row.get("identity", "")
            if seen[places[path]]:
                raise OacirError(f"{where}: a second row for {path}; keep one")
            seen[places[path]] = 1
            domain = path.split("/", 1)[0]
            if identity and (not identity.startswith(f"{domain}/") or identity == f"{domain}/"):
                raise OacirError(
                    f"{where}: identity {identity!r}; allowed is '{domain}/<name>', as the path says"
                )
            mask = row.get("mask_path")
            if mask and mask not in self._scan.masks:
                raise OacirError(
                    f"{where}: mask_path {mask!r} names no file below {MASKS}/{domain}/; correct or empty it"
                )
            for column in SAID:
                if text := row.get(column):
                    column_texts = said.texts.setdefault(column, [""] * len(places))
                    column_texts[places[path]] = sys.intern(text)  # most repeat from row to row

    def _read_boxes(self, places: dict[str, int], said: _Said) -> None:
        for name in self._scan.tables:
            if name == MANIFEST:
                continue
            for where, row in self._read(name, ("image_path", "x", "y", "w", "h"), places):
                if not said.boxes:
                    said.boxes.extend(itertools.repeat(math.nan, 4 * len(places)))
                first = 4 * places[row["image_path"]]
                if not math.isnan(said.boxes[first]):
                    raise OacirError(
                        f"{where}: a second box for {row['image_path']}; keep one (also over all files)"
                    )
                said.boxes[first : first + 4] = array("d", _box(where, row))

    def _read(
        self, name: str, needed: tuple[str, ...], places: dict[str, int]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Rows of a CSV at the root that speak of a listed image, each with `file, line n` for messages."""
        url = storage.join(self.root, name)
        stream = io.TextIOWrapper(io.BytesIO(storage.read_bytes(url)), "utf-8-sig", newline="")
        reader = csv.DictReader(stream, strict=True)
        unknown, first_unknown = 0, ""
        try:
            missing = [n for n in needed if n not in (reader.fieldnames or ())]
            if missing:
                raise OacirError(f"{url}: no column {', '.join(missing)}; needed are {', '.join(needed)}")
            for row in reader:
                where = f"{url}, line {reader.line_num}"
                if None in row or any(row[column] is None for column in needed):
                    raise OacirError(
                        f"{where}: {len(reader.fieldnames or ())} columns expected; quote commas in values"
                    )
                if row["image_path"] in places:
                    yield where, row
                elif self._ours(row["image_path"]):
                    unknown, first_unknown = unknown + 1, first_unknown or row["image_path"]
        except UnicodeDecodeError as error:
            raise OacirError(f"{url}: not UTF-8 ({error}); save the file as UTF-8") from error
        except csv.Error as error:
            raise OacirError(f"{url}, line {reader.line_num}: not valid CSV ({error})") from error
        if unknown:
            log.warning("%s: %d rows name no image of the folder, the first: %s", url, unknown, first_unknown)

    def _ours(self, path: str) -> bool:
        """Whether a path belongs to what is read: rows of domains that were not asked for need no warning."""
        return self.domains is None or path.split("/", 1)[0] in self.domains


def _looks_like_image(path: str) -> bool:
    return PurePosixPath(path).suffix.lower() in IMAGE_SUFFIXES


def _verdict(file: storage.FileInfo) -> tuple[str, str] | None:
    """Why a file of a domain can be no image, judged without opening it."""
    if not _looks_like_image(file.path):
        return "unsupported_format", f"not named like an image ({', '.join(sorted(IMAGE_SUFFIXES))})"
    if file.size_bytes < 0:
        return "not_a_file", "a link to nothing"
    if _as_text(file.path) != file.path:
        return "unreadable", "the name is not valid UTF-8; rename the file"
    return None


def _as_text(path: str) -> str:
    """The path with bytes that are no UTF-8 written out: a name that fits in a table."""
    return path.encode("utf-8", "backslashreplace").decode()


def _first(path: str, folders: dict[str, int]) -> str | None:
    """The listed folder that a path lies in."""
    if not folders:
        return None
    return next((str(p) for p in reversed(PurePosixPath(path).parents) if str(p) in folders), None)


def _box(where: str, row: dict[str, str]) -> list[float]:
    """x, y, w, h as x1, y1, x2, y2."""
    allowed = "allowed are finite numbers, w and h above 0, in pixels of the stored image"
    try:
        x, y, w, h = (float(row[column]) for column in ("x", "y", "w", "h"))
    except ValueError as error:
        raise OacirError(f"{where}: {error}; {allowed}") from error
    if not all(map(math.isfinite, (x, y, w, h))) or w <= 0 or h <= 0:
        raise OacirError(f"{where}: box {x:g}, {y:g}, {w:g}, {h:g}; {allowed}")
    return [x, y, x + w, y + h]


class _Columns:
    """Files as columns, a piece as Python objects and the rest as Arrow's."""

    def __init__(self) -> None:
        self.pieces: list[pa.Table] = []
        self.waiting: list[storage.FileInfo] = []

    def add(self, file: storage.FileInfo) -> None:
        self.waiting.append(file)
        if len(self.waiting) == FILES_AT_ONCE:
            self._close()

    def table(self) -> pa.Table:
        """All of them: path, size_bytes, mark."""
        import pyarrow as pa

        self._close()
        return pa.concat_tables(self.pieces).combine_chunks()

    def _close(self) -> None:
        import pyarrow as pa

        columns = {
            "path": pa.array([f.path for f in self.waiting], pa.string()),
            "size_bytes": pa.array([f.size_bytes for f in self.waiting], pa.int64()),
            "mark": pa.array([f.mark for f in self.waiting], pa.string()),
        }
        self.pieces.append(pa.table(columns))
        self.waiting = []


def _texts(column: pa.ChunkedArray) -> Iterator[str]:
    """The texts of a column, a piece as Python objects at a time."""
    for start in range(0, len(column), FILES_AT_ONCE):
        yield from column.slice(start, FILES_AT_ONCE).to_pylist()


def _sorted_places(images: pa.Table, said: _Said) -> pa.Array:
    """The places of the images in the order of a listing: domain, instance, image."""
    import pyarrow as pa
    import pyarrow.compute as pc

    keys: dict[str, list[pa.Array]] = {"domain": [], "instance_id": []}
    place = 0
    for start in range(0, len(images), FILES_AT_ONCE):
        paths = images["path"].slice(start, FILES_AT_ONCE).to_pylist()
        keys["domain"].append(pa.array([path.split("/", 1)[0] for path in paths], pa.string()))
        owners = [_instance(path, place + n, said) for n, path in enumerate(paths)]
        keys["instance_id"].append(pa.array(owners, pa.string()))
        place += len(paths)
    columns = {name: pa.chunked_array(found, pa.string()).combine_chunks() for name, found in keys.items()}
    table = pa.table({**columns, "path": images["path"]})
    return pc.sort_indices(table, sort_keys=[(name, "ascending") for name in table.column_names])


def _instance(path: str, place: int, said: _Said) -> str:
    return said.text("identity", place) or "/".join(path.split("/", 2)[:2])


def _mask(path: str, place: int, said: _Said) -> str:
    return said.text("mask_path", place) or f"{MASKS}/{PurePosixPath(path).with_suffix('.png')}"
