"""Corrupted photos: the same size, worse with every severity, the same for the same seed, at any resolution."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw

from pipelines.retrieval.robustness.images import GREY, IMAGES, OCCLUDED, corrupt


def scene(side: int) -> Image.Image:
    image = Image.new("RGB", (side * 4 // 3, side), (90, 130, 170))
    draw = ImageDraw.Draw(image)
    for n in range(12):
        x = n * side // 9
        colour = ((n * 83) % 256, (n * 47) % 256, (n * 131) % 256)
        draw.rectangle((x, n * side // 16, x + side // 20, side * 4 // 5), fill=colour)
    return image


def worse(side: int, how: str, severity: int) -> float:
    image = scene(side)
    found = corrupt(image, how, severity, np.random.default_rng(7))
    assert (found.size, found.mode) == (image.size, "RGB")
    difference = np.asarray(found, np.float32) - np.asarray(image, np.float32)
    return float(np.sqrt((difference**2).mean()))


@pytest.mark.parametrize("how", sorted(IMAGES))
def test_each_severity_is_worse_than_the_one_before(how: str) -> None:
    errors = [worse(240, how, severity) for severity in range(1, 6)]
    assert errors[0] > 1
    assert errors == sorted(set(errors))


@pytest.mark.parametrize("how", ["blur", "noise", "pixelated", "occluded"])
def test_a_severity_means_the_same_at_any_size(how: str) -> None:
    small, large = worse(224, how, 3), worse(896, how, 3)
    assert large == pytest.approx(small, rel=0.25)


def test_draws_are_seeded() -> None:
    image = scene(64)
    for how in ("noise", "occluded"):
        first, same, other = (corrupt(image, how, 2, np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, same)
        assert not np.array_equal(first, other)


def test_the_rectangle_covers_its_share_of_the_picture() -> None:
    for severity, share in enumerate(OCCLUDED, 1):
        found = np.asarray(corrupt(scene(200), "occluded", severity, np.random.default_rng(0)))
        assert (found == GREY).all(-1).mean() == pytest.approx(share, abs=0.01)
