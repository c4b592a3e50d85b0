"""Boxes that are off by a given IoU."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tuning.reproduce.boxes import Box, intersection_over_union, off_by

SIZE = (112, 112)


@given(
    st.floats(0, 80), st.floats(0, 80), st.floats(8, 60), st.floats(8, 60), st.sampled_from([0.8, 0.5, 0.3]),
    st.integers(0, 99),
)  # fmt: skip
def test_a_box_has_the_iou_that_was_asked_for_and_lies_in_the_image_where_there_is_room(
    x: float, y: float, width: float, height: float, iou: float, seed: int
) -> None:
    box: Box = (x, y, min(112.0, x + width), min(112.0, y + height))
    moved = off_by(box, iou, SIZE, str(seed))
    assert intersection_over_union(box, moved) == pytest.approx(iou, abs=1e-6)
    assert moved == off_by(box, iou, SIZE, str(seed))


def test_at_0_8_it_is_scaled_about_the_centre_and_at_0_5_shifted_too() -> None:
    box = (40.0, 40.0, 60.0, 80.0)
    near, far = off_by(box, 0.8, SIZE, "q"), off_by(box, 0.5, SIZE, "q")
    assert near == pytest.approx(
        (50 - 10 / 0.8**0.5, 60 - 20 / 0.8**0.5, 50 + 10 / 0.8**0.5, 60 + 20 / 0.8**0.5)
    )
    centre = ((far[0] + far[2]) / 2, (far[1] + far[3]) / 2)
    assert abs(centre[0] - 50) + abs(centre[1] - 60) > 1
    assert all(0 <= edge <= 112 for edge in (*near, *far))
    assert len({off_by(box, 0.5, SIZE, f"{i}") for i in range(5)}) == 5


def test_where_a_larger_box_has_no_room_it_is_a_smaller_one() -> None:
    box = (0.0, 30.0, 50.0, 80.0)
    assert off_by(box, 0.8, SIZE, "q") == pytest.approx(
        (25 - 25 * 0.8**0.5, 55 - 25 * 0.8**0.5, 25 + 25 * 0.8**0.5, 55 + 25 * 0.8**0.5)
    )
