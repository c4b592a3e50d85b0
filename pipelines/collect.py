"""Stage 1, collect: cut the source's listing into parts; read and decode each image once and keep what it says."""

from __future__ import annotations

import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.collected import Found, Sheet
from pipelines.earlier import Earlier
from pipelines.images import ImageLimits, ImageRejected
from pipelines.records import TABLES
from pipelines.sources.base import Source
from pipelines.stages import WORK, Part, Stage, StageResult, part_path, table_hash, write_part
from pipelines.variants import VariantOptions
from pipelines.watch import UNWATCHED

if TYPE_CHECKING:
    from pipelines.descriptors import Describer

LISTED, LAYOUT = f"{WORK}/listed.json", f"{WORK}/layout.json"
READ_AHEAD = 8
GROWTH, LARGEST_GROWN = 32, 1024
"""A part may have a 32nd of the images before it, up to so many: handing a part to a worker costs a sixth of a second,
which is much beside 256 images, and in a small collection every worker should get several."""
REJECTS_AT_ONCE = 4096


class Listed(Config):
    """What the listing holds and how it is cut; written last, so that it proves the listing is complete."""

    parts: int
    images: int
    size_bytes: int
    instances: int
    counts: dict[str, int]
    """Domain → images."""
    refused: dict[str, int]
    """Reason → entries of the source that can be no image."""
    files: list[versions.FileEntry]
    hashes: dict[str, str]
    seconds: float

    def accounts(self) -> list[Account]:
        """The account of the listing."""
        entries = self.images + sum(self.refused.values())
        return [Account(entity="images", taken_in=entries, kept=self.images, rejected=self.refused)]


def write_listing(source: Source, version_url: str, images_per_part: int) -> Listed:
    """Write the source's listing into a version in parts of whole instances, once.

    A listing that is there, or that another build has begun, is taken with the parts it has, whatever `images_per_part`
    says now: two builds of one version at a time write the same files.

    Args:
        source: what to list.
        version_url: where `listing/part-*.parquet` and `rejects/listing/part-00000.parquet` go.
        images_per_part: fewest images of a part but the last; later ones have more (`part_images`).

    Raises:
        OacirError: the source lists an image twice or out of order, or no image at all.
    """
    place = storage.join(version_url, LISTED)
    if storage.exists(place):
        return Listed.model_validate_json(storage.read_bytes(place))
    layout = storage.join(version_url, LAYOUT)
    if not storage.exists(layout):
        storage.write_new(layout, json.dumps({"images_per_part": images_per_part}).encode())
    per_part = int(json.loads(storage.read_bytes(layout))["images_per_part"])
    began = time.monotonic()
    files, hashes, counts = [], [], Counter[str]()
    size_bytes = instances = 0
    for part, table in enumerate(_cut(source, per_part)):
        files.append(write_part(version_url, part_path("listing", part), table))
        hashes.append(table_hash(table, "listing"))
        counts.update(table["domain"].to_pylist())
        size_bytes += sum(max(0, s) for s in table["size_bytes"].to_pylist())
        instances += len(set(table["instance_id"].to_pylist()))
    parts = len(files)
    refused = list(_tables(source.rejects()))
    rejects = pa.concat_tables(refused)
    if not parts:
        raise no_image(source, Counter(rejects["reason"].to_pylist()))
    files.append(write_part(version_url, part_path("rejects/listing", 0), rejects))
    listed = Listed(
        parts=parts,
        images=sum(counts.values()),
        size_bytes=size_bytes,
        instances=instances,
        counts=dict(sorted(counts.items())),
        refused=dict(sorted(Counter(rejects["reason"].to_pylist()).items())),
        files=files,
        hashes={
            "listing": f"{versions.combine(hashes):064x}",
            "rejects/listing": f"{versions.combine(table_hash(t, 'rejects') for t in refused):064x}",
        },
        seconds=time.monotonic() - began,
    )
    storage.write_bytes(place, listed.model_dump_json().encode())
    return listed


