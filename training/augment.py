"""Random changes of an image, its region making the same way. Pure functions of a generator."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from PIL import Image, ImageEnhance

from training.model.regions import Box, region_box

if TYPE_CHECKING:
    from training.model.regions import Region
    from training.tower_config import TowerSection

ENHANCERS = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)


class Seen(NamedTuple):
    """An image, and the region that marks the object on it (None: none)."""

    image: Image.Image
    region: Region | None


def augment(seen: Seen, kept: Box | None, section: TowerSection, generator: np.random.Generator) -> Seen:
    """A random change of an image, as the recipe asks for.

    Every call draws equally often whatever is asked for, so that one setting does not change another's draws.

    Args:
        seen: the image as it is.
        kept: what has to stay in it, pixels of the image; None cuts nothing away.
        section: the recipe's.
        generator: of this image in this step.
    """
    draws = generator.random(4 + len(ENHANCERS))
    if section.crop is not None and kept is not None:
        seen = _cut(seen, square(seen.image.size, kept, section.crop, draws[0], draws[1], draws[2]))
    if section.flip and draws[3] < 0.5:
        seen = mirrored(seen)
    if section.colour:
        image = seen.image
        for enhancer, draw in zip(ENHANCERS, draws[4:], strict=True):
            image = enhancer(image).enhance(1 + section.colour * (2 * float(draw) - 1))
        seen = Seen(image, seen.region)
    return seen


def square(
    size: tuple[int, int], kept: Box, least: float, side: float, across: float, down: float
) -> tuple[int, int, int, int]:
    """A square of an image that holds a box whole; all of the image where none can.

    The processor keeps an image's shape and cuts the ends off its longer side, so a square is what it shows whole.

    Args:
        size: width and height of the image, pixels.
        kept: the box, inside the image.
        least: smallest side as a share of the image's shorter one.
        side, across, down: uniform draws from 0 to 1.

    Returns:
        x1, y1, x2, y2 in whole pixels, half-open.
    """
    width, height = size
    x1, y1 = max(int(np.floor(kept[0])), 0), max(int(np.floor(kept[1])), 0)
    x2, y2 = min(int(np.ceil(kept[2])), width), min(int(np.ceil(kept[3])), height)
    short, needed = min(width, height), max(x2 - x1, y2 - y1)
    if needed > short:
        return 0, 0, width, height
    lowest = max(needed, int(np.ceil(least * short)))
    length = lowest + int(side * (short + 1 - lowest))
    left = _between(max(0, x2 - length), min(x1, width - length), across)
    top = _between(max(0, y2 - length), min(y1, height - length), down)
    return left, top, left + length, top + length


def mirrored(seen: Seen) -> Seen:
    """Left and right exchanged."""
    image = seen.image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    region = seen.region
    if isinstance(region, np.ndarray):
        return Seen(image, np.ascontiguousarray(region[:, ::-1]))
    if region is not None:
        region = (image.width - region[2], region[1], image.width - region[0], region[3])
    return Seen(image, region)


def to_keep(region: Region | None, size: tuple[int, int]) -> Box | None:
    """The box of a region that a cut may not touch; None where there is no region, or nothing of it in the image."""
    box = region_box(region, *size)
    if box is None:
        return None
    x1, y1, x2, y2 = max(box[0], 0.0), max(box[1], 0.0), min(box[2], size[0]), min(box[3], size[1])
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None


def _cut(seen: Seen, window: tuple[int, int, int, int]) -> Seen:
    x1, y1, x2, y2 = window
    region = seen.region
    if isinstance(region, np.ndarray):
        region = np.ascontiguousarray(region[y1:y2, x1:x2])
    elif region is not None:
        region = (region[0] - x1, region[1] - y1, region[2] - x1, region[3] - y1)
    return Seen(seen.image.crop(window), region)


def _between(low: int, high: int, draw: float) -> int:
    return low + int(draw * (high + 1 - low))
