"""What a photo looks like in a few numbers and one word; the plain annotator writes texts from their differences."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipelines.images import Box

SIDE_PX = 160
"""Longer side at which photos are measured, so that sharpness means the same at every size; smaller ones stay small."""
BORDER_SHARE = 0.1
"""Share of the shorter side that counts as border on each edge."""

COLOURS = ("black", "gray", "white", "red", "orange", "brown", "yellow", "green", "blue", "purple", "pink")
"""The eleven basic colour terms (Berlin and Kay)."""

Levels = NDArray[np.float32]


def measure(image: Image.Image, box: Box | None) -> dict[str, Any]:
    """Measure one upright photo.

    Args:
        image: RGB, any size.
        box: the anchored object as x1, y1, x2, y2 in pixels of `image`; left out of the background. None: no box.

    Returns:
        The columns of `records.MEASURES` without image_id: brightness, contrast, sharpness, saturation (each 0..1),
        background (one of COLOURS), aspect (width / height).
    """
    small = image.convert("RGB")
    small.thumbnail((SIDE_PX, SIDE_PX), Image.Resampling.BOX, reducing_gap=2.0)
    luma = np.asarray(small.convert("L"), dtype=np.float32) / 255.0
    hsv = np.asarray(small.convert("HSV"), dtype=np.float32) / 255.0
    scale = (small.width / image.width, small.height / image.height)
    terms = colour_terms(hsv[_border(hsv.shape[:2], box, scale)])
    return {
        "brightness": float(luma.mean()),
        "contrast": float(luma.std()),
        "sharpness": _sharpness(luma),
        "saturation": float(hsv[..., 1].mean()),
        "background": COLOURS[int(np.bincount(terms, minlength=len(COLOURS)).argmax())],
        "aspect": image.width / image.height,
    }


def _sharpness(luma: Levels) -> float:
    """Mean absolute difference of a pixel to the mean of its four neighbours; 0 for photos under 3 pixels."""
    if min(luma.shape) < 3:
        return 0.0
    around = (luma[:-2, 1:-1] + luma[2:, 1:-1] + luma[1:-1, :-2] + luma[1:-1, 2:]) / 4.0
    return float(np.abs(luma[1:-1, 1:-1] - around).mean())


def _border(shape: tuple[int, ...], box: Box | None, scale: tuple[float, float]) -> NDArray[np.bool_]:
    """The pixels [h, w] along the edges and outside the box; all along the edges if the box covers those."""
    height, width = shape
    edge = max(1, round(BORDER_SHARE * min(height, width)))
    border = np.ones((height, width), dtype=bool)
    border[edge : height - edge, edge : width - edge] = False
    if box is None:
        return border
    outside = border.copy()
    x1, y1 = int(box[0] * scale[0]), int(box[1] * scale[1])
    x2, y2 = int(np.ceil(box[2] * scale[0])), int(np.ceil(box[3] * scale[1]))
    outside[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = False
    return outside if outside.any() else border


def colour_terms(hsv: Levels) -> NDArray[np.intp]:
    """The number in COLOURS of every pixel [n] of [n, 3], by bounds in HSV (levels 0..1)."""
    hue, saturation, value = hsv[..., 0] * 360.0, hsv[..., 1], hsv[..., 2]
    number = {name: i for i, name in enumerate(COLOURS)}
    warm = (hue >= 10.0) & (hue < 50.0)
    reddish = (hue < 10.0) | (hue >= 290.0)
    rules = [
        (value < 0.2, "black"),
        ((saturation < 0.15) & (value > 0.8), "white"),
        ((saturation < 0.15) | ((value < 0.3) & (saturation < 0.3)), "gray"),
        (warm & ((value < 0.65) | (saturation < 0.45)), "brown"),
        (reddish & (saturation < 0.55) & (value > 0.6), "pink"),
        ((hue >= 290.0) & (hue < 340.0) & (value > 0.65), "pink"),
        (hue < 10.0, "red"),
        (hue < 45.0, "orange"),
        (hue < 70.0, "yellow"),
        (hue < 180.0, "green"),
        (hue < 260.0, "blue"),
        (hue < 330.0, "purple"),
    ]
    default = number["red"]
    return np.select([r for r, _ in rules], [number[n] for _, n in rules], default).astype(np.intp)
