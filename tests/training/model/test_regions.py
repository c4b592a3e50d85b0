from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from infra.base.errors import OacirError
from training.model.regions import (
    input_geometry,
    mask_patches,
    patch_mask,
    region_box,
    region_patches,
    transform_box,
)


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


def filled(box: tuple[int, int, int, int], width: int, height: int) -> np.ndarray:
    mask = np.zeros((height, width), bool)
    mask[box[1] : box[3], box[0] : box[2]] = True
    return mask


@pytest.mark.parametrize(
    ("pixels", "patches"),
    [
        ([(0, 0)], [1]),
        ([(14, 13)], [2]),  # x = 14 is the first pixel of the second patch
        ([(13, 13), (14, 14)], [1, 6]),  # two corners that touch: a box around them would hold four patches
        ([(0, 0), (55, 55)], [1, 16]),
        ([], []),
    ],
)
def test_mask_patches_by_hand(pixels: list[tuple[int, int]], patches: list[int]) -> None:
    """56 x 56 halved to 28, 4 x 4 patches of 7: a patch is 14 x 14 pixels of the photo."""
    mask = np.zeros((56, 56), bool)
    for x, y in pixels:
        mask[y, x] = True
    assert mask_patches(mask, 28, 7).nonzero().flatten().tolist() == patches


def test_a_mask_is_padded_and_cut_like_its_image() -> None:
    # 100 x 60: 10 rows above and below, scaled by 28 / 80 to 35 x 28, cut by 3.5 left and right.
    left = np.zeros((60, 100), bool)
    left[:, :10] = True  # ends at 10 * 0.35 = 3.5, exactly where the crop begins
    assert not mask_patches(left, 28, 7).any()
    left[30, 10] = True  # row (30 + 10) * 0.35 = 14 begins the third row of patches
    assert mask_patches(left, 28, 7).nonzero().flatten().tolist() == [9]


def test_an_image_smaller_than_the_input_has_pixels_wider_than_a_patch() -> None:
    mask = np.zeros((2, 2), bool)
    mask[0, 1] = True
    assert mask_patches(mask, 28, 7).nonzero().flatten().tolist() == [3, 4, 7, 8]


def exact_patches(mask: np.ndarray, size: int, patch: int, ratio: float) -> set[tuple[int, int]]:
    """Slow and independent: every pixel's square in fractions against every patch's square."""
    height, width = mask.shape
    geometry = input_geometry(width, height, size, ratio)
    scale = Fraction(size, min(width + 2 * geometry.pad_x, height + 2 * geometry.pad_y))
    left = Fraction(geometry.resized_width - size, 2)
    top = Fraction(geometry.resized_height - size, 2)
    found = set()
    for y, x in np.argwhere(mask):
        x1, x2 = ((int(v) + geometry.pad_x) * scale - left for v in (x, x + 1))
        y1, y2 = ((int(v) + geometry.pad_y) * scale - top for v in (y, y + 1))
        for row in range(size // patch):
            for column in range(size // patch):
                across = x1 < (column + 1) * patch and x2 > column * patch
                down = y1 < (row + 1) * patch and y2 > row * patch
                if across and down:
                    found.add((row, column))
    return found


@given(st.integers(1, 24), st.integers(1, 24), st.sampled_from([(28, 7), (30, 7)]), st.data())
def test_mask_patches_are_those_that_a_pixel_touches(width, height, sizes, data):
    cells = data.draw(st.lists(st.tuples(st.integers(0, height - 1), st.integers(0, width - 1)), max_size=6))
    mask = np.zeros((height, width), bool)
    for cell in cells:
        mask[cell] = True
    size, patch = sizes
    grid = mask_patches(mask, size, patch)[1:].reshape(size // patch, -1)
    assert {(int(r), int(c)) for r, c in grid.nonzero()} == exact_patches(mask, size, patch, 1.25)


@given(st.integers(8, 300), st.integers(8, 300), st.data())
def test_a_filled_rectangle_is_its_box_where_truncation_does_not_matter(width, height, data):
    """Truncation matters where an edge is less than a pixel of the input behind the border of a patch."""
    x1, y1 = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    x2, y2 = data.draw(st.integers(x1 + 1, width)), data.draw(st.integers(y1 + 1, height))
    size, patch = 70, 7
    of_mask = region_patches(filled((x1, y1, x2, y2), width, height), width, height, size, patch)
    of_box = region_patches((x1, y1, x2, y2), width, height, size, patch)
    geometry = input_geometry(width, height, size, 1.25)
    scale = Fraction(size, min(width + 2 * geometry.pad_x, height + 2 * geometry.pad_y))
    ends = (
        (x2 + geometry.pad_x) * scale - Fraction(geometry.resized_width - size, 2),
        (y2 + geometry.pad_y) * scale - Fraction(geometry.resized_height - size, 2),
    )
    starts = (
        (x1 + geometry.pad_x) * scale - Fraction(geometry.resized_width - size, 2),
        (y1 + geometry.pad_y) * scale - Fraction(geometry.resized_height - size, 2),
    )
    # rounding may put a start on the border of a patch just before it, and truncation then into the patch before
    assume(all(v <= 0 or v % patch for v in starts))
    matters = any(0 < v % patch < 1 and v < size for v in ends)
    if matters:
        assert bool((of_mask >= of_box).all())
    else:
        assert of_mask.tolist() == of_box.tolist()


def test_truncation_cuts_what_a_box_reaches_over_by_less_than_a_pixel() -> None:
    # scale 1/2: the box ends at 7.5, in the second patch by half a pixel; the release truncates to 7
    mask = filled((0, 0, 15, 14), 56, 56)
    assert region_patches((0, 0, 15, 14), 56, 56, 28, 7).nonzero().flatten().tolist() == [1]
    assert region_patches(mask, 56, 56, 28, 7).nonzero().flatten().tolist() == [1, 2]


def test_a_region_is_a_box_a_mask_or_nothing() -> None:
    mask = filled((10, 20, 30, 44), 56, 60)
    assert region_box(mask, 56, 60) == (10, 20, 30, 44)
    assert region_box((1, 2, 3, 4), 56, 60) == (1, 2, 3, 4)
    assert region_box(None, 56, 60) is None
    assert region_box(np.zeros((60, 56), bool), 56, 60) is None
    assert not region_patches(None, 56, 60, 28, 7).any()
    assert not region_patches(np.zeros((60, 56), bool), 56, 60, 28, 7).any()
    for wrong in (mask.T, mask.astype(np.uint8), np.array([1.0, 2.0, 3.0, 4.0])):
        for ask in (lambda r: region_patches(r, 56, 60, 28, 7), lambda r: region_box(r, 56, 60)):
            with pytest.raises(OacirError, match=r"of an image of 56 x 60 px a bool array \[60, 56\]"):
                ask(wrong)
