"""Places: the backgrounds of the four domains, a table of surfaces and decorations and how they are painted."""

# ruff: noqa: E501 - a table with one row a line reads better than a wrapped one
from __future__ import annotations

import random
from dataclasses import dataclass
from functools import lru_cache

from PIL import Image, ImageDraw

from pipelines.world.decor import DECOR, Canvas, Colour


@dataclass(frozen=True)
class Place:
    """One background: an upper part (sky or wall) over a lower part (ground or table)."""

    horizon: float
    """Height of the border between the parts, 0 = top, 1 = bottom."""
    upper: tuple[Colour, Colour]
    """Colours of the upper part at its top and at the horizon."""
    lower: tuple[Colour, Colour]
    """Colours of the lower part at the horizon and at the bottom."""
    decor: tuple[str, ...]
    """Keys of `DECOR`, painted in this order."""
    ink: Colour = (120, 120, 120)
    """Colour of the decoration of the upper part."""


SKY = ((120, 170, 220), (205, 226, 240))

OUTDOORS: dict[str, Place] = {
    "beach": Place(0.5, SKY, ((232, 212, 160), (214, 186, 128)), ("sea", "waves"), (40, 120, 170)),
    "desert": Place(0.5, ((200, 190, 170), (244, 222, 180)), ((214, 150, 90), (180, 110, 60)), ("dunes",), (196, 128, 74)),
    "forest": Place(0.5, ((170, 196, 170), (196, 214, 190)), ((88, 110, 60), (60, 80, 40)), ("trees",), (34, 84, 50)),
    "mountains": Place(0.5, ((96, 140, 200), (190, 214, 236)), ((130, 150, 110), (98, 118, 82)), ("peaks",), (110, 112, 132)),
    "city": Place(0.54, ((150, 168, 190), (210, 214, 220)), ((104, 104, 110), (80, 80, 88)), ("skyline", "lane"), (92, 96, 112)),
    "meadow": Place(0.48, SKY, ((124, 186, 80), (84, 150, 54)), ("hills", "flowers"), (104, 168, 84)),
}  # fmt: skip
"""Places under the sky, of cars and landmarks."""

INDOORS: dict[str, dict[str, Place]] = {
    "fashion": {
        "boutique": Place(0.56, ((238, 226, 214), (226, 210, 196)), ((150, 104, 70), (116, 78, 50)), ("rail",), (90, 80, 76)),
        "brick wall": Place(0.56, ((164, 88, 70), (150, 76, 60)), ((120, 118, 116), (96, 94, 92)), ("bricks",), (196, 150, 132)),
        "wooden floor": Place(0.0, SKY, ((186, 136, 86), (160, 110, 66)), ("planks",), (120, 80, 46)),
        "lawn": Place(0.0, SKY, ((112, 172, 76), (78, 138, 50)), ("blades", "flowers"), (60, 112, 40)),
        "street": Place(0.54, ((176, 180, 186), (200, 200, 204)), ((116, 116, 122), (84, 84, 90)), ("windows", "kerb"), (104, 116, 132)),
        "stage": Place(0.55, ((60, 20, 44), (96, 30, 60)), ((58, 44, 50), (34, 26, 32)), ("curtain", "beams"), (140, 36, 70)),
    },
    "product": {
        "kitchen counter": Place(0.5, ((236, 232, 214), (224, 216, 190)), ((110, 112, 118), (84, 86, 92)), ("tiles",), (206, 186, 130)),
        "wooden table": Place(0.42, ((120, 110, 104), (150, 138, 128)), ((184, 128, 76), (146, 94, 50)), ("boards",), (112, 70, 36)),
        "picnic blanket": Place(0.26, ((150, 196, 110), (112, 168, 74)), ((232, 226, 214), (222, 214, 200)), ("gingham",), (196, 60, 60)),
        "marble shelf": Place(0.5, ((196, 222, 222), (176, 208, 210)), ((240, 240, 242), (214, 214, 220)), ("veins",), (150, 150, 160)),
        "office desk": Place(0.48, ((176, 186, 206), (196, 204, 218)), ((70, 58, 54), (52, 42, 40)), ("screen",), (30, 34, 44)),
        "garden wall": Place(0.5, ((70, 118, 62), (94, 146, 76)), ((176, 160, 140), (146, 130, 112)), ("leaves", "stones"), (40, 86, 44)),
    },
}  # fmt: skip
"""Places of fashion and products."""

PLACES: dict[str, dict[str, Place]] = {
    "fashion": INDOORS["fashion"],
    "car": OUTDOORS,
    "product": INDOORS["product"],
    "landmark": OUTDOORS,
}
"""Domain → name of the place → place."""
STUDIO = Place(0.0, SKY, ((232, 232, 232), (214, 214, 216)), ())
"""The plain ground of catalogue-like views."""


def paint_place(place: Place, size_px: int, rng: random.Random) -> Image.Image:
    """The background as an RGB image of size_px × size_px; `rng` moves the horizon and the decoration a little."""
    horizon = round((place.horizon + (rng.uniform(-0.04, 0.04) if place.horizon else 0.0)) * size_px)
    image = Image.new("RGB", (size_px, size_px))
    if horizon:
        image.paste(_gradient(place.upper, size_px, horizon), (0, 0))
    image.paste(_gradient(place.lower, size_px, size_px - horizon), (0, horizon))
    canvas = Canvas(ImageDraw.Draw(image), size_px, horizon, place.ink, rng)
    for name in place.decor:
        DECOR[name](canvas)
    return image


@lru_cache(maxsize=1024)
def _gradient(colours: tuple[Colour, Colour], width: int, height: int) -> Image.Image:
    ramp = Image.linear_gradient("L").resize((1, height))
    bands = [
        ramp.point([round(a + (b - a) * i / 255) for i in range(256)]) for a, b in zip(*colours, strict=True)
    ]
    return Image.merge("RGB", bands).resize((width, height))
