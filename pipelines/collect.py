"""Stage 1, collect: cut the source's listing into parts; read and decode each image once and keep what it says."""

from __future__ import annotations

import hashlib
import itertools
import json
import time
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.earlier import Earlier, KnownImage
from pipelines.filter import runs
from pipelines.images import Box, DecodedImage, ImageLimits, ImageRejected, decode, upright_box
from pipelines.records import TABLES, conform
from pipelines.sources.base import Source
from pipelines.stages import WORK, Part, Stage, StageResult, part_path, table_hash, write_part
from pipelines.variants import Look, Namer, VariantOptions, crop, looks, variant_id
from pipelines.watch import UNWATCHED, Watch
from training.masks import decode_mask, mask_box

if TYPE_CHECKING:
    from pipelines.descriptors import Describer

Vector = NDArray[np.float32]
NOT_YET = np.zeros(0, np.float32)
"""In the place of an image's vector until its batch is described."""
LISTED, LAYOUT = f"{WORK}/listed.json", f"{WORK}/layout.json"
IMAGES_AT_ONCE = 32
READ_AHEAD = 8
GROWTH, LARGEST_GROWN = 32, 1024
"""A part may have a 32nd of the images before it, up to so many: handing a part to a worker costs a sixth of a second,
which is much beside 256 images, and in a small collection every worker should get several."""
REJECTS_AT_ONCE = 4096
WORKING_SIDE_PX = 256
"""JPEGs are decoded at a reduced size whose shorter side is at least this; all that is measured needs no more."""


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
        sheet = _Sheet(self.limits, self._describer, watch, self.variants)
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


