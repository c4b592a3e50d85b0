"""Opens the images that a release names, once: sizes, hashes, upright boxes, masks that fit, and parts cut out."""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.images import Box, DecodedImage, ImageLimits, ImageRejected, decode, upright_box
from pipelines.records import TABLES, conform
from pipelines.stages import Part, Stage, StageResult
from pipelines.watch import UNWATCHED, Watch
from training.masks import decode_mask, mask_box

CHECKED_SIDE_PX = 256
"""JPEGs are decoded at a reduced size to see that they are whole."""
IO_THREADS = 8
DILATION = 0.7
"""GeneCIS widens a box by this share of its sides before it cuts it out."""


@dataclass
class OpenStage(Stage):
    """Named images → what they measure, with upright boxes, masks that fit, and the queries that refer to them."""

    limits: ImageLimits
    version_url: str
    seconds_per_record: float | None = None
    name = "open"
    inputs = ("_work/listing", "_work/instances/read", "_work/quadruples/read")
    outputs = (
        "_work/images/opened",
        "_work/instances/opened",
        "_work/quadruples/opened",
        "_work/rejects/open",
        "_work/files/crops",
    )

    def __call__(self, part: Part) -> StageResult:
        """Open every image of the part."""
        rows: dict[str, list[dict[str, Any]]] = {n: [] for n in ("images", "rejects", "files")}
        opened: dict[str, DecodedImage] = {}
        listing = part.tables["_work/listing"].to_pylist()
        with ThreadPoolExecutor(IO_THREADS) as pool:
            for position, row, data in _read_ahead(pool, listing, part.watch):
                try:
                    with part.watch.over(position):
                        opened[row["image_id"]] = self._open(row, data, rows)
                except ImageRejected as refusal:
                    rows["rejects"].append(
                        reject_row("images", row["image_id"], refusal.reason, refusal.detail)
                    )
        instances = [
            found
            for row in part.tables["_work/instances/read"].to_pylist()
            if (found := _upright_instance(row, opened, rows["rejects"])) is not None
        ]
        quadruples = [
            found
            for row in part.tables["_work/quadruples/read"].to_pylist()
            if (found := _upright_query(row, opened, rows["rejects"])) is not None
        ]
        return StageResult(
            {
                "_work/images/opened": as_table(rows["images"], "images"),
                "_work/instances/opened": as_table(instances, "instances"),
                "_work/quadruples/opened": as_table(quadruples, "quadruples"),
                "_work/rejects/open": as_table(rows["rejects"], "rejects"),
                "_work/files/crops": as_table(rows["files"], "files"),
            }
        )

    def _open(
        self, row: Mapping[str, Any], data: bytes | ImageRejected, rows: dict[str, list[dict[str, Any]]]
    ) -> DecodedImage:
        if isinstance(data, ImageRejected):
            raise data
        crop = json.loads(row["context_json"])["crop"] if row["context_json"] else None
        decoded = decode(data, self.limits, target_px=None if crop else CHECKED_SIDE_PX)
        image = {k: row[k] for k in ("image_id", "domain", "uri", "licence", "attribution")}
        width, height = decoded.width, decoded.height
        if crop:
            part = cropped(decoded.image, crop)
            width, height = part.size
            stream = io.BytesIO()
            part.save(stream, "PNG")
            data = stream.getvalue()
            path = storage.join("crops", row["image_id"])
            storage.write_bytes(storage.join(self.version_url, path), data)
            digest = hashlib.sha256(data).hexdigest()
            rows["files"].append({"path": path, "size_bytes": len(data), "sha256": digest})
            image["uri"] = storage.join(self.version_url, path)
        digest = hashlib.sha256(data).hexdigest()
        rows["images"].append(image | {"width": width, "height": height, "sha256": digest})
        blank = Image.new("RGB", (1, 1))  # the pixels are not needed any more
        return DecodedImage(blank, width, height, decoded.orientation, decoded.stored_size)


