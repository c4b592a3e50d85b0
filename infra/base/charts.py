"""Charts as inline SVG: titled, with axes, units and a legend, in the page's own colours (light and dark)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from infra.base.html import render

WIDTH, HEIGHT = 560.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 58.0, 16.0, 14.0, 46.0
SERIES_COLOURS = 6
"""Colours `--series-0` … of the page's style sheet; more series use them again with another dash."""


@dataclass(frozen=True)
class Series:
    """A named curve: points (x, y) in order, optionally a half-width of a band around each y."""

    name: str
    points: Sequence[tuple[float, float]]
    band: Sequence[float] | None = None


@dataclass(frozen=True)
class Interval:
    """A named value with its interval; None where it has none."""

    name: str
    value: float
    low: float | None
    high: float | None


def line_chart(title: str, series: Sequence[Series], *, x: str, y: str, y_from_zero: bool = False) -> Markup:
    """Curves over a common x axis; the n-th series has the n-th colour, also where others have no points.

    Points that are not finite are left out.

    Returns:
        SVG markup, safe to place in a page; empty when no series has two points.
    """
    kept = [_finite(s) for s in series]
    shown = [(i, s) for i, s in enumerate(kept) if len(s.points) > 1]
    if not shown:
        return Markup()
    xs = [p[0] for _, s in shown for p in s.points]
    lows = [p[1] - b for _, s in shown for p, b in zip(s.points, _band(s), strict=True)]
    highs = [p[1] + b for _, s in shown for p, b in zip(s.points, _band(s), strict=True)]
    y_ticks = ticks(min(0.0, *lows) if y_from_zero else min(lows), max(highs))
    frame = _Frame((min(xs), max(xs)), (y_ticks[0], y_ticks[-1]))
    curves = []
    for index, one in shown:
        upper = [(a, b + w) for (a, b), w in zip(one.points, _band(one), strict=True)]
        lower = [(a, b - w) for (a, b), w in zip(one.points, _band(one), strict=True)]
        curves.append(
            {
                "name": one.name,
                "colour": index % SERIES_COLOURS,
                "dash": index // SERIES_COLOURS,
                "line": frame.path(one.points),
                "band": frame.path([*upper, *reversed(lower)]) + "Z" if one.band is not None else "",
            }
        )
    return render(
        "line.svg.jinja",
        title=title,
        frame=frame,
        x=x,
        y=y,
        x_marks=[(frame.x(v), label(v)) for v in ticks(*frame.xs, inside=True)],
        y_marks=[(frame.y(v), label(v)) for v in y_ticks],
        curves=curves,
        names=[(c["name"], c["colour"]) for c in curves],
    )


def histogram(
    title: str, values: Sequence[float], *, x: str, y: str, bins: int = 30, colour: int = 0
) -> Markup:
    """Counts of finite values in equal bins, in the colour of the series with that number.

    The axis starts at zero, so that values which hardly differ look so.

    Returns:
        SVG markup, empty without values.
    """
    finite = sorted(v for v in values if math.isfinite(v))
    if not finite:
        return Markup()
    low, high = min(0.0, finite[0]), max(0.0, finite[-1])
    if low == high:
        high = 1.0
    counts = [0] * bins
    for value in finite:
        counts[min(bins - 1, int((value - low) / (high - low) * bins))] += 1
    y_ticks = ticks(0, max(counts))
    frame = _Frame((low, high), (0.0, y_ticks[-1]))
    step = (high - low) / bins
    bars = [
        {
            "x": frame.x(low + i * step) + 0.5,
            "width": frame.x(low + step) - frame.x(low) - 1.0,
            "y": frame.y(count),
            "height": frame.y(0) - frame.y(count),
            "says": f"{label(low + i * step)} to {label(low + (i + 1) * step)}: {count:,}",
        }
        for i, count in enumerate(counts)
    ]
    return render(
        "histogram.svg.jinja",
        title=title,
        frame=frame,
        x=x,
        y=y,
        x_marks=[(frame.x(v), label(v)) for v in ticks(low, high, inside=True)],
        y_marks=[(frame.y(v), label(v)) for v in y_ticks],
        bars=bars,
        colour=colour % SERIES_COLOURS,
    )


