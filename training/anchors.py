"""The anchors of a benchmark's queries: their box or mask as patch masks, and the view of the reference they mean."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from infra.base import storage
from infra.base.errors import OacirError
from training.masks import Mask, decode_mask

if TYPE_CHECKING:
    from torch import Tensor

    from training.model.processing import AdaFocalProcessor
    from training.model.regions import Region
    from training.model.views import Asking, PixelBox

READERS = 8


class MaskFile(NamedTuple):
    """Where a mask lies, and the SHA-256 of its bytes when the benchmark was built."""

    uri: str
    sha256: str


class Anchor(NamedTuple):
    """The anchored object of a query.

    Attributes:
        reference_id: the image it lies on.
        size: width and height of that image, upright, pixels.
        box: x1, y1, x2, y2 in pixels of that image; None where there is none.
        mask: its mask, where there is one.
    """

    reference_id: str
    size: tuple[int, int]
    box: tuple[float, float, float, float] | None
    mask: MaskFile | None


@dataclass(frozen=True)
class Anchors:
    """What a model takes of the anchors of some queries, row-aligned."""

    patch_masks: Tensor
    """float32 [n, N]."""
    boxes: list[PixelBox | None]
    """What each reference is seen through; None where all of it is encoded as it is."""
    reference_keys: list[str]
    """What a feature store calls each reference: the image, or its view through the box."""


def anchors_of(rows: Iterable[Mapping[str, Any]], sizes: Mapping[str, tuple[int, int]]) -> list[Anchor]:
    """The anchors of rows of the `quadruples` table, also of one from before there were masks.

    Args:
        rows: of the table.
        sizes: image_id → (width, height) of the upright image, pixels.
    """
    return [
        Anchor(
            row["reference_id"],
            sizes[row["reference_id"]],
            None if row["reference_box"] is None else tuple(row["reference_box"]),
            None
            if row.get("reference_mask_uri") is None
            else MaskFile(row["reference_mask_uri"], row["reference_mask_sha256"]),
        )
        for row in rows
    ]


def region_counts(anchors: Sequence[Anchor], processor: Asking) -> dict[str, int]:
    """How many queries are asked with their mask and how many with their box."""
    masks = sum(anchor.mask is not None for anchor in anchors) if processor.region == "mask" else 0
    return {"mask": masks, "box": len(anchors) - masks}


def load_anchors(anchors: Sequence[Anchor], processor: AdaFocalProcessor) -> Anchors:
    """Patch masks and views of queries; where the processor asks for masks, those are read, each once.

    Raises:
        OacirError: a mask is gone or no longer the one that the benchmark was built with, or a view has no box.
    """
    import torch

    from training.model.views import view_id

    def taken(anchor: Anchor) -> tuple[Tensor, PixelBox | None]:
        region, size = region_of(anchor, processor), [anchor.size]
        return processor.regions([region], size)[0], processor.view_boxes([region], size)[0]

    distinct = list(dict.fromkeys(anchors))
    with ThreadPoolExecutor(READERS if processor.region == "mask" else 1) as pool:
        found = dict(zip(distinct, pool.map(taken, distinct), strict=True))
    boxes = [found[anchor][1] for anchor in anchors]
    return Anchors(
        torch.stack([found[anchor][0] for anchor in anchors]) if anchors else processor.regions([], []),
        boxes,
        [
            anchor.reference_id if box is None else view_id(anchor.reference_id, box)
            for anchor, box in zip(anchors, boxes, strict=True)
        ],
    )


def region_of(anchor: Anchor, processor: AdaFocalProcessor) -> Region | None:
    """What marks the object of a query: its mask where the processor asks for masks and there is one, else its box.

    Raises:
        OacirError: the mask is gone or no longer the one that the benchmark was built with.
    """
    if processor.region == "mask" and anchor.mask is not None:
        return _read(anchor.mask, anchor.size)
    return anchor.box


def _read(file: MaskFile, size: tuple[int, int]) -> Mask:
    data = storage.read_bytes(file.uri)
    if hashlib.sha256(data).hexdigest() != file.sha256:
        raise OacirError(
            f"{file.uri}: changed since the benchmark was built (another sha256); build it again"
        )
    try:
        return decode_mask(data, size)
    except OacirError as error:
        raise OacirError(f"{file.uri}: {error}; build the benchmark again") from error
