"""Charts: round ticks, curves where the numbers say, gaps for what is not finite, names escaped."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.base.charts import (
    Interval,
    Series,
    histogram,
    interval_chart,
    label,
    line_chart,
    stacked_histogram,
    ticks,
)


def parsed(chart: str) -> ElementTree.Element:
    return ElementTree.fromstring(chart)


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (0, 1, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (0, 23, [0, 5, 10, 15, 20, 25]),
        (3, 3, [3, 3.5, 4, 4.5, 5, 5.5, 6]),
    ],
)
def test_ticks_are_round_and_cover(low: float, high: float, expected: list[float]) -> None:
    assert ticks(low, high)[0] <= low
    assert ticks(low, high)[-1] >= high
    if low < high:
        assert ticks(low, high) == expected


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_few_and_in_order(low: float, width: float) -> None:
    found = ticks(low, low + width)
    assert 2 <= len(found) <= 9
    assert found == sorted(set(found))
    assert found[0] <= low + 1e-6 * (1 + abs(low))
    assert found[-1] >= low + width - 1e-6 * (1 + abs(low) + width)


def test_labels_are_as_people_write_them() -> None:
    assert [label(v) for v in (0, 1200, 0.25, 3e-5, 12.5)] == ["0", "1,200", "0.25", "3e-05", "12.5"]


def test_a_curve_leaves_out_what_is_not_finite_and_keeps_the_order_of_colours() -> None:
    chart = line_chart(
        "Loss",
        [Series("none", []), Series("a", [(0, 2), (1, math.nan), (2, 0), (3, math.inf)])],
        x="step",
        y="loss",
    )
    paths = [e for e in parsed(chart).iter("path") if "curve" in e.get("class", "")]
    assert [p.get("class") for p in paths] == ["curve series-1"]
    # x from 58 to 544, y from 254 up to 14: the first point top left, the last bottom right
    assert re.findall(r"[\d.]+", paths[0].get("d", "")) == ["58.0", "14.0", "544.0", "254.0"]


def test_nothing_to_draw_is_an_empty_string() -> None:
    assert line_chart("t", [Series("a", [(0, 1)])], x="x", y="y") == ""
    assert histogram("t", [math.nan], x="x", y="y") == ""
    assert interval_chart("t", [], x="x") == ""


def test_histogram_counts_every_finite_value_once() -> None:
    chart = parsed(histogram("β", [0, 0, 0, 1, 2, math.nan], x="β", y="queries", bins=4, colour=7))
    bars = list(chart.iter("rect"))
    assert [b.findtext("title") for b in bars] == ["0 to 0.5: 3", "1 to 1.5: 1", "1.5 to 2: 1"]
    assert {b.get("class") for b in bars} == {"bar series-1"}
    heights = [float(b.get("height", 0)) for b in bars]
    assert heights[0] == pytest.approx(3 * heights[1], abs=0.02)


def test_a_single_value_has_a_histogram() -> None:
    chart = parsed(histogram("β", [1.0, 1.0], x="β", y="queries", bins=2))
    assert [b.findtext("title") for b in chart.iter("rect")] == ["0.5 to 1: 2"]
    chart = parsed(histogram("β", [0.0], x="β", y="queries", bins=2))
    assert [b.findtext("title") for b in chart.iter("rect")] == ["0 to 0.5: 1"]


def test_values_that_hardly_differ_look_so() -> None:
    chart = parsed(histogram("β", [19.98, 20.0, 20.01], x="β", y="queries", bins=30))
    (bar,) = chart.iter("rect")  # one thirtieth of an axis from 0 to 20
    assert float(bar.get("width", 0)) < 20
    negative = parsed(histogram("x", [-1.0, 1.0], x="x", y="y", bins=2))
    assert [b.findtext("title") for b in negative.iter("rect")] == ["-1 to 0: 1", "0 to 1: 1"]


def test_a_value_without_an_interval_has_a_dot_and_says_so() -> None:
    chart = parsed(interval_chart("M", [("R@1", [Interval("a", 40, None, None)])], x="percent"))
    assert "R@1, a: 40.0 (no interval)" in next(chart.iter("svg")).get("aria-label", "")
    whisker = next(e for e in chart.iter("line") if e.get("class") == "whisker")
    assert whisker.get("x1") == whisker.get("x2") == next(chart.iter("circle")).get("cx")


def test_intervals_say_value_and_bounds_in_the_text_for_screen_readers() -> None:
    chart = parsed(interval_chart("M", [("R@1", [Interval("<b>", 40, 30, 50)])], x="percent"))
    svg = next(chart.iter("svg"))
    assert "R@1, <b>: 40.0 (30.0 to 50.0)" in svg.get("aria-label", "")
    whisker = next(e for e in chart.iter("line") if e.get("class") == "whisker")
    dot = next(chart.iter("circle"))
    left, right, at = (float(v or "nan") for v in (whisker.get("x1"), whisker.get("x2"), dot.get("cx")))
    assert at == pytest.approx((left + right) / 2, abs=0.02)
    # 30 and 50 of an axis from 0 to 50 that is 452 wide
    assert right - left == pytest.approx(452 * 20 / 50, abs=0.02)


def test_stacked_bars_stand_on_each_other_and_name_their_counts() -> None:
    counts = [("car", [2, 0, 1]), ("toy & co", [1, 0, 3])]
    chart = parsed(stacked_histogram("Words", [0, 1, 2, 3], counts, x="words", y="texts"))
    bars = list(chart.iter("rect"))
    assert [(b.get("class"), b.findtext("title")) for b in bars] == [
        ("bar series-0", "car, 0 to 1: 2"),
        ("bar series-1", "toy & co, 0 to 1: 1"),
        ("bar series-0", "car, 2 to 3: 1"),
        ("bar series-1", "toy & co, 2 to 3: 3"),
    ]
    tops = [float(b.get("y", 0)) for b in bars]
    heights = [float(b.get("height", 0)) for b in bars]
    assert tops[0] + heights[0] == pytest.approx(254)  # on the axis
    assert tops[1] + heights[1] == pytest.approx(tops[0], abs=0.02)  # on the first
    assert heights[0] == pytest.approx(2 * heights[1], abs=0.02)
    assert [e.text for e in chart.iter("span") if e.get("class") == "key"] == [None, None]  # a legend of two
    alone = stacked_histogram("Words", [0, 1], [("car", [3])], x="words", y="texts")
    assert "legend" not in alone
    assert stacked_histogram("Words", [0, 1], [("car", [0])], x="words", y="texts") == ""
