"""Boxes that are not quite right: changed to a given IoU with the right one, inside the picture. Pure functions."""

from __future__ import annotations

import math
import random
from collections.abc import Callable

Box = tuple[float, float, float, float]
DIRECTIONS = 16
HALVINGS = 100
"""More than a double has bits: the last interval is empty."""


def iou(first: Box, second: Box) -> float:
    """Area of the intersection over area of the union."""
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (area(first) + area(second) - both)


def area(box: Box) -> float:
    """In square pixels."""
    return (box[2] - box[0]) * (box[3] - box[1])


def inside(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box that lies in a picture of (width, height); None where none does."""
    x1, y1, x2, y2 = (
        max(0.0, box[0]),
        max(0.0, box[1]),
        min(float(size[0]), box[2]),
        min(float(size[1]), box[3]),
    )
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def scaled(box: Box, size: tuple[int, int], wanted: float, draw: random.Random) -> Box:
    """A smaller or larger box around the same centre, by draw; a larger one is cut at the picture's edges.

    Args:
        box: inside the picture.
        size: width and height of the picture, pixels.
        wanted: IoU of the two.
        draw: decides between smaller and larger; where the picture has no room for a larger one it is smaller.
    """
    larger = draw.random() < 0.5
    if not larger or area((0, 0, *size)) * wanted < area(box):
        return _about_centre(box, math.sqrt(wanted))

    def grown(factor: float) -> Box:
        return inside(_about_centre(box, factor), size) or box

    most = 2 * max(size[0] / (box[2] - box[0]), size[1] / (box[3] - box[1]))
    return grown(_last(lambda factor: area(box) >= wanted * area(grown(factor)), 1.0, most))


def shifted(box: Box, size: tuple[int, int], wanted: float, draw: random.Random) -> Box:
    """A smaller or larger box that is also moved, in a drawn direction; how much is scale and how much shift is drawn.

    Where no direction has room, the box is smaller and lies somewhere inside the old one.

    Args:
        box: inside the picture.
        size: width and height of the picture, pixels.
        wanted: IoU of the two.
        draw: of all that is left open.
    """
    resized = scaled(box, size, wanted ** draw.uniform(0.25, 0.75), draw)
    first = draw.uniform(0, 2 * math.pi)
    for number in range(DIRECTIONS):
        angle = first + 2 * math.pi * number / DIRECTIONS
        step = math.cos(angle), math.sin(angle)
        room = _room(resized, size, step)
        if iou(_moved(resized, step, room), box) > wanted:
            continue
        far = _far_enough(resized, box, step, room, wanted)
        return inside(_moved(resized, step, far), size) or box
    small = _about_centre(box, math.sqrt(wanted))
    free = (box[2] - box[0]) - (small[2] - small[0]), (box[3] - box[1]) - (small[3] - small[1])
    x, y = (draw.uniform(-room / 2, room / 2) for room in free)
    return _moved(small, (x, y), 1.0)


def _about_centre(box: Box, factor: float) -> Box:
    x, y = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    width, height = factor * (box[2] - box[0]) / 2, factor * (box[3] - box[1]) / 2
    return x - width, y - height, x + width, y + height


def _moved(box: Box, step: tuple[float, float], far: float) -> Box:
    x, y = step[0] * far, step[1] * far
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y


def _room(box: Box, size: tuple[int, int], step: tuple[float, float]) -> float:
    """How far a box can go in a direction before it leaves the picture."""
    found = []
    for low, high, side, part in ((box[0], box[2], size[0], step[0]), (box[1], box[3], size[1], step[1])):
        if part > 0:
            found.append((side - high) / part)
        elif part < 0:
            found.append(low / -part)
    return max(0.0, min(found))


def _far_enough(moving: Box, box: Box, step: tuple[float, float], room: float, wanted: float) -> float:
    """How far a box goes in a direction until its IoU with another one has fallen to what is wanted."""
    # One of the two lies in the other at first, so that the IoU only falls on the way.
    return _last(lambda t: iou(_moved(moving, step, t), box) >= wanted, 0.0, room)


def _last(holds: Callable[[float], bool], low: float, high: float) -> float:
    """The largest number between low and high of which it holds, given that it holds up to there and not beyond."""
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
