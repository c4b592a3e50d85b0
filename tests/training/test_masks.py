"""Masks from files: what counts as inside, what is refused, and that a benchmark's masks are its own."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from infra.base.errors import OacirError
from training.masks import decode_mask, mask_box

INSIDE = np.zeros((3, 4), bool)
INSIDE[1, 1:3] = INSIDE[2, 3] = True


def png(samples: np.ndarray, palette: bool = False, **options: object) -> bytes:
    stream = io.BytesIO()
    if palette:
        image = Image.new("P", samples.shape[::-1])
        image.putpalette([255, 255, 255, *[0, 0, 0] * 255])  # the index counts, not the colour
        image.putdata(samples.flatten().tolist())
    else:
        image = Image.fromarray(samples)
    image.save(stream, "PNG", **options)
    return stream.getvalue()


GREY = np.where(INSIDE, np.arange(1, 13).reshape(3, 4), 0)


@pytest.mark.parametrize(
    "data",
    [
        png(INSIDE),
        png(GREY.astype(np.uint8)),  # many values: every one but 0 is inside
        png(GREY.astype(np.uint16)),  # 1 to 12 of 65535: nearly black, and still inside
        png(GREY, palette=True),
        png(np.stack([GREY * 0, GREY * 0, GREY], axis=2).astype(np.uint8)),
    ],
    ids=["bilevel", "values", "sixteen bits", "palette", "blue"],
)
def test_every_sample_but_zero_is_inside(data: bytes) -> None:
    mask = decode_mask(data, (4, 3))
    assert mask.dtype == np.bool_
    assert mask.tolist() == INSIDE.tolist()


def header_bomb() -> bytes:
    """A PNG whose header promises 60,000 x 60,000 pixels."""
    body = b"IHDR" + struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    ends = (
        struct.pack(">I", zlib.crc32(body)) + struct.pack(">I", 0) + b"IEND" + struct.pack(">I", 0xAE426082)
    )
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + ends


def damaged(data: bytes) -> bytes:
    place = data.index(b"IDAT") + 8
    return data[:place] + bytes([data[place] ^ 0xFF]) + data[place + 1 :]


def jpeg() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(GREY.astype(np.uint8)).save(stream, "JPEG")
    return stream.getvalue()


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "a mask is a PNG"),
        (jpeg(), "a mask is a PNG"),
        (png(np.zeros((4, 3), np.uint8)), r"the mask has 3 x 4 px, its upright image 4 x 3"),
        (header_bomb(), r"60000 x 60000 px, its upright image 4 x 3"),
        (png(GREY.astype(np.uint8))[:-20], "cannot be decoded"),
        (damaged(png(GREY.astype(np.uint8))), "cannot be decoded"),
        (png(np.zeros((3, 4, 4), np.uint8)), "transparency"),
        (png(GREY.astype(np.uint8), transparency=0), "transparency"),
    ],
    ids=["empty", "jpeg", "turned", "bomb", "cut", "damaged", "alpha", "clear grey"],
)
def test_a_broken_mask_is_one_line(data: bytes, told: str) -> None:
    with pytest.raises(OacirError, match=told) as caught:
        decode_mask(data, (4, 3))
    assert "\n" not in str(caught.value)


def test_sixteen_bit_colours_are_refused() -> None:
    """Pillow drops their lower byte: a value of 255 of 65535 would count as outside."""
    rows = b"".join(b"\0" + struct.pack(">12H", *[255] * 12) for _ in range(3))
    chunks = [
        b"IHDR" + struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0),
        b"IDAT" + zlib.compress(rows),
        b"IEND",
    ]
    data = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in chunks
    )
    with pytest.raises(OacirError, match="16-bit colours"):
        decode_mask(data, (4, 3))


def test_the_box_of_a_mask_is_the_smallest_around_it() -> None:
    assert mask_box(INSIDE) == (1, 1, 4, 3)
    assert mask_box(np.zeros((3, 4), bool)) is None


def test_masks_load_without_torch() -> None:
    import subprocess
    import sys

    command = "import sys, training.masks; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", command], check=False).returncode == 0