def cropped(image: Image.Image, box: Sequence[float]) -> Image.Image:
    """The part of an image that GeneCIS' attribute tasks mean by a box x, y, w, h, black around it to make it square.

    The corner moves out by 0.7 of the sides (not past the edge), the sides grow by as much: the authors' arithmetic,
    which widens the box up and to the left.

    Raises:
        ImageRejected: nothing of the box lies in the image.
    """
    x, y, w, h = box
    left, top = max(0.0, x - DILATION * w), max(0.0, y - DILATION * h)
    right, bottom = min(image.width, left + (1 + DILATION) * w), min(image.height, top + (1 + DILATION) * h)
    x1, y1, x2, y2 = (round(v) for v in (left, top, right, bottom))
    part_width, part_height = x2 - x1, y2 - y1
    if part_width < 1 or part_height < 1:
        raise ImageRejected(
            "too_small", f"nothing of the box {list(box)} lies in {image.width} x {image.height} px"
        )
    side = max(part_width, part_height)
    square = Image.new("RGB", (side, side))
    square.paste(image.crop((x1, y1, x2, y2)), ((side - part_width) // 2, (side - part_height) // 2))
    return square


def _upright_instance(
    row: dict[str, Any], opened: Mapping[str, DecodedImage], rejects: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """An instance of an opened image with its box and mask as they are on the upright image."""
    image = opened.get(row["image_id"])
    if image is None:
        return None  # goes with its image, which is among the rejects
    box = row["box"] and _upright(row["box"], image)
    if row["mask_uri"] is None:
        return row | {"box": box, "mask_sha256": None}
    mask = _mask(row["mask_uri"], image)
    if isinstance(mask, str):
        rejects.append(reject_row("instances", row["instance_id"], "bad_mask", f"{row['mask_uri']}: {mask}"))
        return None
    return row | {"box": box or mask[1], "mask_sha256": mask[0]}


def _upright_query(
    row: dict[str, Any], opened: Mapping[str, DecodedImage], rejects: list[dict[str, Any]]
) -> dict[str, Any] | None:
    """A query with its reference's box and mask as they are on the upright image; as it is, if that was not opened."""
    image = opened.get(row["reference_id"])
    if image is None:
        return row
    box = None
    if row["reference_box"] is not None:
        box = _upright(row["reference_box"], image)
        if box is None:
            detail = f"{row['reference_box']} lies outside {image.stored_size[0]} x {image.stored_size[1]} px"
            rejects.append(reject_row("quadruples", row["query_id"], "no_box", detail))
            return None
    if row["reference_mask_uri"] is None:
        return row | {"reference_box": box}
    mask = _mask(row["reference_mask_uri"], image)
    if isinstance(mask, str) or mask[1] is None:
        problem = mask if isinstance(mask, str) else "it marks nothing"
        detail = f"{row['reference_mask_uri']}: {problem}"
        rejects.append(reject_row("quadruples", row["query_id"], "bad_mask", detail))
        return None
    return row | {"reference_box": box or mask[1], "reference_mask_sha256": mask[0]}


def _upright(box: Sequence[float], image: DecodedImage) -> Box | None:
    x1, y1, x2, y2 = box
    return upright_box((x1, y1, x2, y2), *image.stored_size, image.orientation)


def _mask(url: str, image: DecodedImage) -> tuple[str, Box | None] | str:
    """SHA-256 of a mask and the box of what it marks, or why it is none."""
    try:
        data = storage.read_bytes(url)
        inside = decode_mask(data, (image.width, image.height))
    except OacirError as error:
        return str(error)
    return hashlib.sha256(data).hexdigest(), mask_box(inside)


def _read_ahead(
    pool: ThreadPoolExecutor, rows: Sequence[Mapping[str, Any]], watch: Watch
) -> Iterator[tuple[int, Mapping[str, Any], bytes | ImageRejected]]:
    """Position and row of each image with its bytes; a few images at a time are in memory."""
    late = ImageRejected("timeout", watch.detail)
    for start in range(0, len(rows), IO_THREADS):
        some = list(enumerate(rows[start : start + IO_THREADS], start))
        coming = [None if n in watch.hung.alone else pool.submit(_read, row["uri"]) for n, row in some]
        for (position, row), future in zip(some, coming, strict=True):
            # a remote store bounds its own time, and a bad moment of it is no verdict on an image
            with UNWATCHED.over(position) if storage.is_s3(row["uri"]) else watch.over(position):
                data = late if future is None else future.result()
            yield position, row, data


def _read(url: str) -> bytes | ImageRejected:
    try:
        return storage.read_bytes(url)
    except OacirError as error:
        lasting = isinstance(error.__cause__, FileNotFoundError | PermissionError | IsADirectoryError)
        if lasting or not storage.is_s3(url):
            return ImageRejected("unreadable", type(error.__cause__).__name__)
        raise  # a bad moment of the network is no verdict on an image: the next run does the part again


def reject_row(entity: str, key: str, reason: str, detail: str) -> dict[str, Any]:
    """A row of `records.REJECTS`."""
    return {"stage": "import", "entity": entity, "key": key, "reason": reason, "detail": detail}


def as_table(rows: Sequence[Mapping[str, Any]], name: str) -> pa.Table:
    """Rows as the table of that name."""
    return conform(pa.Table.from_pylist(list(rows), TABLES[name]), name)
