from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from pipelines.measures import COLOURS, measure
from pipelines.records import MEASURES


def plain(colour: str | tuple[int, int, int], width: int = 100, height: int = 80) -> Image.Image:
    return Image.new("RGB", (width, height), colour)


def test_the_columns_are_those_of_the_table() -> None:
    assert list(measure(plain("red"), None)) == [n for n in MEASURES.names if n != "image_id"]


def test_levels_by_hand() -> None:
    halves = plain((0, 0, 0))
    ImageDraw.Draw(halves).rectangle((50, 0, 99, 79), fill=(255, 255, 255))
    measured = measure(halves, None)
    assert measured["brightness"] == pytest.approx(0.5)
    assert measured["contrast"] == pytest.approx(0.5)
    assert measured["saturation"] == 0.0
    assert measured["aspect"] == 1.25
    # one step of 1 along a vertical line: the 2 pixels beside it of each row differ by 1/4 from their neighbours' mean
    assert measured["sharpness"] == pytest.approx(2 * 0.25 / 98)
    assert measure(plain((255, 0, 0)), None)["saturation"] == 1.0
    assert measure(plain((204, 102, 102)), None)["saturation"] == pytest.approx(0.5, abs=0.01)


def test_a_checkerboard_is_as_sharp_as_can_be_and_blur_lowers_it() -> None:
    squares = np.indices((80, 80)).sum(axis=0) % 2 * 255
    board = Image.fromarray(squares.astype(np.uint8)).convert("RGB")
    assert measure(board, None)["sharpness"] == pytest.approx(1.0)
    blurred = board.filter(ImageFilter.GaussianBlur(2))
    assert measure(blurred, None)["sharpness"] < 0.05


def test_sharpness_does_not_follow_the_size_of_the_file() -> None:
    rng = np.random.default_rng(0)
    small = Image.fromarray(rng.integers(0, 255, (160, 160, 3), dtype=np.uint8))
    large = small.resize((640, 640), Image.Resampling.NEAREST)
    assert measure(large, None)["sharpness"] == pytest.approx(measure(small, None)["sharpness"])


@pytest.mark.parametrize(
    ("rgb", "term"),
    [
        ((0, 0, 0), "black"), ((20, 20, 40), "black"), ((255, 255, 255), "white"), ((128, 128, 128), "gray"),
        ((200, 20, 20), "red"), ((255, 140, 0), "orange"), ((240, 220, 40), "yellow"), ((60, 140, 50), "green"),
        ((40, 80, 200), "blue"), ((120, 40, 160), "purple"), ((255, 170, 190), "pink"), ((110, 70, 40), "brown"),
        ((210, 180, 140), "brown"), ((255, 105, 180), "pink"), ((0, 128, 128), "green"), ((135, 206, 235), "blue"),
        ((139, 0, 0), "red"), ((128, 0, 128), "purple"),
    ],
)  # fmt: skip
def test_basiccolour_terms(rgb: tuple[int, int, int], term: str) -> None:
    assert measure(plain(rgb), None)["background"] == term


def test_the_background_is_the_border_without_the_object() -> None:
    picture = plain("green")
    ImageDraw.Draw(picture).rectangle((10, 10, 89, 69), fill="red")
    assert measure(picture, None)["background"] == "green"  # the middle does not count
    close = plain("blue")
    ImageDraw.Draw(close).rectangle((0, 0, 99, 59), fill="red")
    assert measure(close, None)["background"] == "red"
    assert measure(close, (0.0, 0.0, 100.0, 60.0))["background"] == "blue"
    assert (
        measure(close, (0.0, 0.0, 100.0, 80.0))["background"] == "red"
    )  # nothing but object: the border again


def test_boxes_are_in_pixels_of_the_given_image() -> None:
    large = plain("blue", 1000, 800)
    ImageDraw.Draw(large).rectangle((0, 0, 999, 599), fill="red")
    assert measure(large, (0.0, 0.0, 1000.0, 600.0))["background"] == "blue"


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (300, 2), (3, 3)])
def test_the_smallest_photos_have_finite_measures(size: tuple[int, int]) -> None:
    measured = measure(plain("white", *size), (0.0, 0.0, 1.0, 1.0))
    assert measured["background"] in COLOURS
    assert all(np.isfinite(v) for k, v in measured.items() if k != "background")
