"""Silhouettes and parts of the four domains, as tables in unit coordinates (x to the right, y down)."""

# ruff: noqa: E501 - a table with one row a line reads better than a wrapped one
from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Points = tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Part:
    """One area of an object."""

    kind: Literal["polygon", "ellipse", "rectangle"]
    points: Points
    """Corners of a polygon; top-left and bottom-right corner of an ellipse or rectangle."""
    colour: str = "main"
    """main, second or accent of the look's palette, or one of `looks.FIXED`."""
    grows: bool = False
    """The part reaches beyond the body and belongs to the silhouette."""


@dataclass(frozen=True)
class Shape:
    """A finer class of a domain: a body that carries the pattern and parts drawn on it."""

    aspect: float
    """Width / height."""
    body: tuple[Part, ...]
    parts: tuple[Part, ...]


def _poly(*points: tuple[float, float], colour: str = "main", grows: bool = False) -> Part:
    return Part("polygon", points, colour, grows)


def _oval(x1: float, y1: float, x2: float, y2: float, colour: str = "main", grows: bool = False) -> Part:
    return Part("ellipse", ((x1, y1), (x2, y2)), colour, grows)


def _rect(x1: float, y1: float, x2: float, y2: float, colour: str = "main", grows: bool = False) -> Part:
    return Part("rectangle", ((x1, y1), (x2, y2)), colour, grows)


def _wheels(*centres: float, radius: float = 0.09, y: float = 0.82, aspect: float = 1.45) -> tuple[Part, ...]:
    out: list[Part] = []
    for x in centres:
        tall = radius * aspect
        out.append(_oval(x - radius, y - tall + 0.03, x + radius, y + tall + 0.03, "dark", grows=True))
        out.append(_oval(x - radius / 2, y - tall / 2 + 0.03, x + radius / 2, y + tall / 2 + 0.03, "accent"))
    return tuple(out)


def _windows(columns: tuple[float, ...], rows: tuple[float, ...], size: float = 0.1) -> tuple[Part, ...]:
    return tuple(_rect(x, y, x + size, y + size * 0.6, "accent") for y in rows for x in columns)


FASHION = {
    "shirt": Shape(
        0.95,
        (
            _poly(
                (0.36, 0.0), (0.64, 0.0), (0.84, 0.05), (1.0, 0.42), (0.88, 0.5), (0.84, 0.4),
                (0.84, 1.0), (0.16, 1.0), (0.16, 0.4), (0.12, 0.5), (0.0, 0.42), (0.16, 0.05),
            ),
        ),
        (
            _poly((0.36, 0.0), (0.64, 0.0), (0.57, 0.13), (0.43, 0.13), colour="accent"),
            _poly((0.0, 0.42), (0.05, 0.3), (0.17, 0.38), (0.12, 0.5), colour="accent"),
            _poly((1.0, 0.42), (0.95, 0.3), (0.83, 0.38), (0.88, 0.5), colour="accent"),
        ),
    ),
    "dress": Shape(
        0.72,
        (
            _poly(
                (0.2, 0.0), (0.38, 0.09), (0.62, 0.09), (0.8, 0.0), (0.86, 0.22), (0.78, 0.42),
                (1.0, 1.0), (0.0, 1.0), (0.22, 0.42), (0.14, 0.22),
            ),
        ),
        (
            _rect(0.21, 0.38, 0.79, 0.46, "accent"),
            _poly((0.05, 0.91), (0.95, 0.91), (1.0, 1.0), (0.0, 1.0), colour="accent"),
        ),
    ),
    "trousers": Shape(
        0.7,
        (
            _poly(
                (0.1, 0.0), (0.9, 0.0), (1.0, 1.0), (0.56, 1.0), (0.5, 0.36), (0.44, 1.0), (0.0, 1.0),
            ),
        ),
        (
            _rect(0.09, 0.0, 0.91, 0.1, "accent"),
            _poly((0.01, 0.9), (0.45, 0.9), (0.44, 1.0), (0.0, 1.0), colour="accent"),
            _poly((0.55, 0.9), (0.99, 0.9), (1.0, 1.0), (0.56, 1.0), colour="accent"),
        ),
    ),
    "skirt": Shape(
        1.0,
        (_poly((0.2, 0.0), (0.8, 0.0), (1.0, 0.92), (0.75, 1.0), (0.5, 0.94), (0.25, 1.0), (0.0, 0.92)),),
        (_rect(0.19, 0.0, 0.81, 0.14, "accent"),),
    ),
    "hoodie": Shape(
        1.0,
        (
            _poly(
                (0.34, 0.12), (0.66, 0.12), (0.84, 0.16), (1.0, 0.86), (0.86, 0.9), (0.83, 0.6),
                (0.83, 1.0), (0.17, 1.0), (0.17, 0.6), (0.14, 0.9), (0.0, 0.86), (0.16, 0.16),
            ),
        ),
        (
            _oval(0.3, 0.0, 0.7, 0.3, "accent", grows=True),
            _oval(0.39, 0.08, 0.61, 0.27, "dark"),
            _poly((0.36, 0.66), (0.64, 0.66), (0.7, 0.86), (0.3, 0.86), colour="accent"),
        ),
    ),
    "coat": Shape(
        0.72,
        (
            _poly(
                (0.34, 0.0), (0.66, 0.0), (0.84, 0.05), (1.0, 0.6), (0.87, 0.64), (0.84, 0.46),
                (0.92, 1.0), (0.08, 1.0), (0.16, 0.46), (0.13, 0.64), (0.0, 0.6), (0.16, 0.05),
            ),
        ),
        (
            _poly((0.34, 0.0), (0.5, 0.36), (0.28, 0.22), colour="accent"),
            _poly((0.66, 0.0), (0.5, 0.36), (0.72, 0.22), colour="accent"),
            _rect(0.485, 0.36, 0.515, 1.0, "dark"),
            _rect(0.16, 0.46, 0.84, 0.53, "accent"),
        ),
    ),
}  # fmt: skip

