"""One image from bytes that nobody vouches for: upright RGB, or a reason why not. Never a crash, never a bomb.

The content decides the format, never the name. Read are JPEG, PNG, WebP, GIF, TIFF and BMP; of an animation the first
frame. Pixels come out as 8-bit RGB: transparency is composited on white, 16-bit samples are scaled (not clipped),
CMYK is converted, the EXIF orientation is applied. Colour profiles are ignored.
"""

from __future__ import annotations

import hashlib
import io
import re
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from pydantic import Field

from infra.base import storage
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.records import REASONS

# Pillow speaks of doubtful files by warnings; here each such file gets a reason or is read. The filter is set once, for
# Pillow's modules only: `warnings.catch_warnings` around each call would not be safe in threads.
warnings.filterwarnings("ignore", module=r"PIL\.")

Box = tuple[float, float, float, float]
Opener = Callable[[io.BytesIO], ImageFile.ImageFile]

# Pillow's own classes instead of Image.open: its process-wide pixel limit would otherwise override ours.
_READERS: tuple[tuple[re.Pattern[bytes], str, Opener], ...] = (
    (re.compile(rb"\xff\xd8\xff"), "JPEG", JpegImagePlugin.JpegImageFile),
    (re.compile(rb"\x89PNG\r\n\x1a\n"), "PNG", PngImagePlugin.PngImageFile),
    (re.compile(rb"RIFF.{4}WEBP", re.DOTALL), "WebP", WebPImagePlugin.WebPImageFile),
    (re.compile(rb"GIF8[79]a"), "GIF", GifImagePlugin.GifImageFile),
    (re.compile(rb"II[*+]\0|MM\0[*+]"), "TIFF", TiffImagePlugin.TiffImageFile),
    (re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0\0\0", re.DOTALL), "BMP", BmpImagePlugin.BmpImageFile),
)  # fmt: skip
_OTHER_IMAGES: tuple[tuple[re.Pattern[bytes], str], ...] = (
    (re.compile(rb".{4}ftyp(avif|avis|heic|heix|hevc|mif1|msf1)", re.DOTALL), "HEIF or AVIF"),
    (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "JPEG 2000"),
    (re.compile(rb"\xff\x0a|\0\0\0\x0cJXL "), "JPEG XL"),
    (re.compile(rb"8BPS"), "Photoshop"),
    (re.compile(rb"\0\0[\1\2]\0"), "icon"),
    (re.compile(rb"\x76\x2f\x31\x01"), "OpenEXR"),
    (re.compile(rb"\s*(<\?xml[^>]*>\s*)?(<!DOCTYPE svg[^>]*>\s*)?<svg"), "SVG"),
)
_SNIFFED_BYTES = 4096
_GREY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
_OPAQUE = ("1", "L", "P", "RGB", "RGBX", "CMYK", "YCbCr")
_TRANSPARENT = ("RGBA", "LA", "PA")
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_MOST_JPEG_SCANS = 100


class ImageLimits(Config):
    """What an image may measure to be taken; judged from its header, before a pixel is decoded."""

    min_side_px: int = Field(default=16, ge=1)
    """Shortest side an image may have."""
    max_pixels: int = Field(default=64_000_000, ge=1)
    """Most pixels (width × height); decoding needs 8 to 16 bytes for each at its peak."""
    max_aspect: float = Field(default=20.0, ge=1.0)
    """Largest ratio of the longer to the shorter side."""


class ImageRejected(Exception):  # noqa: N818 - a verdict on one file of many, not an error of the program
    """An image that is not taken.

    Attributes:
        reason: one of `pipelines.records.REASONS`.
        detail: what was found, for people; one line.
    """

    def __init__(self, reason: str, detail: str) -> None:
        if reason not in REASONS:
            raise ValueError(f"unknown reason {reason!r}")
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class DecodedImage:
    """A decoded image.

    Attributes:
        image: upright 8-bit RGB pixels; smaller than `width` × `height` if a reduced decode was allowed.
        width: full upright width in pixels.
        height: full upright height in pixels.
        orientation: EXIF orientation 1..8 that was applied.
        stored_size: width and height as stored, before the orientation was applied.
    """

    image: Image.Image
    width: int
    height: int
    orientation: int
    stored_size: tuple[int, int]


def decode(data: bytes, limits: ImageLimits, *, target_px: int | None = None) -> DecodedImage:
    """Decode one image.

    Args:
        data: the bytes of the file.
        limits: what an image may measure.
        target_px: a JPEG may be decoded at a half, quarter or eighth of its size (several times faster) as long as
            its shorter side stays at least this long. None: every pixel.

    Raises:
        ImageRejected: with the reason. Nothing else, whatever the bytes are.
    """
    if not data:
        raise ImageRejected("empty_file", "the file has no bytes")
    name, opener = _reader(data[:_SNIFFED_BYTES])
    try:
        with opener(io.BytesIO(data)) as image:
            _check_size(image.size, limits)
            return _load(image, name, data, target_px)
    except ImageRejected:
        raise
    except (
        Exception
    ) as error:  # Pillow's parsers raise nearly anything on hostile bytes; each means "not this file"
        if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
            raise ImageRejected("too_many_pixels", _one_line(error)) from error
        reason = "truncated" if _is_cut(name, data) else "corrupt"
        raise ImageRejected(reason, f"{name}: {_one_line(error)}") from error


def open_image(uri: str, sha256: str) -> Image.Image:
    """An image of a benchmark, upright 8-bit RGB, every pixel.

    Args:
        uri: where it lies.
        sha256: of its bytes when the benchmark was built.

    Raises:
        OacirError: it is gone, no longer that one, or cannot be decoded.
    """
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OacirError(f"{uri}: changed since the benchmark was built (another sha256); build it again")
    try:
        # what an image may measure was judged when the benchmark was built
        return decode(data, ImageLimits(min_side_px=1, max_pixels=2**40, max_aspect=2.0**40)).image
    except ImageRejected as error:
        raise OacirError(f"{uri}: cannot be decoded ({error}); build the benchmark again") from error


def upright_box(box: Box, stored_width: int, stored_height: int, orientation: int) -> Box | None:
    """A box of the stored image as a box of the upright image, clipped to it.

    Args:
        box: x1, y1, x2, y2 in pixels of the stored image, half-open.
        stored_width: width of the stored image in pixels.
        stored_height: height of the stored image in pixels.
        orientation: EXIF orientation 1..8.

    Returns:
        x1, y1, x2, y2 in pixels of the upright image, or None if nothing of the box lies inside the image.
    """
    w, h = float(stored_width), float(stored_height)
    x1, y1 = max(box[0], 0.0), max(box[1], 0.0)  # this order keeps a NaN, which is in no image
    x2, y2 = min(box[2], w), min(box[3], h)
    if not (x1 < x2 and y1 < y2):
        return None
    if orientation in (2, 3, 7, 8):  # mirrored along the stored x axis
        x1, x2 = w - x2, w - x1
    if orientation in (3, 4, 6, 7):  # mirrored along the stored y axis
        y1, y2 = h - y2, h - y1
    return (y1, x1, y2, x2) if orientation >= 5 else (x1, y1, x2, y2)


def stored_box(box: Box, width: int, height: int, orientation: int) -> Box:
    """A box of the upright image of (width, height) as a box of the image as it is stored: `upright_box` undone."""
    inverse = {6: 8, 8: 6}.get(orientation, orientation)
    found = upright_box(box, width, height, inverse)
    if found is None:
        raise ValueError(f"nothing of the box {box} lies in {width} x {height} px")
    return found


def turned(data: bytes) -> int:
    """The EXIF orientation 1..8 that `decode` applies to an image, from its header.

    Raises:
        ImageRejected: the bytes are of no format that is read.
    """
    _, opener = _reader(data[:_SNIFFED_BYTES])
    with opener(io.BytesIO(data)) as image:
        return _orientation(image)


def _reader(head: bytes) -> tuple[str, Opener]:
    for pattern, name, opener in _READERS:
        if pattern.match(head):
            return name, opener
    for pattern, name in _OTHER_IMAGES:
        if pattern.match(head):
            known = ", ".join(name for _, name, _ in _READERS)
            raise ImageRejected("unsupported_format", f"{name} content; read are {known}")
    raise ImageRejected("not_an_image", f"starts with {head[:16]!r}")


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    short, long = min(size), max(size)
    found = f"{size[0]} x {size[1]} px"
    if short * long > limits.max_pixels:
        raise ImageRejected("too_many_pixels", f"{found}, at most {limits.max_pixels:,} pixels are taken")
    if short < limits.min_side_px:
        # a strip is told from a speck: the longer side is what its owner looks at
        if long > limits.max_aspect * max(short, 1) and long >= limits.min_side_px:
            raise ImageRejected("extreme_aspect", f"{found}, at most {limits.max_aspect:g}:1 is taken")
        raise ImageRejected("too_small", f"{found}, the shorter side needs {limits.min_side_px} px")
    if long > limits.max_aspect * short:
        raise ImageRejected("extreme_aspect", f"{found}, at most {limits.max_aspect:g}:1 is taken")


def _load(image: ImageFile.ImageFile, name: str, data: bytes, target_px: int | None) -> DecodedImage:
    full = image.size
    if name == "PNG":
        # decoding does not look at the checksums, verifying does; it uses the file object up
        with PngImagePlugin.PngImageFile(io.BytesIO(data)) as checked:
            checked.verify()
    if name == "JPEG":
        # each scan of a progressive JPEG may touch every pixel in a few bytes: a small file could decode for minutes
        scans = data.count(b"\xff\xda")
        if scans > _MOST_JPEG_SCANS:
            raise ImageRejected("corrupt", f"JPEG: {scans} scans, at most {_MOST_JPEG_SCANS} are decoded")
        if target_px is not None and min(full) >= 2 * target_px:
            scale = min(full) // target_px
            image.draft(None, (full[0] // scale, full[1] // scale))  # None: the colour space stays what it is
    orientation = _orientation(image)
    image.load()
    rgb = _to_rgb(image)
    if name == "TIFF":  # Pillow turns a TIFF itself while loading it
        width, height = rgb.size
    else:
        width, height = full if orientation < 5 else full[::-1]
        rgb = rgb.transpose(_TURNS[orientation]) if orientation > 1 else rgb
    stored = (width, height) if orientation < 5 else (height, width)
    return DecodedImage(rgb, width, height, orientation, stored)


def _orientation(image: Image.Image) -> int:
    try:
        value = image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # broken EXIF says nothing about the pixels: the image is read as it is stored
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


def _to_rgb(image: Image.Image) -> Image.Image:
    if image.mode in _GREY_16:
        grey = np.asarray(image).astype(np.uint32)
        return Image.fromarray(((grey + 128) // 257).astype(np.uint8)).convert("RGB")
    if image.mode in _TRANSPARENT or (image.mode in _OPAQUE and "transparency" in image.info):
        seen = image.convert("RGBA")
        white = Image.new("RGB", seen.size, (255, 255, 255))
        white.paste(seen, mask=seen.getchannel("A"))
        return white
    if image.mode in _OPAQUE:
        return image.convert("RGB")
    raise ImageRejected("unsupported_format", f"samples of mode {image.mode}: no fixed way to 8-bit RGB")


def _is_cut(name: str, data: bytes) -> bool:
    """Whether the end that a whole file of this format has is missing."""
    if name == "JPEG":
        # a thumbnail has an end mark of its own, but before the last start of scan
        return data.rfind(b"\xff\xd9") <= data.rfind(b"\xff\xda")
    if name == "PNG":
        return b"IEND\xaeB`\x82" not in data
    if name == "WebP":
        return len(data) < 8 + int.from_bytes(data[4:8], "little")
    if name == "GIF":
        return not data.endswith(b";")
    if name == "BMP":
        return len(data) < int.from_bytes(data[2:6], "little")
    return False


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 200 else text[:199] + "…"