def part_images(fewest: int, before: int) -> int:
    """Fewest images of the part that follows on `before` images."""
    return max(fewest, min(before // GROWTH, LARGEST_GROWN))


def expected_parts(images: int, fewest: int) -> int:
    """About how many parts the listing of so many images has."""
    parts = before = 0
    while before < images:
        parts, before = parts + 1, before + part_images(fewest, before)
    return parts


def no_image(source: Source, refused: Mapping[str, int]) -> OacirError:
    """The error of a source that lists nothing, with what it refused and why."""
    why = f"; refused: {dict(refused)}" if refused else ""
    return OacirError(f"source {source.name}: it holds no image{why}; check source.root")


def _tables(rejects: Iterable[dict[str, Any]]) -> Iterator[pa.Table]:
    """Rejects as tables, an empty one first: a collection may lack millions of the images that it names."""
    rows = iter(rejects)
    yield TABLES["rejects"].empty_table()
    while piece := list(itertools.islice(rows, REJECTS_AT_ONCE)):
        yield pa.Table.from_pylist(piece, TABLES["rejects"])


def _cut(source: Source, images_per_part: int) -> Iterator[pa.Table]:
    """The listing as tables of whole instances."""
    waiting: list[dict[str, Any]] = []
    last: tuple[str, str, str] = ("", "", "")
    before = 0
    for table in source.listing():
        for row in table.to_pylist():
            key = (row["domain"], row["instance_id"], row["image_id"])
            if key <= last:
                raise OacirError(
                    f"source {source.name}: lists {key[2]} twice or out of order; please report it"
                )
            if key[:2] != last[:2] and len(waiting) >= part_images(images_per_part, before):
                yield pa.Table.from_pylist(waiting, TABLES["listing"])
                before += len(waiting)
                waiting = []
            waiting.append(row)
            last = key
    if waiting:
        yield pa.Table.from_pylist(waiting, TABLES["listing"])


@dataclass
class CollectStage(Stage):
    """Listed images → what is in them: sizes, hashes, upright boxes, descriptors, measures; or a reason why not."""

    limits: ImageLimits
    model: str | None
    gpus: float = 0.0
    earlier: Earlier | None = None
    """What an earlier version knows; only other images are opened."""
    seconds_per_record: float | None = None
    variants: VariantOptions = field(default_factory=VariantOptions)
    name = "collect"
    inputs = ("listing",)
    outputs = (
        "_work/images/collected",
        "instances",
        "descriptors",
        "measures",
        "rejects/collect",
    )
    _describer: Describer | None = field(default=None, init=False, repr=False)

    def setup(self) -> None:
        """Load the describer."""
        from pipelines.descriptors import make_describer

        self._describer = make_describer(self.model)

    def __call__(self, part: Part) -> StageResult:
        """Open every image of the part that is not known."""
        if self._describer is None:
            raise ValueError("setup comes first")
        listing, watch = part.tables["listing"], part.watch
        known = self.earlier.images(listing) if self.earlier else {}
        rows = listing.to_pylist()
        opened = _read_ahead(
            [row for n, row in enumerate(rows) if row["image_id"] not in known and n not in watch.hung.alone]
        )
        sheet = Sheet(self.limits, self._describer, watch, self.variants)
        for position, row in enumerate(rows):
            if row["image_id"] in known:
                sheet.take(row, known[row["image_id"]])
            elif position in watch.hung.alone:
                sheet.refuse(row, ImageRejected("timeout", watch.detail))
            else:
                # a remote store bounds its own time, and a bad moment of it is no verdict on an image
                with UNWATCHED.over(position) if storage.is_s3(row["uri"]) else watch.over(position):
                    _, found = next(opened)
                sheet.add(row, found, position)
        return sheet.result()


def _read_ahead(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], Found]]:
    """Each row with the bytes of its files, a few read ahead: a remote store answers in many milliseconds."""
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        coming: deque[Future[Found]] = deque()
        for position, row in enumerate(rows):
            while len(coming) < READ_AHEAD and position + len(coming) < len(rows):
                coming.append(pool.submit(_find, rows[position + len(coming)]))
            yield row, coming.popleft().result()


def _find(row: Mapping[str, Any]) -> Found:
    return Found(_read(row["uri"]), None if row["mask_uri"] is None else _read(row["mask_uri"]))


def _read(uri: str) -> bytes | ImageRejected:
    """The bytes of a file, or why there are none.

    A file that is gone or closed to us is a verdict on that file. Any other failure of a remote store is not: it
    stops the part, and the next run does it again, so that no image is lost to a bad moment of the network.
    """
    try:
        return storage.read_bytes(uri)
    except OacirError as error:
        lasting = isinstance(error.__cause__, FileNotFoundError | PermissionError | IsADirectoryError)
        if lasting or not storage.is_s3(uri):
            return ImageRejected("unreadable", type(error.__cause__).__name__)
        raise
