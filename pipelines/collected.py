"""What collect keeps of the images of a part: rows, descriptors and accounts, filled image by image."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.base.accounts import Account
from infra.base.errors import OacirError
from pipelines.earlier import KnownImage
from pipelines.filter import runs
from pipelines.images import Box, DecodedImage, ImageLimits, ImageRejected, decode, upright_box
from pipelines.records import TABLES, conform
from pipelines.stages import StageResult
from pipelines.variants import Look, Namer, VariantOptions, crop, looks, variant_id
from pipelines.watch import Watch
from training.masks import decode_mask, mask_box

if TYPE_CHECKING:
    from pipelines.descriptors import Describer

Vector = NDArray[np.float32]
NOT_YET = np.zeros(0, np.float32)
"""In the place of an image's vector until its batch is described."""
IMAGES_AT_ONCE = 32
WORKING_SIDE_PX = 256
"""JPEGs are decoded at a reduced size whose shorter side is at least this; all that is measured needs no more."""


class Found(NamedTuple):
    """The bytes of an image and of its mask, or why there are none."""

    image: bytes | ImageRejected
    mask: bytes | ImageRejected | None
    """None where no mask is listed."""


class Sheet:
    """Collects what is found in the images of a part, in their order; holds at most IMAGES_AT_ONCE decoded ones."""

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

    def add(self, row: Mapping[str, Any], found: Found, position: int) -> None:
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

    def _look_into(self, row: Mapping[str, Any], found: Found, position: int) -> None:
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
        """The tables and accounts of the part."""
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