def stacked_histogram(
    title: str, edges: Sequence[float], counts: Sequence[tuple[str, Sequence[int]]], *, x: str, y: str
) -> Markup:
    """Counts that were made elsewhere, in bins of equal width, a name's bars on top of those before it.

    Args:
        title: what is shown.
        edges: of the bins, one more than there are.
        counts: (name, count in each bin), in the order of their colours; a name without any keeps its colour unused.
        x: what is counted, with its unit.
        y: what a count is of.

    Returns:
        SVG markup, empty where every count is 0.
    """
    bins = range(len(edges) - 1)
    totals = [sum(values[i] for _, values in counts) for i in bins]
    if not any(totals):
        return Markup()
    y_ticks = ticks(0, max(totals))
    frame = _Frame((edges[0], edges[-1]), (0.0, y_ticks[-1]))
    gap = min(1.0, (frame.x(edges[1]) - frame.x(edges[0])) / 4)
    bars = []
    for i in bins:
        below = 0
        for colour, (name, values) in enumerate(counts):
            if values[i]:
                bars.append(
                    {
                        "colour": colour % SERIES_COLOURS,
                        "x": frame.x(edges[i]) + gap / 2,
                        "width": frame.x(edges[i + 1]) - frame.x(edges[i]) - gap,
                        "y": frame.y(below + values[i]),
                        "height": frame.y(below) - frame.y(below + values[i]),
                        "says": f"{name}, {label(edges[i])} to {label(edges[i + 1])}: {values[i]:,}",
                    }
                )
                below += values[i]
    return render(
        "stacked.svg.jinja",
        title=title,
        frame=frame,
        x=x,
        y=y,
        x_marks=[(frame.x(v), label(v)) for v in ticks(edges[0], edges[-1], inside=True)],
        y_marks=[(frame.y(v), label(v)) for v in y_ticks],
        bars=bars,
        names=[(name, i % SERIES_COLOURS) for i, (name, values) in enumerate(counts) if any(values)],
    )


def interval_chart(title: str, rows: Sequence[tuple[str, Sequence[Interval]]], *, x: str) -> Markup:
    """Values with their intervals, grouped by row; the n-th value of every row has the n-th colour.

    Returns:
        SVG markup, empty without rows.
    """
    if not rows:
        return Markup()
    top = max(v.value if v.high is None else v.high for _, values in rows for v in values)
    x_ticks = ticks(0.0, max(top, 1e-9))
    pitch = 22.0
    height = TOP + BOTTOM + sum(pitch * len(values) + 14 for _, values in rows)
    frame = _Frame((0.0, x_ticks[-1]), (0.0, 1.0), height=height, left=92.0)
    marks, heads, y = [], [], TOP + 4
    for name, values in rows:
        heads.append((y + pitch * len(values) / 2, name))
        for index, value in enumerate(values):
            low, high = (value.value if end is None else end for end in (value.low, value.high))
            between = "no interval" if value.low is None else f"{low:.1f} to {high:.1f}"
            marks.append(
                {
                    "colour": index % SERIES_COLOURS,
                    "y": y + pitch / 2,
                    "value": frame.x(value.value),
                    "low": frame.x(low),
                    "high": frame.x(high),
                    "says": f"{name}, {value.name}: {value.value:.1f} ({between})",
                    "label": f"{value.value:.1f}",
                }
            )
            y += pitch
        y += 14
    return render(
        "interval.svg.jinja",
        title=title,
        frame=frame,
        x=x,
        heads=heads,
        marks=marks,
        x_marks=[(frame.x(v), label(v)) for v in x_ticks],
        names=[(v.name, i % SERIES_COLOURS) for i, v in enumerate(rows[0][1])],
    )


def ticks(low: float, high: float, *, inside: bool = False) -> list[float]:
    """Four to nine round numbers that cover low … high, or (inside) that lie within it."""
    if high <= low:
        high = low + (abs(low) or 1.0)
    raw = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(raw))
    step = next(m * power for m in (1.0, 2.0, 2.5, 5.0, 10.0) if m * power >= raw * 0.999)
    first = math.ceil(low / step - 1e-9) if inside else math.floor(low / step + 1e-9)
    last = math.floor(high / step + 1e-9) if inside else math.ceil(high / step - 1e-9)
    return [round(i * step, 12) for i in range(first, last + 1)]


def label(value: float) -> str:
    """A tick's number as people write it: 1,200 · 0.25 · 3e-05."""
    if value == 0:
        return "0"
    if abs(value) >= 1000 and float(value).is_integer():
        return f"{int(value):,}"
    return f"{value:.4g}"


class _Frame:
    """The plot's rectangle: data units to SVG units."""

    def __init__(
        self,
        xs: tuple[float, float],
        ys: tuple[float, float],
        *,
        height: float = HEIGHT,
        left: float = LEFT,
    ) -> None:
        self.xs, self.ys = xs, ys
        self.width, self.height = WIDTH, height
        self.left, self.right, self.top, self.bottom = left, WIDTH - RIGHT, TOP, height - BOTTOM

    def x(self, value: float) -> float:
        low, high = self.xs
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.left + share * (self.right - self.left), 2)

    def y(self, value: float) -> float:
        low, high = self.ys
        share = (value - low) / (high - low) if high > low else 0.5
        return round(self.bottom - share * (self.bottom - self.top), 2)

    def path(self, points: Sequence[tuple[float, float]]) -> str:
        return "M" + "L".join(f"{self.x(a)} {self.y(b)}" for a, b in points)


def _finite(series: Series) -> Series:
    keep = [i for i, (a, b) in enumerate(series.points) if math.isfinite(a) and math.isfinite(b)]
    band = None if series.band is None else [_or_zero(series.band[i]) for i in keep]
    return Series(series.name, [series.points[i] for i in keep], band)


def _band(series: Series) -> Sequence[float]:
    return series.band if series.band is not None else [0.0] * len(series.points)


def _or_zero(value: float) -> float:
    return value if math.isfinite(value) else 0.0
