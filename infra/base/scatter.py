"""Two more charts of the page kit: points in a plane, and lines across parallel axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from infra.base.charts import BOTTOM, HEIGHT, LEFT, RIGHT, SERIES_COLOURS, TOP, WIDTH, label, ticks
from infra.base.html import render

WIDE = 1120.0


@dataclass(frozen=True)
class Point:
    """A named point; its group decides the colour, the first group has the first."""

    name: str
    x: float
    y: float
    group: int = 0


@dataclass(frozen=True)
class Axis:
    """One of several parallel axes: where each line crosses it, from 0 (bottom) to 1 (top), and its marks."""

    name: str
    marks: Sequence[tuple[float, str]]


def scatter(
    title: str, points: Sequence[Point], groups: Sequence[str], *, x: str, y: str, path: Sequence[int] = ()
) -> Markup:
    """Points in a plane.

    Args:
        title: what is shown.
        points: finite ones.
        groups: names of the groups, for the legend.
        x: of the horizontal axis, with its unit.
        y: of the vertical one.
        path: indices of points that a line joins, in the order of the line.

    Returns:
        SVG markup, empty without points.
    """
    if not points:
        return Markup()
    xs, ys = ticks(*_range([p.x for p in points])), ticks(*_range([p.y for p in points]))

    def at(value: float, marks: Sequence[float], start: float, end: float) -> float:
        return round(start + (value - marks[0]) / (marks[-1] - marks[0]) * (end - start), 2)

    def place(point: Point) -> tuple[float, float]:
        return at(point.x, xs, LEFT, WIDTH - RIGHT), at(point.y, ys, HEIGHT - BOTTOM, TOP)

    # the groups of higher number first, so that those of the first lie above them
    dots = [
        {
            "x": place(p)[0],
            "y": place(p)[1],
            "colour": p.group % SERIES_COLOURS,
            "says": f"{p.name}: {label(p.x)}, {label(p.y)}",
        }
        for p in sorted(points, key=lambda p: -p.group)
    ]
    line = "M" + "L".join(f"{a} {b}" for a, b in (place(points[i]) for i in path)) if len(path) > 1 else ""
    frame = {
        "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM, "width": WIDTH, "height": HEIGHT,
    }  # fmt: skip
    return render(
        "scatter.svg.jinja",
        title=title,
        frame=frame,
        x=x,
        y=y,
        x_marks=[(at(v, xs, LEFT, WIDTH - RIGHT), label(v)) for v in xs],
        y_marks=[(at(v, ys, HEIGHT - BOTTOM, TOP), label(v)) for v in ys],
        dots=dots,
        line=line,
        names=[(name, i % SERIES_COLOURS) for i, name in enumerate(groups)],
    )


def parallel(title: str, axes: Sequence[Axis], lines: Sequence[tuple[str, Sequence[float], float]]) -> Markup:
    """Lines across parallel axes, the better the stronger.

    Args:
        title: what is shown.
        axes: from left to right, at least two.
        lines: name, where it crosses each axis (0 to 1), and how good it is (0 to 1).

    Returns:
        SVG markup, empty with fewer than two axes or no line.
    """
    if len(axes) < 2 or not lines:
        return Markup()
    top, bottom, left, right = 44.0, HEIGHT + 10, 70.0, WIDE - 90.0
    pitch = (right - left) / (len(axes) - 1)

    def y(share: float) -> float:
        return round(bottom - share * (bottom - top), 2)

    columns = [
        {
            "x": round(left + i * pitch, 2),
            "name": axis.name,
            "up": i % 2,
            "marks": [(y(share), text) for share, text in axis.marks],
        }
        for i, axis in enumerate(axes)
    ]
    drawn = [
        {
            "path": "M" + "L".join(f"{round(left + i * pitch, 2)} {y(s)}" for i, s in enumerate(shares)),
            "says": name,
            "opacity": round(0.12 + 0.88 * good**2, 3),
            "colour": 0 if good > 0.5 else 1,
        }
        for name, shares, good in sorted(lines, key=lambda line: line[2])
    ]
    return render(
        "parallel.svg.jinja",
        title=title,
        width=WIDE,
        height=bottom + 14,
        top=top,
        bottom=bottom,
        axes=columns,
        lines=drawn,
    )


def _range(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    return (low, high) if high > low else (low - 0.5, high + 0.5)
