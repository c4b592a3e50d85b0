"""Where a box lies in the model's input: pixels of the photo → pixels of the input → patches. Pure functions.

The image goes through pad → resize → centre crop (see `processing.py`); the box has to make the same way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

Box = tuple[float, float, float, float]
"""x1, y1, x2, y2 in pixels, half-open."""


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