CAR = {
    "sedan": Shape(
        1.5,
        (
            _poly(
                (0.0, 0.5), (0.2, 0.44), (0.33, 0.12), (0.66, 0.12), (0.8, 0.42), (0.98, 0.5), (1.0, 0.8), (0.0, 0.8),
            ),
        ),
        (
            _poly((0.27, 0.4), (0.36, 0.19), (0.48, 0.19), (0.48, 0.4), colour="glass"),
            _poly((0.52, 0.4), (0.52, 0.19), (0.63, 0.19), (0.73, 0.4), colour="glass"),
            _rect(0.0, 0.68, 1.0, 0.76, "accent"),
            *_wheels(0.22, 0.78),
        ),
    ),
    "hatchback": Shape(
        1.35,
        (_poly((0.02, 0.46), (0.1, 0.1), (0.6, 0.1), (0.78, 0.42), (0.98, 0.5), (1.0, 0.8), (0.0, 0.8)),),
        (
            _poly((0.13, 0.4), (0.18, 0.17), (0.36, 0.17), (0.36, 0.4), colour="glass"),
            _poly((0.41, 0.4), (0.41, 0.17), (0.57, 0.17), (0.69, 0.4), colour="glass"),
            _rect(0.0, 0.66, 1.0, 0.75, "accent"),
            *_wheels(0.22, 0.78),
        ),
    ),
    "van": Shape(
        1.3,
        (_poly((0.0, 0.04), (0.74, 0.04), (0.9, 0.38), (1.0, 0.46), (1.0, 0.82), (0.0, 0.82)),),
        (
            _poly((0.62, 0.38), (0.62, 0.12), (0.72, 0.12), (0.84, 0.38), colour="glass"),
            _rect(0.0, 0.5, 1.0, 0.6, "accent"),
            *_wheels(0.2, 0.8),
        ),
    ),
    "pickup": Shape(
        1.5,
        (
            _poly(
                (0.0, 0.44), (0.38, 0.44), (0.42, 0.1), (0.66, 0.1), (0.78, 0.42), (0.99, 0.48), (1.0, 0.78), (0.0, 0.78),
            ),
        ),
        (
            _poly((0.46, 0.4), (0.48, 0.18), (0.63, 0.18), (0.72, 0.4), colour="glass"),
            _rect(0.0, 0.44, 0.38, 0.54, "accent"),
            *_wheels(0.2, 0.8),
        ),
    ),
    "coupe": Shape(
        1.55,
        (_poly((0.0, 0.46), (0.08, 0.4), (0.36, 0.14), (0.6, 0.14), (0.78, 0.44), (1.0, 0.56), (1.0, 0.8), (0.0, 0.8)),),
        (
            _poly((0.26, 0.4), (0.4, 0.21), (0.58, 0.21), (0.69, 0.42), colour="glass"),
            _poly((0.0, 0.24), (0.14, 0.24), (0.14, 0.32), (0.0, 0.32), colour="accent", grows=True),
            _rect(0.02, 0.3, 0.06, 0.48, "accent", grows=True),
            *_wheels(0.2, 0.8),
        ),
    ),
    "bus": Shape(
        1.35,
        (_poly((0.0, 0.02), (0.96, 0.02), (1.0, 0.4), (1.0, 0.84), (0.0, 0.84)),),
        (
            *(_rect(x, 0.14, x + 0.14, 0.4, "glass") for x in (0.04, 0.22, 0.4, 0.58)),
            _rect(0.78, 0.14, 0.94, 0.66, "glass"),
            _rect(0.0, 0.0, 0.97, 0.08, "accent"),
            *_wheels(0.2, 0.78, radius=0.09),
        ),
    ),
}  # fmt: skip

