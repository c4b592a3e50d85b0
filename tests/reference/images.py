"""Slow preprocessing: a photo to the model's pixels, and a box on the same way. Nothing of the project is imported."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tests.reference.adafocal import Box

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def padding(width: int, height: int, ratio: float) -> tuple[int, int]:
    """Black columns on each side and rows above and below, px: none below the ratio, else up to the ratio."""
    if max(width, height) / min(width, height) < ratio:
        return 0, 0
    wanted = max(width, height) / ratio
    return max(int((wanted - width) / 2), 0), max(int((wanted - height) / 2), 0)


def resized(width: int, height: int, size: int) -> tuple[int, int]:
    """Width and height with the short side at `size` px; the long side is cut down to a whole number."""
    short, long = min(width, height), max(width, height)
    new_long = int(size * long / short)
    return (size, new_long) if width <= height else (new_long, size)


def pixels(photo: np.ndarray, size: int, ratio: float) -> Tensor:
    """uint8 [H, W, 3] → float32 [3, size, size]: pad, bicubic resize, centre crop, CLIP mean and deviation."""
    height, width, _ = photo.shape
    pad_x, pad_y = padding(width, height, ratio)
    canvas = np.zeros((height + 2 * pad_y, width + 2 * pad_x, 3), np.uint8)
    canvas[pad_y : pad_y + height, pad_x : pad_x + width] = photo
    new_width, new_height = resized(canvas.shape[1], canvas.shape[0], size)
    image = np.asarray(Image.fromarray(canvas).resize((new_width, new_height), Image.Resampling.BICUBIC))
    left, top = round((new_width - size) / 2), round((new_height - size) / 2)
    crop = torch.from_numpy(image[top : top + size, left : left + size].copy()).permute(2, 0, 1).float() / 255
    return (crop - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def move_box(box: Box, width: int, height: int, size: int, ratio: float) -> Box | None:
    """A box of a photo, px, in the model's input: the same pad, scale and crop, cut to the input, truncated to int.

    None where the box lies outside the crop. The crop's offset is not rounded here, as in the release.
    """
    pad_x, pad_y = padding(width, height, ratio)
    padded_width, padded_height = width + 2 * pad_x, height + 2 * pad_y
    new_width, new_height = resized(padded_width, padded_height, size)
    scale = size / min(padded_width, padded_height)
    moved = []
    for value, pad, new in zip(box, (pad_x, pad_y) * 2, (new_width, new_height) * 2, strict=True):
        moved.append((value + pad) * scale - (new - size) / 2)
    x1, y1, x2, y2 = (min(max(value, 0), size) for value in moved)
    if x1 >= x2 or y1 >= y2:
        return None
    return float(int(x1)), float(int(y1)), float(int(x2)), float(int(y2))
