"""Where a region lies in the model's input: pixels of the photo → pixels of the input → patches. Pure functions.

The image goes through pad → resize → centre crop (see `processing.py`); the region, a box or a mask, has to make the
same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from infra.base.errors import OacirError
from training.masks import Mask, mask_box

__all__ = [
    "Box", "Geometry", "Mask", "Region", "input_geometry", "mask_patches", "patch_mask", "region_box", "region_patches",
    "transform_box",
]  # fmt: skip

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels, half-open."""
Region = Box | Mask
"""The anchored object in pixels of the upright image: its box, or its mask [H, W]."""


@dataclass(frozen=True, slots=True)
class Geometry:
    """How an image of one size becomes the square input: pad, resize, centre crop; all lengths in pixels."""

    pad_x: int
    pad_y: int
    resized_width: int
    resized_height: int
    crop_left: int
    crop_top: int


def input_geometry(width: int, height: int, image_size: int, pad_ratio: float) -> Geometry:
    """The pad / resize / crop of an image of `width` x `height` px for a square input of `image_size` px.

    An image whose sides differ by `pad_ratio` or more is first padded with black on its short sides until they
    differ by `pad_ratio`; then the short side becomes `image_size` and the middle is cut out.
    """
    pad_x = pad_y = 0
    if max(width, height) / min(width, height) >= pad_ratio:
        padded_short = max(width, height) / pad_ratio
        pad_x = max(int((padded_short - width) / 2), 0)
        pad_y = max(int((padded_short - height) / 2), 0)
    padded_width, padded_height = width + 2 * pad_x, height + 2 * pad_y
    if padded_width <= padded_height:
        resized_width, resized_height = image_size, int(image_size * padded_height / padded_width)
    else:
        resized_width, resized_height = int(image_size * padded_width / padded_height), image_size
    crop_left = round((resized_width - image_size) / 2)
    crop_top = round((resized_height - image_size) / 2)
    return Geometry(pad_x, pad_y, resized_width, resized_height, crop_left, crop_top)


def transform_box(box: Box, width: int, height: int, image_size: int, pad_ratio: float = 1.25) -> Box | None:
    """The box, given in pixels of a `width` x `height` image, in pixels of the model's square input.

    Coordinates are truncated to whole pixels at the end, as in the reference implementation; None if nothing of
    the box is left in the crop. Truncation can leave a box without area, whose patch mask may be empty.
    """
    geometry = input_geometry(width, height, image_size, pad_ratio)
    scale = image_size / min(width + 2 * geometry.pad_x, height + 2 * geometry.pad_y)
    # The reference takes the crop's offset for boxes unrounded, unlike the pixels: half a pixel apart at odd sizes.
    left, top = (geometry.resized_width - image_size) / 2, (geometry.resized_height - image_size) / 2
    x1, x2 = ((x + geometry.pad_x) * scale - left for x in (box[0], box[2]))
    y1, y2 = ((y + geometry.pad_y) * scale - top for y in (box[1], box[3]))
    x1, y1 = max(x1, 0.0), max(y1, 0.0)
    x2, y2 = min(x2, float(image_size)), min(y2, float(image_size))
    if x1 >= x2 or y1 >= y2:
        return None
    return float(int(x1)), float(int(y1)), float(int(x2)), float(int(y2))


def patch_mask(box: Box | None, image_size: int, patch_size: int) -> Tensor:
    """1 for every patch that the box touches, row-major after the class token, which is always 0.

    Args:
        box: in pixels of the model's input; may leave the image; None gives zeros.
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.

    Returns:
        float32 [N], N = 1 + (image_size // patch_size)².
    """
    grid = image_size // patch_size
    mask = torch.zeros(grid, grid)
    if box is not None:
        left, top = (max(math.floor(v / patch_size), 0) for v in box[:2])
        right, bottom = (min(math.ceil(v / patch_size), grid) for v in box[2:])
        if left < right and top < bottom:
            mask[top:bottom, left:right] = 1.0
    return torch.cat([torch.zeros(1), mask.flatten()])


def mask_patches(mask: Mask, image_size: int, patch_size: int, pad_ratio: float = 1.25) -> Tensor:
    """1 for every patch that a pixel of the mask touches, row-major after the class token, which is always 0.

    A pixel is a square that makes the way of a box (`transform_box`), in whole numbers and without its truncation at
    the end: a filled rectangle touches what the box of its corners touches, and a patch more where the box reaches
    into it by less than a pixel of the input, which truncation cuts off.

    Args:
        mask: [H, W], of the upright image.
        image_size: side of the square input, pixels.
        patch_size: side of a patch, pixels.
        pad_ratio: as in `input_geometry`.

    Returns:
        float32 [N], N = 1 + (image_size // patch_size)².
    """
    height, width = mask.shape
    geometry, grid = input_geometry(width, height, image_size, pad_ratio), image_size // patch_size
    short = min(width + 2 * geometry.pad_x, height + 2 * geometry.pad_y)

    def spans(count: int, pad: int, resized: int) -> list[slice]:
        """The pixels of one axis that touch each patch; all lengths times 2 * short, so that they are whole."""
        edges = 2 * (np.arange(count + 1, dtype=np.int64) + pad) * image_size - (resized - image_size) * short
        borders = 2 * short * patch_size * np.arange(grid + 1, dtype=np.int64)
        first = np.searchsorted(edges[1:], borders[:-1], side="right")
        behind = np.searchsorted(edges[:-1], borders[1:], side="left")
        return [slice(int(a), int(b)) for a, b in zip(first, behind, strict=True)]

    rows = np.stack(
        [mask[span].any(axis=0) for span in spans(height, geometry.pad_y, geometry.resized_height)]
    )
    columns = spans(width, geometry.pad_x, geometry.resized_width)
    touched = np.stack([rows[:, span].any(axis=1) for span in columns], axis=1)
    return torch.cat([torch.zeros(1), torch.from_numpy(touched).float().flatten()])


def region_patches(
    region: Region | None, width: int, height: int, image_size: int, patch_size: int, pad_ratio: float = 1.25
) -> Tensor:
    """The patch mask of a region of a `width` x `height` image, float32 [N]; all zeros where nothing of it is left.

    Raises:
        OacirError: a mask of another size than the image.
    """
    if isinstance(region, np.ndarray):
        _check_mask(region, width, height)
        return mask_patches(region, image_size, patch_size, pad_ratio)
    box = None if region is None else transform_box(region, width, height, image_size, pad_ratio)
    return patch_mask(box, image_size, patch_size)


def region_box(region: Region | None, width: int, height: int) -> Box | None:
    """The box of a region: itself, or the smallest around the mask; None where the mask is empty or there is none.

    Raises:
        OacirError: a mask of another size than the `width` x `height` image.
    """
    if isinstance(region, np.ndarray):
        _check_mask(region, width, height)
        return mask_box(region)
    return region


def _check_mask(mask: Mask, width: int, height: int) -> None:
    if mask.dtype != np.bool_ or mask.shape != (height, width):
        raise OacirError(
            f"a region is a box (x1, y1, x2, y2) or a mask, of an image of {width} x {height} px a bool array"
            f" [{height}, {width}]; this array is {mask.dtype} {list(mask.shape)}"
        )
