"""Boxes that are off by a given IoU, as the paper has them: scaled about the centre, or also shifted."""

from __future__ import annotations

import math
import random

Box = tuple[float, float, float, float]
SHIFTED_BELOW = 0.8
"""The paper scales a box to IoU 0.8, and scales and shifts it to IoU 0.5."""


def off_by(box: Box, iou: float, size: tuple[int, int], seed: str) -> Box:
    """A box of that IoU with the given one.

    At 0.8 and above it is scaled about its centre, larger where it fits into the image, else smaller. Below it is first
    scaled so to √IoU, then shifted in a drawn direction by what is left.

    Args:
        box: x1, y1, x2, y2, pixels.
        iou: above 0, at most 1.
        size: width and height of the image, pixels.
        seed: draws the direction; the same one, the same box.
    """
    if iou >= SHIFTED_BELOW:
        larger = _scaled(box, iou**-0.5)
        return larger if _inside(larger, size) else _scaled(box, iou**0.5)
    scaled = _scaled(box, iou**0.25)
    angle = random.Random(seed).uniform(0, 2 * math.pi)
    for turn in range(8):  # the first direction in which the image has room
        moved = _shifted(box, scaled, iou, angle + turn * math.pi / 4)
        if _inside(moved, size):
            return moved
    return _shifted(box, _scaled(box, iou**0.5), iou, angle)


def intersection_over_union(first: Box, second: Box) -> float:
    """IoU of two boxes."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    return shared / (_area(first) + _area(second) - shared)


def _area(box: Box) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _scaled(box: Box, factor: float) -> Box:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    width, height = (box[2] - box[0]) * factor / 2, (box[3] - box[1]) * factor / 2
    return x - width, y - height, x + width, y + height


def _shifted(box: Box, scaled: Box, iou: float, angle: float) -> Box:
    """The scaled box, moved in a direction until its IoU with `box` has fallen to `iou`."""
    width, height = scaled[2] - scaled[0], scaled[3] - scaled[1]
    low, high = 0.0, 1.0

    def at(share: float) -> Box:
        x, y = 2 * share * width * math.cos(angle), 2 * share * height * math.sin(angle)
        return scaled[0] + x, scaled[1] + y, scaled[2] + x, scaled[3] + y

    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if intersection_over_union(box, at(middle)) > iou else (low, middle)
    return at(low)


def _inside(box: Box, size: tuple[int, int]) -> bool:
    return box[0] >= 0 and box[1] >= 0 and box[2] <= size[0] and box[3] <= size[1]
