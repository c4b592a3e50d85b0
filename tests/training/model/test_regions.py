from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.model.regions import input_geometry, patch_mask, transform_box


@pytest.mark.parametrize(
    ("box", "patches"),
    [
        ((0, 0, 7, 7), [1]),  # exactly the first patch
        ((0, 0, 8, 7), [1, 2]),  # one pixel into its neighbour
        ((6, 6, 8, 8), [1, 2, 5, 6]),  # across a corner
        ((-5, -5, 40, 3), [1, 2, 3, 4]),  # leaves the image
        ((7, 7, 7, 7), []),  # no area, on the grid
        ((30, 30, 40, 40), []),  # outside
        (None, []),
    ],
)
def test_patch_mask_by_hand(box, patches):
    mask = patch_mask(box, 28, 7)
    assert mask.shape == (17,)
    assert mask.nonzero().flatten().tolist() == patches


@given(st.lists(st.integers(-10, 40), min_size=4, max_size=4))
def test_patch_mask_marks_the_patches_with_a_pixel_of_the_box(corners):
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    if x1 == x2 or y1 == y2:
        return
    image = np.zeros((28, 28), bool)
    image[max(y1, 0) : max(y2, 0), max(x1, 0) : max(x2, 0)] = True
    expected = image.reshape(4, 7, 4, 7).any(axis=(1, 3)).flatten()
    assert patch_mask((x1, y1, x2, y2), 28, 7)[1:].bool().tolist() == expected.tolist()


def test_transform_box_by_hand():
    # Square: no pad, scale 1/2. Truncation at the end: 15 / 2 = 7.5 becomes 7.
    assert transform_box((10, 15, 20, 31), 56, 56, 28) == (5, 7, 10, 15)
    # 100 x 60: 10 rows above and below make it 100 x 80, scaled by 28 / 80 to 35 x 28, cut by 3.5 left and right.
    assert transform_box((20, 20, 60, 50), 100, 60, 28) == (3, 10, 17, 21)
    # What lies left of the crop is gone; what reaches over its edge is cut.
    assert transform_box((0, 0, 5, 60), 100, 60, 28) is None
    assert transform_box((0, 0, 100, 60), 100, 60, 28) == (0, 3, 28, 24)


def test_images_below_the_ratio_are_not_padded():
    assert input_geometry(100, 81, 28, 1.25).pad_y == 0
    assert input_geometry(100, 80, 28, 1.25).pad_y == 0  # at the ratio there is nothing to add
    assert input_geometry(100, 60, 28, 1.25).pad_y == 10
    assert input_geometry(60, 100, 28, 1.25).pad_x == 10


@given(st.integers(20, 400), st.integers(20, 400), st.data())
def test_transformed_boxes_stay_inside_and_keep_their_order(width, height, data):
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    moved = transform_box((x1, y1, x2, y2), width, height, 70)
    if moved is not None:
        assert 0 <= moved[0] <= moved[2] <= 70
        assert 0 <= moved[1] <= moved[3] <= 70
    # The whole image always has its middle in the crop.
    middle = transform_box((0, 0, width, height), width, height, 70)
    assert middle is not None
    assert middle[0] <= 35 <= middle[2]
    assert middle[1] <= 35 <= middle[3]