class _Sheet:
    """Collects what is found in the images of a part; holds at most IMAGES_AT_ONCE decoded ones."""

    def __init__(
        self, limits: ImageLimits, describer: Describer, watch: Watch, variants: VariantOptions
    ) -> None:
        self.limits, self.describer, self.watch, self.variants = limits, describer, watch, variants
        self.rows: dict[str, list[dict[str, Any]]] = {
            n: [] for n in ("images", "instances", "measures", "rejects")
        }
        self.phashes: list[int] = []
        self.vectors: list[Vector] = []
        self.looks: list[Look] = []
        self.waiting: list[tuple[int, int, Any, Any]] = []
        """Position of an image in the part, place of its vector, its pixels, and an object to be looked at."""
        self.owner = ""
        self.seen: dict[str, str] = {}
        self.found: Counter[tuple[str, str]] = Counter()
        self.unclear: set[str] = set()
        """Groups of which an image shows no variant."""
        self.counts: dict[str, Counter[str]] = {}
        self.boxes = 0

    def add(self, row: Mapping[str, Any], found: _Found, position: int) -> None:
        """Look into an image that was read; one that hung together with others is described by itself."""
        alone = position in self.watch.hung.together
        if alone:
            self._describe()
        with self.watch.over(position):
            self._look_into(row, found, position)
        if alone or len(self.waiting) >= IMAGES_AT_ONCE:
            self._describe()

    def refuse(self, row: Mapping[str, Any], refusal: ImageRejected) -> None:
        """Reject an image that was not opened."""
        self._begin(row)
        self._refuse(row, refusal)

    def _look_into(self, row: Mapping[str, Any], found: _Found, position: int) -> None:
        counts = self._begin(row)
        try:
            if isinstance(found.image, ImageRejected):
                raise found.image
            digest = hashlib.sha256(found.image).hexdigest()
            self._check_new(digest)
            decoded = decode(found.image, self.limits, target_px=WORKING_SIDE_PX)
            mask = _mask(row["mask_uri"], found.mask, decoded)
        except ImageRejected as refusal:
            self._refuse(row, refusal)
            return
        if mask is not None:
            counts["masks kept" if mask.box else "masks empty"] += 1
        self._keep(row, digest, decoded, mask, position)

    def take(self, row: Mapping[str, Any], known: KnownImage) -> None:
        """Take over what an earlier version found; the listing's own words (licence, category) are today's."""
        self._begin(row)["images taken over"] += 1
        try:
            if known.refusal is not None:
                raise known.refusal
            self._check_new(known.image["sha256"])
        except ImageRejected as refusal:
            self._refuse(row, refusal)
            return
        self.boxes += row["box"] is not None
        if known.outside is not None:
            self._reject("boxes", row["image_id"], "box_outside", known.outside)
        said = {k: row[k] for k in ("uri", "licence", "attribution")}
        instance = {k: row[k] for k in ("image_id", "instance_id", "category")}
        self._put(known.image | said, instance | {"box": known.box}, known.measures, known.phash)
        self.vectors.append(known.vector)
        self.looks.append(known.look)

    def _begin(self, row: Mapping[str, Any]) -> Counter[str]:
        if row["instance_id"] != self.owner:
            self.owner, self.seen = row["instance_id"], {}
        self.found[row["domain"], row["instance_id"]] += 0
        counts = self.counts.setdefault(row["domain"], Counter())
        counts["images listed"] += 1
        return counts

    def _check_new(self, digest: str) -> None:
        if digest in self.seen:
            raise ImageRejected("duplicate_content", f"same bytes as {self.seen[digest]}")

    def _refuse(self, row: Mapping[str, Any], refusal: ImageRejected) -> None:
        self.counts[row["domain"]][f"images {refusal.reason}"] += 1
        self._reject("images", row["image_id"], refusal.reason, refusal.detail)

    def _put(
        self, image: dict[str, Any], instance: dict[str, Any], measures: dict[str, Any], bits: int
    ) -> None:
        self.seen[image["sha256"]] = image["image_id"]
        self.found[image["domain"], instance["instance_id"]] += 1
        self.rows["images"].append(image)
        self.rows["instances"].append(instance)
        self.rows["measures"].append(measures)
        self.phashes.append(bits)

    def _keep(
        self,
        row: Mapping[str, Any],
        digest: str,
        decoded: DecodedImage,
        mask: _Mask | None,
        position: int,
    ) -> None:
        from pipelines.descriptors import phash
        from pipelines.measures import measure

        box = (
            upright_box(tuple(row["box"]), *decoded.stored_size, decoded.orientation) if row["box"] else None
        )
        self.boxes += row["box"] is not None
        if row["box"] and box is None:
            told = ", ".join(f"{v:g}" for v in row["box"])
            size = f"{decoded.stored_size[0]} x {decoded.stored_size[1]} px as stored"
            self._reject("boxes", row["image_id"], "box_outside", f"box {told} of an image of {size}")
        instance = {k: row[k] for k in ("image_id", "instance_id", "category")}
        if mask is not None and mask.box is not None:  # an empty mask says nothing of where the object is
            box = box or mask.box
            instance |= {"mask_uri": row["mask_uri"], "mask_sha256": mask.sha256}
        image = {k: row[k] for k in ("image_id", "domain", "uri", "licence", "attribution")}
        image |= {"width": decoded.width, "height": decoded.height, "sha256": digest}
        measures = {"image_id": row["image_id"], **measure(decoded.image, _scaled(box, decoded))}
        self._put(image, instance | {"box": box}, measures, phash(decoded.image))
        seen = self.variants.split(row["domain"])
        thing = crop(decoded.image, _scaled(box, decoded)) if seen else None
        self.waiting.append((position, len(self.vectors), decoded.image, thing))
        self.vectors.append(NOT_YET)
        self.looks.append(Look())

    def _describe(self) -> None:
        if self.waiting:
            positions, places, images, things = zip(*self.waiting, strict=True)
            with self.watch.over(positions[0], positions[-1] - positions[0] + 1):
                found = np.asarray(self.describer.describe(images), np.float32)
                seen = looks(self.variants, [t for t in things if t is not None], self.describer)
            for place, vector in zip(places, found, strict=True):
                self.vectors[place] = vector
            shown = (place for place, thing in zip(places, things, strict=True) if thing is not None)
            for place, look in zip(shown, seen, strict=True):
                self.looks[place] = look
            self.waiting = []

    def _reject(self, entity: str, key: str, reason: str, detail: str) -> None:
        row = {"stage": "collect", "entity": entity, "key": key, "reason": reason, "detail": detail}
        self.rows["rejects"].append(row)

    def _split(self) -> None:
        """Make each variant of a group an instance of its own; rows stay in the order of instances."""
        namer, order = Namer(self.variants, self.describer), list[int]()
        domains = [row["domain"] for row in self.rows["images"]]
        for group in runs([row["instance_id"] for row in self.rows["instances"]]):
            if not self.variants.split(domains[group.start]):
                order += group
                continue
            order += self._split_group(namer, group)
        for name in ("images", "instances", "measures"):
            self.rows[name] = [self.rows[name][i] for i in order]
        self.phashes = [self.phashes[i] for i in order]
        self.vectors = [self.vectors[i] for i in order]
        self.looks = [self.looks[i] for i in order]

    def _split_group(self, namer: Namer, group: range) -> list[int]:
        images, instances = self.rows["images"], self.rows["instances"]
        source, domain = instances[group.start]["instance_id"], images[group.start]["domain"]
        ids = [images[i]["image_id"] for i in group]
        names = namer.names(instances[group.start]["category"], ids, [self.looks[i] for i in group])
        found: dict[str, list[int]] = {}
        for i, variant in zip(group, names, strict=True):
            if variant is None:
                unclear = ImageRejected("variant_unclear", f"of {source}, by {self.variants.by}")
                self._refuse(images[i], unclear)
                self.found[domain, source] -= 1
                self.unclear.add(source)
            else:
                found.setdefault(variant, []).append(i)
                instances[i] |= {"instance_id": variant_id(source, variant), "variant": variant}
        self.counts[domain]["variants"] += len(found)
        return [i for _, members in sorted(found.items()) for i in members]

    def result(self) -> StageResult:
        self._describe()
        if self.variants.by != "none":
            self._split()
        empty = [instance for (_, instance), images in self.found.items() if not images]
        refused = Counter(r["reason"] for r in self.rows["rejects"] if r["entity"] == "images")
        outside = len(self.rows["rejects"]) - sum(refused.values())
        for instance in empty:
            why = "no image shows a variant clearly" if instance in self.unclear else "no readable image"
            self._reject("instances", instance, "too_few_images", why)
        kept = len(self.rows["images"])
        accounts = (
            Account(
                entity="images",
                taken_in=sum(c["images listed"] for c in self.counts.values()),
                kept=kept,
                rejected=dict(refused),
            ),
            Account(
                entity="boxes",
                taken_in=self.boxes,
                kept=self.boxes - outside,
                rejected={"box_outside": outside} if outside else {},
            ),
            Account(
                entity="instances",
                taken_in=len(self.found),
                kept=len(self.found) - len(empty),
                rejected={"too_few_images": len(empty)} if empty else {},
            ),
        )
        ids = pa.array([r["image_id"] for r in self.rows["images"]], pa.string())
        tables = {
            "_work/images/collected": _table(self.rows["images"], "images"),
            "instances": _table(self.rows["instances"], "instances"),
            "measures": _table(self.rows["measures"], "measures"),
            "rejects/collect": _table(self.rows["rejects"], "rejects"),
            "descriptors": pa.table(
                {
                    "image_id": ids,
                    "descriptor": _lists(self.vectors),
                    "phash": pa.array(self.phashes, pa.uint64()),
                    "object": pa.array(
                        [None if look.vector is None else look.vector for look in self.looks],
                        pa.list_(pa.float32()),
                    ),
                }
            ),
        }
        return StageResult(tables, accounts, self.counts)


