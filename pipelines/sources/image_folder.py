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
import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

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
ROWS_PER_TABLE = 4096


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

    images: list[storage.FileInfo] = field(default_factory=list)
    refused: dict[str, tuple[str, str]] = field(default_factory=dict)
    """Path → reason and detail."""
    masks: set[str] = field(default_factory=set)
    tables: list[str] = field(default_factory=list)
    """Names of the CSV files at the root."""
    digest: str = ""


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

        rows = self._rows
        for start in range(0, len(rows), ROWS_PER_TABLE):
            yield pa.Table.from_pylist(rows[start : start + ROWS_PER_TABLE], schema=LISTING)

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
        scan, digest = _Scan(), hashlib.sha256()
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
                scan.images.append(file)
            digest.update(f"{file.path}\0{file.size_bytes}\0{file.mark}\n".encode("utf-8", "surrogateescape"))
        for folder, count in named_like_images.items():
            scan.refused[folder] = ("not_a_file", f"a folder named like an image, {count} files in it")
            digest.update(f"{folder}/\n".encode("utf-8", "surrogateescape"))
        scan.digest = digest.hexdigest()
        return scan

    def _found_domains(self) -> set[str]:
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
            filesystem, path = storage.filesystem(storage.join(self.root, domain))
            entries = filesystem.find(path, withdirs=True, detail=True)
            base = path.rstrip("/")
            for name in sorted(n for n, e in entries.items() if e["type"] == "directory"):
                inner = f"{domain}/{name.rstrip('/')[len(base) + 1 :]}"
                if _looks_like_image(inner) and _first(inner, found) is None:
                    found[inner] = 0
        return found

    @cached_property
    def _rows(self) -> list[dict[str, Any]]:
        scan = self._scan
        paths = {file.path for file in scan.images}
        manifest = self._manifest(paths)
        boxes = self._boxes(paths)
        rows, used = [], set()
        for file in scan.images:
            domain, inner = file.path.split("/", 1)
            said = manifest.get(file.path, {})
            mask = said.get("mask_path") or f"{MASKS}/{PurePosixPath(file.path).with_suffix('.png')}"
            used.add(mask)
            rows.append(
                {
                    "image_id": file.path,
                    "domain": domain,
                    "instance_id": said.get("identity") or f"{domain}/{inner.split('/', 1)[0]}",
                    "category": said.get("category") or domain,
                    "uri": storage.join(self.root, file.path),
                    "size_bytes": file.size_bytes,
                    "mark": file.mark,
                    "box": boxes.get(file.path),
                    "mask_uri": storage.join(self.root, mask) if mask in scan.masks else None,
                    "licence": said.get("licence") or None,
                    "attribution": said.get("attribution") or said.get("source_repo") or None,
                    "context_json": None,
                }
            )
        if lost := sorted(scan.masks - used):
            log.warning(
                "%s: %d masks belong to no image, the first: %s", self.root, len(lost), _as_text(lost[0])
            )
        return sorted(rows, key=lambda r: (r["domain"], r["instance_id"], r["image_id"]))

    def _manifest(self, paths: set[str]) -> dict[str, dict[str, str]]:
        if MANIFEST not in self._scan.tables:
            return {}
        rows: dict[str, dict[str, str]] = {}
        for where, row in self._read(MANIFEST, ("image_path",), paths):
            path, identity = row["image_path"], row.get("identity", "")
            if path in rows:
                raise OacirError(f"{where}: a second row for {path}; keep one")
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
            rows[path] = row
        return rows

    def _boxes(self, paths: set[str]) -> dict[str, list[float]]:
        boxes: dict[str, list[float]] = {}
        for name in self._scan.tables:
            if name == MANIFEST:
                continue
            for where, row in self._read(name, ("image_path", "x", "y", "w", "h"), paths):
                if row["image_path"] in boxes:
                    raise OacirError(
                        f"{where}: a second box for {row['image_path']}; keep one (also over all files)"
                    )
                boxes[row["image_path"]] = _box(where, row)
        return boxes

    def _read(
        self, name: str, needed: tuple[str, ...], paths: set[str]
    ) -> Iterator[tuple[str, dict[str, str]]]:
        """Rows of a CSV at the root that speak of a listed image, each with `file, line n` for messages."""
        url = storage.join(self.root, name)
        try:
            text = storage.read_bytes(url).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise OacirError(f"{url}: not UTF-8 ({error}); save the file as UTF-8") from error
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        unknown: list[str] = []
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
                if row["image_path"] in paths:
                    yield where, row
                elif self._ours(row["image_path"]):
                    unknown.append(row["image_path"])
        except csv.Error as error:
            raise OacirError(f"{url}, line {reader.line_num}: not valid CSV ({error})") from error
        if unknown:
            log.warning(
                "%s: %d rows name no image of the folder, the first: %s", url, len(unknown), unknown[0]
            )

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
