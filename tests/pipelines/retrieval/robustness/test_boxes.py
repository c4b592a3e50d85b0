"""Changed boxes: the IoU that was asked for, inside the picture, whatever box and picture."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.retrieval.robustness.boxes import Box, inside, iou, scaled, shifted


@st.composite
def boxes(draw: st.DrawFn) -> tuple[Box, tuple[int, int]]:
    width, height = draw(st.integers(8, 4000)), draw(st.integers(8, 4000))
    x1, x2 = sorted(draw(st.lists(st.integers(0, width), min_size=2, max_size=2, unique=True)))
    y1, y2 = sorted(draw(st.lists(st.integers(0, height), min_size=2, max_size=2, unique=True)))
    return (float(x1), float(y1), float(x2), float(y2)), (width, height)


@given(boxes(), st.floats(0.05, 0.99), st.integers(0, 2**32), st.sampled_from([scaled, shifted]))
def test_the_iou_is_exact_and_the_box_stays_inside(
    case: tuple[Box, tuple[int, int]], wanted: float, seed: int, change: object
) -> None:
    box, size = case
    found = change(box, size, wanted, random.Random(seed))  # type: ignore[operator]
    assert iou(found, box) == pytest.approx(wanted, abs=1e-6)
    assert 0 <= found[0] < found[2] <= size[0] + 1e-9
    assert 0 <= found[1] < found[3] <= size[1] + 1e-9
    assert found == change(box, size, wanted, random.Random(seed))  # type: ignore[operator]


def test_iou_by_hand() -> None:
    assert iou((0, 0, 2, 2), (1, 0, 3, 2)) == pytest.approx(2 / 6)
    assert iou((0, 0, 1, 1), (1, 0, 2, 1)) == 0
    assert inside((-1, 2, 3, 9), (4, 5)) == (0, 2, 3, 5)
    assert inside((-3, 0, 0, 5), (4, 5)) is None


def test_scaled_keeps_the_centre_and_shifted_does_not() -> None:
    box, size = (400.0, 400.0, 600.0, 500.0), (1000, 1000)
    seen = set()
    for seed in range(20):
        x1, y1, x2, y2 = scaled(box, size, 0.8, random.Random(seed))
        assert ((x1 + x2) / 2, (y1 + y2) / 2) == pytest.approx((500, 450))
        assert (x2 - x1) / (y2 - y1) == pytest.approx(2)
        seen.add(x2 - x1 > 200)
        a1, b1, a2, b2 = shifted(box, size, 0.5, random.Random(seed))
        assert abs((a1 + a2) / 2 - 500) + abs((b1 + b2) / 2 - 450) > 1
    assert seen == {True, False}  # smaller and larger ones


def test_a_box_that_fills_the_picture_can_only_be_smaller() -> None:
    box = (0.0, 0.0, 64.0, 48.0)
    for change in (scaled, shifted):
        for seed in range(10):
            found = change(box, (64, 48), 0.5, random.Random(seed))
            assert inside(found, (64, 48)) == pytest.approx(found)
            assert iou(found, box) == pytest.approx(0.5)