PRODUCT = {
    "bottle": Shape(
        0.56,
        (_poly((0.36, 0.1), (0.64, 0.1), (0.64, 0.26), (1.0, 0.42), (1.0, 1.0), (0.0, 1.0), (0.0, 0.42), (0.36, 0.26)),),
        (_rect(0.3, 0.0, 0.7, 0.12, "accent", grows=True), _oval(0.18, 0.56, 0.82, 0.84, "accent")),
    ),
    "jar": Shape(
        0.85,
        (_poly((0.1, 0.16), (0.9, 0.16), (1.0, 0.28), (1.0, 0.9), (0.9, 1.0), (0.1, 1.0), (0.0, 0.9), (0.0, 0.28)),),
        (_rect(0.08, 0.0, 0.92, 0.17, "accent", grows=True), _rect(0.24, 0.5, 0.76, 0.78, "accent")),
    ),
    "carton": Shape(
        0.72,
        (_poly((0.0, 0.2), (0.18, 0.0), (0.82, 0.0), (1.0, 0.2), (1.0, 1.0), (0.0, 1.0)),),
        (_poly((0.0, 0.2), (0.18, 0.06), (0.82, 0.06), (1.0, 0.2), colour="accent"), _oval(0.25, 0.44, 0.75, 0.72, "accent")),
    ),
    "can": Shape(
        0.7,
        (_poly((0.1, 0.0), (0.9, 0.0), (1.0, 0.1), (1.0, 0.9), (0.9, 1.0), (0.1, 1.0), (0.0, 0.9), (0.0, 0.1)),),
        (_rect(0.06, 0.0, 0.94, 0.06, "metal"), _rect(0.0, 0.38, 1.0, 0.64, "accent")),
    ),
    "pouch": Shape(
        0.78,
        (_poly((0.08, 0.0), (0.92, 0.0), (0.88, 0.16), (1.0, 0.94), (0.86, 1.0), (0.14, 1.0), (0.0, 0.94), (0.12, 0.16)),),
        (_rect(0.08, 0.0, 0.92, 0.12, "accent"), _poly((0.5, 0.36), (0.74, 0.58), (0.5, 0.8), (0.26, 0.58), colour="accent")),
    ),
    "spray": Shape(
        0.66,
        (_poly((0.34, 0.24), (0.66, 0.24), (0.92, 0.48), (0.92, 1.0), (0.08, 1.0), (0.08, 0.48)),),
        (
            _poly((0.24, 0.0), (0.98, 0.0), (0.98, 0.12), (0.66, 0.14), (0.66, 0.26), (0.34, 0.26), colour="accent", grows=True),
            _rect(0.22, 0.6, 0.78, 0.84, "accent"),
        ),
    ),
}  # fmt: skip

