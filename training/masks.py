"""Masks of an object: bytes in, boolean arrays out. Light on purpose: the pipelines' workers load it without torch."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from infra.base.errors import OacirError

if TYPE_CHECKING:
    from PIL import PngImagePlugin

Mask = npt.NDArray[np.bool_]
"""[H, W], true inside the object; a pixel of it is a pixel of the upright image."""
PNG = b"\x89PNG\r\n\x1a\n"
GREY, RGB, PALETTE = 0, 2, 3
"""Colour types of a PNG without transparency."""


def decode_mask(data: bytes, size: tuple[int, int]) -> Mask:
    """A mask from the bytes of a PNG, [H, W].

    A pixel is inside if its stored sample is not 0, whatever the value: of a palette the index counts, of a colour
    image any of its channels. Other formats are refused because they may lose samples, transparency because it says
    twice what is inside. The size is compared before a pixel is decoded, so a mask never costs more than its photo.

    Args:
        data: the file.
        size: width and height in pixels of the upright image that it belongs to.

    Raises:
        OacirError: no such PNG, of another size, or damaged.
    """
    from PIL import PngImagePlugin

    if not data.startswith(PNG):
        raise OacirError(f"the mask starts with {data[:8]!r}; a mask is a PNG")
    try:
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as checked:
            _check(checked, data, size)
            checked.verify()  # decoding alone does not look at the checksums; this uses the file object up
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as image:
            samples = np.asarray(image)
    except OacirError:
        raise
    except Exception as error:  # Pillow's parsers raise nearly anything on broken bytes
        text = " ".join(str(error).split())[:200] or type(error).__name__
        raise OacirError(f"the mask cannot be decoded ({text})") from error
    inside: Mask = samples != 0
    return inside if inside.ndim == 2 else inside.max(axis=2)


def mask_box(mask: Mask) -> tuple[float, float, float, float] | None:
    """The smallest box x1, y1, x2, y2 in pixels, half-open, around what is inside; None of an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


def _check(image: PngImagePlugin.PngImageFile, data: bytes, size: tuple[int, int]) -> None:
    """What the header alone says against a mask."""
    if image.size != size:
        found = f"{image.width} x {image.height} px"
        raise OacirError(f"the mask has {found}, its upright image {size[0]} x {size[1]}")
    depth, colour = data[24], data[25]  # of IHDR, always the first chunk
    if "transparency" in image.info or not (colour in (GREY, PALETTE) or (colour == RGB and depth == 8)):
        raise OacirError(
            "the mask has transparency or 16-bit colours, which hide what is inside; save it as greyscale, 0 outside"
        )
