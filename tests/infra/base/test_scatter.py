"""Points and parallel axes lie where their numbers say."""

from __future__ import annotations

import re

from infra.base.charts import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from infra.base.scatter import Axis, Point, parallel, scatter

FIRST = Point("low <left>", 0.0, 10.0)
LAST = Point("high", 4.0, 20.0, group=1)


def circles(markup: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', markup)]


def test_points_lie_between_the_axes_ends() -> None:
    markup = str(scatter("Title", [FIRST, LAST], ["front", "others"], x="ms", y="percent"))
    # the others are drawn first, so that the front lies above them
    assert circles(markup) == [(WIDTH - RIGHT, TOP), (LEFT, HEIGHT - BOTTOM)]
    assert "low &lt;left&gt;: 0, 10" in markup
    assert markup.count("swatch") == 2
    assert "stroke-dasharray" not in markup


def test_a_path_joins_its_points_in_order() -> None:
    points = [FIRST, LAST, Point("middle", 2.0, 15.0)]
    markup = str(scatter("Title", points, ["a", "b"], x="x", y="y", path=[0, 2, 1]))
    (line,) = re.findall(r'd="M([^"]+)"', markup)
    places = [tuple(map(float, part.split())) for part in line.split("L")]
    assert places[0] == (LEFT, HEIGHT - BOTTOM)
    assert places[2] == (WIDTH - RIGHT, TOP)
    assert places[0][0] < places[1][0] < places[2][0]


def test_equal_points_have_a_plane_around_them_and_none_are_no_chart() -> None:
    assert len(circles(str(scatter("T", [FIRST, FIRST], ["a"], x="x", y="y")))) == 2
    assert not scatter("T", [], ["a"], x="x", y="y")


def test_lines_cross_each_axis_at_their_share() -> None:
    axes = [Axis("β", [(0.0, "0"), (1.0, "8")]), Axis("depth", [(0.5, "2")]), Axis("avg", [])]
    markup = str(parallel("T", axes, [("best", (1.0, 0.5, 1.0), 1.0), ("worst", (0.0, 0.5, 0.0), 0.0)]))
    paths = re.findall(r'style="opacity: ([\d.]+)" d="M([^"]+)"', markup)
    (weak, low), (strong, high) = paths  # the better one lies above
    assert float(weak) < 0.2 < float(strong) == 1.0
    tops, bottoms = ([float(p.split()[1]) for p in line.split("L")] for line in (high, low))
    assert tops[0] == tops[2] < tops[1] < bottoms[0] == bottoms[2]
    assert tops[1] == bottoms[1] == (tops[0] + bottoms[0]) / 2
    assert markup.count('class="head"') == 3


def test_one_axis_makes_no_chart() -> None:
    assert not parallel("T", [Axis("a", [])], [("x", (0.5,), 1.0)])
