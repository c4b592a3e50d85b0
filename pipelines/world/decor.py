"""Decorations of places: small painters that all draw on one canvas."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import ImageDraw

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class Canvas:
    """What a painter needs."""

    pen: ImageDraw.ImageDraw
    side: int
    """Width and height in px."""
    horizon: int
    """Height of the border between the upper and the lower part, in px from the top."""
    ink: Colour
    """The place's colour for this decoration."""
    rng: random.Random
    """Moves the decoration a little from scene to scene."""


def _tone(colour: Colour, factor: float) -> Colour:
    red, green, blue = (min(255, max(0, round(c * factor))) for c in colour)
    return red, green, blue


def _sea(c: Canvas) -> None:
    c.pen.rectangle([0, c.horizon - c.side * 0.14, c.side, c.horizon], fill=c.ink)


def _waves(c: Canvas) -> None:
    for i in range(3):
        y = c.horizon - c.side * (0.11 - 0.04 * i)
        for x in range(-c.side // 8, c.side, c.side // 5):
            x += c.rng.randrange(c.side // 8)
            c.pen.line([x, y, x + c.side * 0.1, y], fill=(236, 244, 248), width=max(1, c.side // 90))


def _mounds(c: Canvas, high: float) -> None:
    for i in range(3):
        x, wide = c.side * (i - 0.1 + c.rng.uniform(-0.1, 0.1)) / 2.2, c.side * c.rng.uniform(0.3, 0.42)
        tall = c.side * high * c.rng.uniform(0.7, 1.2)
        c.pen.ellipse(
            [x - wide, c.horizon - tall, x + wide, c.horizon + tall], fill=_tone(c.ink, 0.9 + 0.1 * i)
        )


def _dunes(c: Canvas) -> None:
    _mounds(c, 0.09)


def _hills(c: Canvas) -> None:
    _mounds(c, 0.12)


def _trees(c: Canvas) -> None:
    for i in range(9):
        x, tall = c.side * (i + c.rng.uniform(-0.2, 0.2)) / 8, c.side * c.rng.uniform(0.34, 0.52)
        shade = _tone(c.ink, c.rng.uniform(0.75, 1.3))
        c.pen.polygon(
            [
                (x, c.horizon - tall),
                (x + c.side * 0.09, c.horizon + c.side * 0.02),
                (x - c.side * 0.09, c.horizon + c.side * 0.02),
            ],
            fill=shade,
        )


def _peaks(c: Canvas) -> None:
    for i in range(4):
        x, tall, wide = (
            c.side * (i + c.rng.uniform(-0.2, 0.2)) / 3,
            c.side * c.rng.uniform(0.26, 0.42),
            c.side * 0.27,
        )
        c.pen.polygon(
            [(x, c.horizon - tall), (x + wide, c.horizon), (x - wide, c.horizon)],
            fill=_tone(c.ink, 0.9 + 0.07 * i),
        )
        cap = 0.36
        c.pen.polygon(
            [
                (x, c.horizon - tall),
                (x + wide * cap, c.horizon - tall * (1 - cap)),
                (x - wide * cap, c.horizon - tall * (1 - cap)),
            ],
            fill=(244, 247, 250),
        )


def _skyline(c: Canvas) -> None:
    x = -c.side * 0.03
    while x < c.side:
        wide, tall = c.side * c.rng.uniform(0.1, 0.17), c.side * c.rng.uniform(0.22, 0.52)
        c.pen.rectangle(
            [x, c.horizon - tall, x + wide, c.horizon], fill=_tone(c.ink, c.rng.uniform(0.8, 1.25))
        )
        for row in range(1, int(tall / (c.side * 0.07))):
            for column in (0.25, 0.6):
                px, py, side = x + wide * column, c.horizon - tall + row * c.side * 0.07, c.side * 0.022
                c.pen.rectangle([px, py, px + side, py + side], fill=(236, 222, 160))
        x += wide + c.side * 0.01


def _lane(c: Canvas) -> None:
    y, start = (c.horizon + c.side) / 2, c.rng.uniform(-0.1, 0.1)
    for i in range(5):
        x = c.side * (start + i * 0.24)
        c.pen.rectangle([x, y, x + c.side * 0.13, y + c.side * 0.022], fill=(236, 232, 214))


def _flowers(c: Canvas) -> None:
    for _ in range(26):
        x, y, r = c.rng.uniform(0, c.side), c.rng.uniform(c.horizon + c.side * 0.02, c.side), c.side * 0.009
        c.pen.ellipse([x - r, y - r, x + r, y + r], fill=c.rng.choice(((250, 246, 230), (246, 224, 110))))


def _masts(c: Canvas) -> None:
    for i in range(5):
        x, tall = c.side * (i + c.rng.uniform(0.2, 0.8)) / 5, c.side * c.rng.uniform(0.2, 0.34)
        c.pen.line([x, c.horizon, x, c.horizon - tall], fill=_tone(c.ink, 0.7), width=max(1, c.side // 80))
        c.pen.polygon(
            [
                (x, c.horizon - tall),
                (x + c.side * 0.09, c.horizon - c.side * 0.05),
                (x, c.horizon - c.side * 0.05),
            ],
            fill=(246, 244, 238),
        )
        c.pen.polygon(
            [
                (x - c.side * 0.06, c.horizon - c.side * 0.03),
                (x + c.side * 0.08, c.horizon - c.side * 0.03),
                (x, c.horizon + c.side * 0.02),
            ],
            fill=c.ink,
        )


def _ripples(c: Canvas) -> None:
    for _ in range(14):
        x, y = c.rng.uniform(-0.1, 1) * c.side, c.rng.uniform(c.horizon + c.side * 0.02, c.side)
        c.pen.line([x, y, x + c.side * 0.09, y], fill=(126, 164, 190), width=max(1, c.side // 110))


def _quay(c: Canvas) -> None:
    c.pen.rectangle([0, c.side * 0.84, c.side, c.side], fill=(150, 142, 132))
    c.pen.rectangle([0, c.side * 0.84, c.side, c.side * 0.86], fill=(182, 174, 162))


def _rows(c: Canvas) -> None:
    for i in range(-4, 13):
        top, foot = c.side * (0.5 + (i - 4) * 0.07), c.side * (0.5 + (i - 4) * 0.24)
        c.pen.line([top, c.horizon, foot, c.side], fill=(74, 104, 50), width=max(1, c.side // 40))


def _rail(c: Canvas) -> None:
    c.pen.line([0, c.side * 0.1, c.side, c.side * 0.1], fill=c.ink, width=max(1, c.side // 50))
    for i in range(9):
        x = c.side * (i + c.rng.uniform(0.1, 0.9)) / 9
        c.pen.rectangle(
            [x, c.side * 0.12, x + c.side * 0.06, c.side * 0.5],
            fill=_tone((206, 190, 176), c.rng.uniform(0.75, 1.05)),
        )


def _bricks(c: Canvas) -> None:
    step, shift = c.side / 11, c.rng.random()
    for row in range(int(c.horizon / step) + 1):
        y = row * step
        c.pen.line([0, y, c.side, y], fill=c.ink, width=max(1, c.side // 120))
        for column in range(7):
            x = (column + shift + 0.5 * (row % 2)) * 2 * step - step
            if y + step < c.horizon + 1:
                c.pen.line([x, y, x, y + step], fill=c.ink, width=max(1, c.side // 120))


def _planks(c: Canvas) -> None:
    shift = c.rng.random()
    for i in range(9):
        x = (i + shift - 0.5) * c.side / 8
        c.pen.line([x, c.horizon, x, c.side], fill=c.ink, width=max(1, c.side // 100))
        y = c.rng.uniform(c.horizon, c.side)
        c.pen.line([x, y, x + c.side / 8, y], fill=c.ink, width=max(1, c.side // 120))


def _blades(c: Canvas) -> None:
    for _ in range(110):
        x, y = c.rng.uniform(0, c.side), c.rng.uniform(c.horizon, c.side)
        c.pen.line(
            [x, y, x + c.rng.uniform(-0.01, 0.01) * c.side, y - c.side * 0.03],
            fill=_tone(c.ink, c.rng.uniform(0.9, 1.6)),
        )


def _windows(c: Canvas) -> None:
    shift = c.rng.uniform(-0.08, 0.08)
    for row in range(2):
        for column in range(4):
            x, y = c.side * (0.05 + shift + column * 0.26), c.side * (0.06 + row * 0.28)
            c.pen.rectangle([x, y, x + c.side * 0.14, y + c.side * 0.18], fill=c.ink, outline=(228, 228, 228))


def _kerb(c: Canvas) -> None:
    c.pen.rectangle([0, c.horizon, c.side, c.horizon + c.side * 0.05], fill=(190, 188, 184))


def _tiles(c: Canvas) -> None:
    step, shift = c.side / 8, c.rng.random()
    for i in range(10):
        x = (i + shift - 1) * step
        c.pen.line([x, 0, x, c.horizon], fill=c.ink, width=max(1, c.side // 100))
    for i in range(int(c.horizon / step) + 1):
        c.pen.line(
            [0, c.horizon - i * step, c.side, c.horizon - i * step], fill=c.ink, width=max(1, c.side // 100)
        )


def _curtain(c: Canvas) -> None:
    shift = c.rng.random()
    for i in range(-1, 9):
        x = (i + shift) * c.side / 8
        c.pen.rectangle([x, 0, x + c.side / 20, c.horizon], fill=c.ink)


def _beams(c: Canvas) -> None:
    for side in (0.2, 0.5, 0.8):
        x = c.side * (side + c.rng.uniform(-0.08, 0.08))
        c.pen.ellipse(
            [x - c.side * 0.17, c.side * 0.8, x + c.side * 0.17, c.side * 0.92], fill=(196, 176, 120)
        )


def _boxes(c: Canvas) -> None:
    for row in range(3):
        y = c.horizon - c.side * 0.26 * (row + 1)
        x = -c.side * c.rng.uniform(0, 0.1)
        while x < c.side:
            wide, tall = c.side * c.rng.uniform(0.06, 0.11), c.side * c.rng.uniform(0.13, 0.2)
            c.pen.rectangle(
                [x, y + c.side * 0.22 - tall, x + wide, y + c.side * 0.22],
                fill=_tone(c.ink, c.rng.uniform(0.8, 1.4)),
            )
            x += wide + c.side * 0.015
        c.pen.rectangle([0, y + c.side * 0.22, c.side, y + c.side * 0.26], fill=(240, 242, 244))


def _boards(c: Canvas) -> None:
    y, step = float(c.horizon), c.side * 0.05
    c.pen.rectangle([0, c.horizon, c.side, c.horizon + c.side * 0.02], fill=c.ink)
    while y < c.side:
        c.pen.line([0, y, c.side, y], fill=c.ink, width=max(1, c.side // 110))
        y, step = y + step, step * 1.35


def _gingham(c: Canvas) -> None:
    step, shift = c.side / 9, c.rng.random()
    light = _tone((236, 150, 146), 1.0)
    for i in range(-1, 10, 2):
        c.pen.rectangle([(i + shift) * step, c.horizon, (i + shift + 1) * step, c.side], fill=light)
    y = float(c.horizon)
    while y < c.side:
        c.pen.rectangle([0, y, c.side, y + step], fill=light)
        for i in range(-1, 10, 2):
            c.pen.rectangle([(i + shift) * step, y, (i + shift + 1) * step, y + step], fill=c.ink)
        y += 2 * step


def _veins(c: Canvas) -> None:
    for _ in range(7):
        x, y = c.rng.uniform(-0.1, 1) * c.side, c.rng.uniform(c.horizon, c.side)
        points = [(x + i * c.side * 0.07, y + c.rng.uniform(-0.03, 0.03) * c.side) for i in range(5)]
        c.pen.line(points, fill=c.ink, width=max(1, c.side // 130))


def _screen(c: Canvas) -> None:
    x = c.side * c.rng.uniform(0.22, 0.34)
    c.pen.rectangle([x, c.side * 0.08, x + c.side * 0.46, c.horizon - c.side * 0.1], fill=c.ink)
    c.pen.rectangle(
        [x + c.side * 0.02, c.side * 0.1, x + c.side * 0.44, c.horizon - c.side * 0.12], fill=(84, 128, 176)
    )
    c.pen.rectangle([x + c.side * 0.2, c.horizon - c.side * 0.1, x + c.side * 0.26, c.horizon], fill=c.ink)


def _leaves(c: Canvas) -> None:
    for _ in range(50):
        x, y, r = c.rng.uniform(0, c.side), c.rng.uniform(0, c.horizon), c.side * c.rng.uniform(0.02, 0.04)
        c.pen.ellipse([x - r, y - r * 0.6, x + r, y + r * 0.6], fill=_tone(c.ink, c.rng.uniform(0.8, 1.7)))


def _stones(c: Canvas) -> None:
    step, shift = c.side / 7, c.rng.random()
    for row in range(5):
        y = c.horizon + row * step * 0.7
        c.pen.line([0, y, c.side, y], fill=(116, 102, 88), width=max(1, c.side // 90))
        for column in range(8):
            x = (column + shift + 0.5 * (row % 2) - 1) * step
            c.pen.line([x, y, x, y + step * 0.7], fill=(116, 102, 88), width=max(1, c.side // 90))


def _frame(c: Canvas) -> None:
    x = c.side * c.rng.uniform(0.44, 0.56)
    for left, right in (
        (0.0, c.side * 0.05),
        (x - c.side * 0.03, x + c.side * 0.03),
        (c.side * 0.95, float(c.side)),
    ):
        c.pen.rectangle([left, 0, right, c.horizon], fill=c.ink)
    c.pen.rectangle([0, 0, c.side, c.side * 0.05], fill=c.ink)
    c.pen.ellipse(
        [c.side * 0.1, c.horizon - c.side * 0.12, c.side * 0.42, c.horizon + c.side * 0.1],
        fill=(120, 168, 96),
    )
    c.pen.rectangle([0, c.horizon, c.side, c.side], fill=(240, 238, 228))


DECOR: dict[str, Callable[[Canvas], None]] = {
    "sea": _sea, "waves": _waves, "dunes": _dunes, "hills": _hills, "trees": _trees, "peaks": _peaks,
    "skyline": _skyline, "lane": _lane, "flowers": _flowers, "masts": _masts, "ripples": _ripples, "quay": _quay,
    "rows": _rows, "rail": _rail, "bricks": _bricks, "planks": _planks, "blades": _blades, "windows": _windows,
    "kerb": _kerb, "tiles": _tiles, "curtain": _curtain, "beams": _beams, "boxes": _boxes, "boards": _boards,
    "gingham": _gingham, "veins": _veins, "screen": _screen, "leaves": _leaves, "stones": _stones, "frame": _frame,
}  # fmt: skip
"""Name of a decoration → its painter."""
