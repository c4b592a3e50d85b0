"""Corrupted photos, by severity 1 to 5: pure functions of an upright RGB image and a seeded generator.

Strengths are relative to the short side, as if it were 224 pixels, so that a severity means about the same for photos
of any size. None changes the size: boxes stay where they are.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL import Image

SIDE_PX = 224
BLUR_PX = (1.0, 1.5, 2.0, 3.0, 4.0)
"""Standard deviation."""
NOISE = (0.04, 0.08, 0.12, 0.18, 0.26)
"""Standard deviation of a grain, of the full range."""
QUALITY = (25, 18, 15, 10, 7)
DARKER, BRIGHTER = (0.8, 0.65, 0.5, 0.35, 0.2), (1.25, 1.5, 1.75, 2.0, 2.5)
CONTRAST = (0.7, 0.5, 0.35, 0.2, 0.1)
PIXELS = (0.5, 0.35, 0.25, 0.18, 0.12)
"""Share of the SIDE_PX pixels that is left along a side."""
OCCLUDED = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Share of the picture's area under a grey rectangle of its shape."""
GREY = (128, 128, 128)


def corrupt(image: Image.Image, how: str, severity: int, draw: np.random.Generator) -> Image.Image:
    """A corrupted copy of the same size.

    Args:
        image: RGB.
        how: `PerturbSection.image`.
        severity: 1 to 5.
        draw: of the noise, and of the place of the rectangle.
    """
    return IMAGES[how](image, severity - 1, draw)


def _blur(image: Image.Image, level: int, _: np.random.Generator) -> Image.Image:
    from PIL import ImageFilter

    return image.filter(ImageFilter.GaussianBlur(BLUR_PX[level] * min(image.size) / SIDE_PX))


def _noise(image: Image.Image, level: int, draw: np.random.Generator) -> Image.Image:
    from PIL import Image as Images

    width, height = _working_size(image)
    grain = draw.normal(0.0, 255 * NOISE[level], (height, width, 3)).astype(np.float32)
    rows = np.arange(image.height) * height // image.height
    columns = np.arange(image.width) * width // image.width
    noisy = np.asarray(image, np.float32) + grain[rows[:, None], columns[None, :]]
    return Images.fromarray(np.clip(np.rint(noisy), 0, 255).astype(np.uint8))


def _jpeg(image: Image.Image, level: int, _: np.random.Generator) -> Image.Image:
    """Small, compressed hard, and enlarged again: a thumbnail from the web."""
    from PIL import Image as Images

    stream = io.BytesIO()
    image.resize(_working_size(image), Images.Resampling.BOX).save(stream, "JPEG", quality=QUALITY[level])
    with Images.open(stream) as small:
        return small.convert("RGB").resize(image.size, Images.Resampling.BILINEAR)


def _brightness(factors: Sequence[float]) -> Callable[[Image.Image, int, np.random.Generator], Image.Image]:
    def change(image: Image.Image, level: int, _: np.random.Generator) -> Image.Image:
        from PIL import ImageEnhance

        return ImageEnhance.Brightness(image).enhance(factors[level])

    return change


def _contrast(image: Image.Image, level: int, _: np.random.Generator) -> Image.Image:
    from PIL import ImageEnhance

    return ImageEnhance.Contrast(image).enhance(CONTRAST[level])


def _pixelated(image: Image.Image, level: int, _: np.random.Generator) -> Image.Image:
    from PIL import Image as Images

    width, height = (max(1, round(PIXELS[level] * side)) for side in _working_size(image))
    return image.resize((width, height), Images.Resampling.BOX).resize(image.size, Images.Resampling.NEAREST)


def _occluded(image: Image.Image, level: int, draw: np.random.Generator) -> Image.Image:
    width, height = (max(1, round(side * OCCLUDED[level] ** 0.5)) for side in image.size)
    x, y = int(draw.integers(image.width - width + 1)), int(draw.integers(image.height - height + 1))
    covered = image.copy()
    covered.paste(GREY, (x, y, x + width, y + height))
    return covered


def _working_size(image: Image.Image) -> tuple[int, int]:
    """Of the image with its short side brought down to SIDE_PX; a smaller one keeps its own."""
    factor = min(1.0, SIDE_PX / min(image.size))
    return max(1, round(image.width * factor)), max(1, round(image.height * factor))


IMAGES: dict[str, Callable[[Image.Image, int, np.random.Generator], Image.Image]] = {
    "blur": _blur,
    "noise": _noise,
    "jpeg": _jpeg,
    "darker": _brightness(DARKER),
    "brighter": _brightness(BRIGHTER),
    "low_contrast": _contrast,
    "pixelated": _pixelated,
    "occluded": _occluded,
}
"""`PerturbSection.image` → (image, severity - 1, generator) → image."""
