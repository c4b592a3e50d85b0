"""Files of a released benchmark, made up: JSON as it is released, and stand-ins for its images."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

from PIL import Image


def write_json(root: Path, path: str, content: Any) -> None:
    """A JSON file below the root."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(content), encoding="utf-8")


def image_bytes(seed: int, size: tuple[int, int] = (32, 24), orientation: int = 1) -> bytes:
    """A plain image, another colour for another seed; JPEG, as its EXIF orientation needs."""
    colour = (seed * 37 % 256, seed * 91 % 256, seed * 151 % 256)
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = orientation
    # a corner of its own colour, so that also many seeds give distinct bytes
    image = Image.new("RGB", size, colour)
    image.paste((seed // 256 % 256, seed % 256, 128), (0, 0, 8, 8))
    image.save(stream, "JPEG", exif=exif, quality=95)
    return stream.getvalue()


def write_images(root: Path, paths: list[str], size: tuple[int, int] = (32, 24)) -> None:
    """A stand-in at each path below the root; what a name ends in does not matter to who reads it."""
    for seed, path in enumerate(paths):
        target = root / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(image_bytes(seed, size))


def write_mask(root: Path, path: str, size: tuple[int, int], box: tuple[int, int, int, int] | None) -> None:
    """A mask that marks a box, or nothing."""
    target = root / path
    target.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size, 0)
    if box is not None:
        mask.paste(255, box)
    mask.save(target, "PNG")
