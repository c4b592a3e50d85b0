"""Random changes take the region along: what is marked on the image stays marked, and stays in it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw

from training.augment import Seen, augment, mirrored, square, to_keep
from training.model.config import preset
from training.model.processing import AdaFocalProcessor, train_wordpiece
from training.tower_config import TowerSection

SIDE, PATCH = 70, 7
CROP = TowerSection(mode="frozen", crop=0.3, flip=True)


@pytest.fixture(scope="module")
def processor() -> AdaFocalProcessor:
    config = preset("tiny", **{"vision_config.image_size": SIDE, "vision_config.patch_size": PATCH})
    return AdaFocalProcessor.for_model(config, train_wordpiece(["put it here"], 200))


@st.composite
def marked(draw: st.DrawFn) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """An image's size and a box in it that a square of the image can hold."""
    width, height = (draw(st.integers(40, 160)) for _ in range(2))
    short = min(width, height)
    w, h = (draw(st.integers(6, short)) for _ in range(2))
    x, y = draw(st.integers(0, width - w)), draw(st.integers(0, height - h))
    return (width, height), (x, y, x + w, y + h)


@pytest.mark.parametrize("kind", ["box", "mask"])
@given(scene=marked(), seed=st.integers(0, 2**32))
def test_a_marked_region_stays_whole_and_inside_its_patches(
    kind: str,
    scene: tuple[tuple[int, int], tuple[int, int, int, int]],
    seed: int,
    processor: AdaFocalProcessor,
) -> None:
    """The object is painted white on black; after cut and mirror, white is where the patch mask says, and all of it."""
    size, (x1, y1, x2, y2) = scene
    image = Image.new("RGB", size)
    ImageDraw.Draw(image).rectangle((x1, y1, x2 - 1, y2 - 1), fill="white")
    region = (
        np.asarray(image)[:, :, 0] > 0 if kind == "mask" else (float(x1), float(y1), float(x2), float(y2))
    )
    seen = augment(
        Seen(image, region), to_keep(region, size), CROP, np.random.Generator(np.random.PCG64(seed))
    )
    assert (np.asarray(seen.image) > 0).sum() == 3 * (x2 - x1) * (y2 - y1)  # nothing of it is cut away
    white = processor.squares([seen.image])[0, 0].numpy() / 255
    patches = white.reshape(SIDE // PATCH, PATCH, SIDE // PATCH, PATCH).mean(axis=(1, 3))
    mask = (
        processor.regions([seen.region], [seen.image.size])[0, 1:].reshape(patches.shape).numpy().astype(bool)
    )
    assert mask.any()
    assert mask[patches > 0.2].all()  # half a pixel's rounding at the border
    inner = mask[1:-1, 1:-1] & mask[:-2, 1:-1] & mask[2:, 1:-1] & mask[1:-1, :-2] & mask[1:-1, 2:]
    assert (patches[1:-1, 1:-1][inner] > 0.5).all()


@given(scene=marked(), least=st.floats(0.05, 1), draws=st.tuples(*[st.floats(0, 0.999)] * 3))
def test_the_cut_is_a_square_inside_the_image_around_what_is_kept(
    scene: tuple[tuple[int, int], tuple[int, int, int, int]], least: float, draws: tuple[float, float, float]
) -> None:
    (width, height), kept = scene
    x1, y1, x2, y2 = square((width, height), tuple(map(float, kept)), least, *draws)
    assert x2 - x1 == y2 - y1
    assert x2 - x1 >= least * min(width, height) - 1e-9
    assert 0 <= x1 <= kept[0]
    assert 0 <= y1 <= kept[1]
    assert kept[2] <= x2 <= width
    assert kept[3] <= y2 <= height


def test_cuts_reach_from_the_smallest_allowed_to_the_whole_short_side() -> None:
    sides = {
        square((100, 60), (50.0, 20.0, 54.0, 24.0), 0.5, s, 0.5, 0.5)[2]
        - square((100, 60), (50.0, 20.0, 54.0, 24.0), 0.5, s, 0.5, 0.5)[0]
        for s in np.linspace(0, 0.999, 200)
    }
    assert sides == set(range(30, 61))
    lefts = {
        square((100, 60), (50.0, 20.0, 54.0, 24.0), 0.5, 0.0, a, 0.5)[0] for a in np.linspace(0, 0.999, 200)
    }
    assert lefts == set(range(24, 51))


def test_what_no_square_holds_is_not_cut() -> None:
    assert square((100, 40), (5.0, 0.0, 60.0, 30.0), 0.5, 0.5, 0.5, 0.5) == (0, 0, 100, 40)
    untouched = augment(
        Seen(Image.new("RGB", (30, 20)), None),
        None,
        TowerSection(mode="frozen", crop=0.5),
        np.random.default_rng(0),
    )
    assert untouched.image.size == (30, 20)


def test_mirroring_twice_is_nothing() -> None:
    generator = np.random.default_rng(0)
    image = Image.fromarray(generator.integers(0, 256, (20, 30, 3), dtype=np.uint8))
    once = mirrored(Seen(image, (3.0, 4.0, 10.0, 9.0)))
    assert once.region == (20.0, 4.0, 27.0, 9.0)
    again = mirrored(once)
    assert again.region == (3.0, 4.0, 10.0, 9.0)
    assert np.array_equal(np.asarray(again.image), np.asarray(image))


def test_colour_changes_within_its_bounds_and_leaves_the_place_alone() -> None:
    image = Image.new("RGB", (30, 20), (100, 120, 140))
    section = TowerSection(mode="frozen", colour=0.2)
    means = []
    for seed in range(20):
        seen = augment(
            Seen(image, (1.0, 2.0, 3.0, 4.0)), (1.0, 2.0, 3.0, 4.0), section, np.random.default_rng(seed)
        )
        assert seen.region == (1.0, 2.0, 3.0, 4.0)
        assert seen.image.size == (30, 20)
        means.append(np.asarray(seen.image).mean())
    assert 90 < min(means) < 110 < 130 < max(means) < 150


def test_one_setting_changes_no_draw_of_another() -> None:
    image, box = Image.new("RGB", (60, 50), (9, 9, 9)), (20.0, 20.0, 30.0, 30.0)
    plain, coloured = (
        augment(
            Seen(image, box), box, TowerSection(mode="frozen", crop=0.3, colour=c), np.random.default_rng(4)
        )
        for c in (0.0, 0.4)
    )
    assert plain.region == coloured.region != box