def _table(rows: list[dict[str, Any]], name: str) -> pa.Table:
    return conform(pa.Table.from_pylist(rows, TABLES[name]), name)


def _lists(rows: list[Vector]) -> pa.Array:
    if not rows:
        return pa.array([], pa.list_(pa.float32()))
    vectors = np.stack(rows)
    offsets = pa.array(np.arange(0, vectors.size + 1, vectors.shape[1], dtype=np.int32))
    return pa.ListArray.from_arrays(offsets, pa.array(vectors.ravel()))


def _scaled(box: Box | None, decoded: DecodedImage) -> Box | None:
    """A box of the full image in pixels of the reduced one."""
    if box is None:
        return None
    sx, sy = decoded.image.width / decoded.width, decoded.image.height / decoded.height
    return box[0] * sx, box[1] * sy, box[2] * sx, box[3] * sy


class _Found(NamedTuple):
    """The bytes of an image and of its mask, or why there are none."""

    image: bytes | ImageRejected
    mask: bytes | ImageRejected | None
    """None where no mask is listed."""


class _Mask(NamedTuple):
    sha256: str
    box: Box | None
    """None of an empty mask."""


def _mask(uri: str | None, data: bytes | ImageRejected | None, image: DecodedImage) -> _Mask | None:
    """What the mask of an image says; judged by the image's own size, so that no mask is larger than was allowed.

    Raises:
        ImageRejected: the mask is listed, but cannot be read or is none of this image.
    """
    if data is None:
        return None
    if isinstance(data, ImageRejected):
        raise ImageRejected("bad_mask", f"{uri}: {data.detail}")
    try:
        inside = decode_mask(data, (image.width, image.height))
    except OacirError as error:
        raise ImageRejected("bad_mask", f"{uri}: {error}") from error
    return _Mask(hashlib.sha256(data).hexdigest(), mask_box(inside))


def _read_ahead(rows: list[dict[str, Any]]) -> Iterator[tuple[dict[str, Any], _Found]]:
    """Each row with the bytes of its files, a few read ahead: a remote store answers in many milliseconds."""
    with ThreadPoolExecutor(READ_AHEAD) as pool:
        coming: deque[Future[_Found]] = deque()
        for position, row in enumerate(rows):
            while len(coming) < READ_AHEAD and position + len(coming) < len(rows):
                coming.append(pool.submit(_find, rows[position + len(coming)]))
            yield row, coming.popleft().result()


def _find(row: Mapping[str, Any]) -> _Found:
    return _Found(_read(row["uri"]), None if row["mask_uri"] is None else _read(row["mask_uri"]))


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
