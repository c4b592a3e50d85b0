"""Looks: what makes an instance itself (shape, palette, pattern, proportions), drawn as one object."""

from __future__ import annotations

import colorsys
import random
from dataclasses import dataclass, replace
from functools import lru_cache

from PIL import Image, ImageChops, ImageDraw

from pipelines.world.shapes import SHAPES, Part, Shape

Colour = tuple[int, int, int]
PATTERNS = ("plain", "halves", "bands", "stripes", "diagonal", "checks", "dots", "split")
NEUTRALS: tuple[Colour, ...] = ((244, 240, 232), (34, 34, 40), (150, 150, 156))
FIXED: dict[str, Colour] = {
    "dark": (40, 40, 46),
    "glass": (176, 210, 226),
    "light": (240, 238, 230),
    "metal": (168, 172, 180),
}


@dataclass(frozen=True)
class Look:
    """The look of one instance: two instances of a domain differ in palette, pattern, shape or proportions."""

    shape: str
    """A key of `SHAPES[domain]`; also the finer class of the instance."""
    palette: tuple[Colour, Colour, Colour]
    """Main, second and accent colour."""
    pattern: str
    """One of `PATTERNS`, drawn with the main and the second colour."""
    frequency: int
    """Repetitions of the pattern across the object."""
    stretch: float
    """Factor on the shape's width / height."""


def look_of(seed: int, domain: str, index: int, palette_family: int = 1) -> Look:
    """The look of instance `index` of a domain: a pure function of its arguments.

    Instances of a palette family have the palette of its first one, and each another shape, as far as there are any.
    """
    place = index % palette_family
    if place:
        first, own = (_own_look(seed, domain, i) for i in (index - place, index))
        shapes = sorted(SHAPES[domain])
        shape = shapes[(shapes.index(first.shape) + place) % len(shapes)]
        return replace(own, palette=first.palette, shape=shape)
    return _own_look(seed, domain, index)


def _own_look(seed: int, domain: str, index: int) -> Look:
    rng = random.Random(f"{seed}/{domain}/{index}/look")
    main = rng.choice(NEUTRALS) if rng.random() < 0.12 else _colour(rng, rng.random())
    hue = colorsys.rgb_to_hsv(*(c / 255 for c in main))[0]
    second = rng.choice(NEUTRALS) if rng.random() < 0.3 else _colour(rng, hue + rng.uniform(0.2, 0.8))
    accent = rng.choice(NEUTRALS) if rng.random() < 0.2 else _colour(rng, hue + rng.uniform(0.15, 0.85))
    return Look(
        shape=rng.choice(sorted(SHAPES[domain])),
        palette=(main, second, accent),
        pattern=rng.choice(PATTERNS),
        frequency=rng.choice((1, 2, 3)),
        stretch=rng.uniform(0.9, 1.12),
    )


def aspect_of(domain: str, look: Look) -> float:
    """Width / height of the drawn object."""
    return SHAPES[domain][look.shape].aspect * look.stretch


@lru_cache(maxsize=512)
def draw_object(domain: str, look: Look, height_px: int) -> Image.Image:
    """The object upright, facing right, on a transparent ground.

    Args:
        domain: the domain of the shape.
        look: what to draw.
        height_px: height of the drawing; its width follows from the look.

    Returns:
        RGBA image of about `aspect · height_px` × `height_px` pixels. Do not change it: it is cached.
    """
    shape: Shape = SHAPES[domain][look.shape]
    width, height = max(4, round(aspect_of(domain, look) * height_px)), max(4, height_px)
    mask = Image.new("L", (width, height), 0)
    pen = ImageDraw.Draw(mask)
    for part in shape.body:
        _draw_part(pen, part, width, height, 255)
    colours = {"main": look.palette[0], "second": look.palette[1], "accent": look.palette[2], **FIXED}
    skin = _pattern(look, width, height)
    pen = ImageDraw.Draw(skin)
    outside = ImageDraw.Draw(mask)
    for part in shape.parts:
        _draw_part(pen, part, width, height, colours[part.colour])
        if part.grows:
            _draw_part(outside, part, width, height, 255)
    line = max(1, round(min(width, height) / 45))
    edge = tuple(round(c * 0.35) for c in look.palette[0])
    for part in shape.body:
        if part.kind == "polygon":
            points = [(x * (width - 1), y * (height - 1)) for x, y in part.points]
            pen.line([*points, points[0]], fill=edge, width=line, joint="curve")
    skin = ImageChops.multiply(skin, _shade(width, height))
    skin.putalpha(mask)
    return skin


def _colour(rng: random.Random, hue: float) -> Colour:
    """From dark to pastel: all of the colour solid but its grey core."""
    value, depth = rng.uniform(0.4, 1.0), rng.uniform(0.6, 1.0)
    red, green, blue = colorsys.hsv_to_rgb(hue % 1.0, depth, value)
    return round(red * 255), round(green * 255), round(blue * 255)


def _draw_part(pen: ImageDraw.ImageDraw, part: Part, width: int, height: int, fill: Colour | int) -> None:
    points = [(x * (width - 1), y * (height - 1)) for x, y in part.points]
    if part.kind == "polygon":
        pen.polygon(points, fill=fill)
    elif part.kind == "ellipse":
        pen.ellipse([points[0], points[1]], fill=fill)
    else:
        pen.rectangle([points[0], points[1]], fill=fill)


def _pattern(look: Look, width: int, height: int) -> Image.Image:
    first, second, _ = look.palette
    tile = Image.new("RGB", (width, height), first)
    pen = ImageDraw.Draw(tile)
    n, kind = look.frequency, look.pattern
    if kind == "halves":
        pen.rectangle([0, height * 0.6, width, height], fill=second)
    elif kind == "split":
        pen.rectangle([width * 0.56, 0, width, height], fill=second)
    elif kind == "bands":
        for i in range(n):
            pen.rectangle([0, (i + 0.5) * height / n, width, (i + 0.9) * height / n], fill=second)
    elif kind == "stripes":
        for i in range(n):
            pen.rectangle([(i + 0.32) * width / n, 0, (i + 0.68) * width / n, height], fill=second)
    elif kind == "diagonal":
        step = (width + height) / (n + 1)
        for i in range(n + 1):
            x = (i + 0.4) * step
            pen.polygon(
                [(x, 0), (x + step * 0.4, 0), (x + step * 0.4 - height, height), (x - height, height)],
                fill=second,
            )
    elif kind == "checks":
        step = width / (n + 1)
        for row in range(int(height / step) + 1):
            for column in range(row % 2, n + 1, 2):
                x, y = column * step, row * step
                pen.rectangle([x, y, x + step, y + step], fill=second)
    elif kind == "dots":
        step = width / (n + 0.5)
        radius = step * 0.31
        for row in range(int(height / step) + 1):
            for column in range(n + 1):
                x, y = (column + 0.25 + 0.5 * (row % 2)) * step, (row + 0.5) * step
                pen.ellipse([x - radius, y - radius, x + radius, y + radius], fill=second)
    return tile


@lru_cache(maxsize=256)
def _shade(width: int, height: int) -> Image.Image:
    ramp = Image.linear_gradient("L").rotate(90).resize((width, height))
    shade = ramp.point([200 + round(55 * (1 - abs(i / 255 - 0.62) / 0.62) ** 0.7) for i in range(256)])
    return Image.merge("RGB", (shade, shade, shade))