LANDMARK = {
    "tower": Shape(
        0.62,
        (_poly((0.18, 0.22), (0.82, 0.22), (1.0, 1.0), (0.0, 1.0)),),
        (
            _poly((0.5, 0.0), (0.9, 0.24), (0.1, 0.24), colour="accent", grows=True),
            _rect(0.4, 0.8, 0.6, 1.0, "dark"),
            *_windows((0.42,), (0.36, 0.52, 0.66), 0.17),
        ),
    ),
    "dome": Shape(
        1.05,
        (_rect(0.05, 0.5, 0.95, 1.0), _poly((0.2, 0.52), (0.26, 0.3), (0.5, 0.16), (0.74, 0.3), (0.8, 0.52))),
        (
            _poly((0.18, 0.5), (0.22, 0.34), (0.36, 0.2), (0.5, 0.15), (0.64, 0.2), (0.78, 0.34), (0.82, 0.5), colour="accent"),
            _rect(0.48, 0.0, 0.52, 0.18, "accent", grows=True),
            *(_rect(x, 0.62, x + 0.1, 1.0, "dark") for x in (0.16, 0.45, 0.74)),
        ),
    ),
    "temple": Shape(
        1.2,
        (_rect(0.04, 0.3, 0.96, 1.0),),
        (
            _poly((0.5, 0.0), (1.0, 0.3), (0.0, 0.3), colour="accent", grows=True),
            *(_rect(x, 0.42, x + 0.09, 0.88, "light") for x in (0.1, 0.34, 0.57, 0.81)),
            _rect(0.0, 0.88, 1.0, 1.0, "accent", grows=True),
        ),
    ),
    "castle": Shape(
        1.1,
        (
            _poly(
                (0.0, 0.16), (0.3, 0.16), (0.3, 0.44), (0.7, 0.44), (0.7, 0.16), (1.0, 0.16), (1.0, 1.0), (0.0, 1.0),
            ),
        ),
        (
            _poly((0.15, 0.0), (0.32, 0.2), (-0.02, 0.2), colour="accent", grows=True),
            _poly((0.85, 0.0), (1.02, 0.2), (0.68, 0.2), colour="accent", grows=True),
            _poly((0.4, 1.0), (0.4, 0.72), (0.5, 0.62), (0.6, 0.72), (0.6, 1.0), colour="dark"),
            *_windows((0.11, 0.81), (0.4, 0.62), 0.08),
        ),
    ),
    "pagoda": Shape(
        0.8,
        (_rect(0.2, 0.1, 0.8, 1.0),),
        (
            _poly((0.5, 0.0), (0.86, 0.2), (0.14, 0.2), colour="accent", grows=True),
            _poly((0.3, 0.34), (0.7, 0.34), (0.94, 0.48), (0.06, 0.48), colour="accent", grows=True),
            _poly((0.26, 0.62), (0.74, 0.62), (1.0, 0.76), (0.0, 0.76), colour="accent", grows=True),
            _rect(0.42, 0.84, 0.58, 1.0, "dark"),
        ),
    ),
    "lighthouse": Shape(
        0.6,
        (_poly((0.26, 0.24), (0.74, 0.24), (0.96, 1.0), (0.04, 1.0)),),
        (
            _rect(0.3, 0.12, 0.7, 0.26, "glass", grows=True),
            _poly((0.5, 0.0), (0.8, 0.13), (0.2, 0.13), colour="accent", grows=True),
            _rect(0.14, 0.24, 0.86, 0.29, "accent", grows=True),
        ),
    ),
    "church": Shape(
        0.95,
        (_poly((0.0, 0.62), (0.34, 0.62), (0.34, 0.3), (0.66, 0.3), (0.66, 0.62), (1.0, 0.62), (1.0, 1.0), (0.0, 1.0)),),
        (
            _poly((0.5, 0.0), (0.7, 0.32), (0.3, 0.32), colour="accent", grows=True),
            _poly((0.08, 0.46), (0.34, 0.46), (0.34, 0.64), (0.0, 0.64), colour="accent", grows=True),
            _poly((0.92, 0.46), (0.66, 0.46), (0.66, 0.64), (1.0, 0.64), colour="accent", grows=True),
            _oval(0.43, 0.4, 0.57, 0.54, "glass"),
            _rect(0.43, 0.76, 0.57, 1.0, "dark"),
        ),
    ),
}  # fmt: skip

SHAPES: dict[str, dict[str, Shape]] = {
    "fashion": FASHION,
    "car": CAR,
    "product": PRODUCT,
    "landmark": LANDMARK,
}
"""Domain → finer class → shape."""
CATEGORIES = {"fashion": "garment", "car": "car", "product": "product", "landmark": "building"}
"""The coarse word of each domain, which names no instance."""
