from __future__ import annotations

import concurrent.futures
import io
import json
import resource
import struct
import subprocess
import sys
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, ImageOps

from training.images import Box, DecodedImage, ImageLimits, ImageRejected, decode, upright_box

# pytest replaces the warning filters that the module sets; that they hold is tested in a process of its own
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

LIMITS = ImageLimits()
ANY_SIZE = ImageLimits(min_side_px=1, max_aspect=1e9)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def photo(width: int = 96, height: int = 64) -> Image.Image:
    """A smooth picture whose four corners differ."""
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    levels = np.stack([255 * x / width, 255 * y / height, 128 + 100 * np.sin(x / 9)], axis=-1)
    return Image.fromarray(levels.astype(np.uint8))


def png(width: int, height: int, idat: bytes, depth: int = 8, colour: int = 2) -> bytes:
    """A PNG written by hand, its header true to what it says."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", idat) + chunk(b"IEND", b"")


def refusal(data: bytes, limits: ImageLimits = LIMITS) -> str:
    with pytest.raises(ImageRejected) as caught:
        decode(data, limits)
    assert caught.value.detail
    assert "\n" not in caught.value.detail
    return caught.value.reason


def mean_rgb(decoded: DecodedImage) -> np.ndarray[Any, Any]:
    return np.asarray(decoded.image, dtype=np.float64).reshape(-1, 3).mean(axis=0)


# --- the hostile files that nobody here made -------------------------------------------------------------------------


def test_every_nasty_file_is_taken_or_refused_as_expected(shared_dir: Path) -> None:
    folder = shared_dir / "data" / "nasty"
    expected = json.loads((folder / "expected.json").read_text())["files"]
    problems = []
    for name, rule in expected.items():
        if (folder / name).is_dir():
            continue
        try:
            problems += [
                f"{name}: {p}" for p in _departures(decode((folder / name).read_bytes(), LIMITS), rule)
            ]
        except ImageRejected as refused:
            allowed = {rule.get("may_reject"), rule["reason"] if rule["action"] != "load" else None}
            if refused.reason not in allowed:
                problems.append(f"{name}: refused as {refused}")
    assert problems == []
    assert len(expected) >= 29


def _departures(decoded: DecodedImage, rule: dict[str, Any]) -> list[str]:
    if rule["action"] == "reject":
        return [f"taken, expected {rule['reason']}"]
    found = []
    if decoded.image.mode != "RGB" or (decoded.width, decoded.height) != (rule["width"], rule["height"]):
        found.append(f"{decoded.image.mode} {decoded.width} x {decoded.height}")
    if decoded.image.size != (rule["width"], rule["height"]):
        found.append(f"pixels {decoded.image.size}")
    if "stored_size" in rule and list(decoded.stored_size) != rule["stored_size"]:
        found.append(f"stored {decoded.stored_size}")
    if "mean_rgb" in rule and np.abs(mean_rgb(decoded) - rule["mean_rgb"]).max() > rule["mean_tol"]:
        found.append(f"mean {mean_rgb(decoded)}")
    if "top_quarter_mean_rgb" in rule:
        top = np.asarray(decoded.image, dtype=np.float64)[: decoded.height // 4].reshape(-1, 3).mean(axis=0)
        if np.abs(top - rule["top_quarter_mean_rgb"]).max() > rule["mean_tol"]:
            found.append(f"top quarter {top}")
    return found


# --- pixels ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "tolerance"), [("PNG", 0), ("BMP", 0), ("TIFF", 0), ("JPEG", 2), ("WEBP", 3), ("GIF", 12)]
)
def test_each_format_gives_its_pixels_under_any_name(kind: str, tolerance: float) -> None:
    decoded = decode(encoded(photo(), kind), LIMITS)
    assert (decoded.image.mode, decoded.image.size, decoded.orientation) == ("RGB", (96, 64), 1)
    difference = np.asarray(decoded.image, dtype=np.float64) - np.asarray(photo(), dtype=np.float64)
    assert np.abs(difference).mean() <= tolerance


def test_sixteen_bit_grey_is_scaled_not_clipped() -> None:
    levels = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for kind in ("PNG", "TIFF"):
        decoded = decode(encoded(Image.fromarray(levels), kind), LIMITS)
        assert np.array_equal(np.asarray(decoded.image)[..., 0], np.rint(levels / 257.0))


def test_sixteen_bit_colour_keeps_its_level() -> None:
    row = b"\0" + struct.pack(">HHH", 0x4000, 0x8000, 0xC000) * 20
    decoded = decode(png(20, 20, zlib.compress(row * 20), depth=16), LIMITS)
    assert mean_rgb(decoded) == pytest.approx([0x40, 0x80, 0xC0], abs=1)


def test_transparency_is_composited_on_white() -> None:
    red = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    red.paste((255, 0, 0, 128), (16, 0, 32, 32))
    for kind in ("PNG", "TIFF"):
        decoded = decode(encoded(red, kind), LIMITS).image
        assert decoded.getpixel((4, 4)) == (255, 255, 255)
        assert decoded.getpixel((20, 4)) == pytest.approx((255, 127, 127), abs=1)
    grey = decode(encoded(red.convert("LA"), "PNG"), LIMITS).image
    assert grey.getpixel((4, 4)) == (255, 255, 255)
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([9, 9, 9, 0, 0, 200])
    palette.paste(0, (0, 0, 16, 32))
    shown = decode(encoded(palette, "PNG", transparency=0), LIMITS).image
    assert (shown.getpixel((4, 4)), shown.getpixel((20, 4))) == ((255, 255, 255), (0, 0, 200))
    key = decode(encoded(Image.new("RGB", (32, 32), (1, 2, 3)), "PNG", transparency=(1, 2, 3)), LIMITS).image
    assert key.getpixel((4, 4)) == (255, 255, 255)


def test_cmyk_of_adobe_is_not_inverted() -> None:
    ink = Image.new("CMYK", (32, 32), (0, 255, 255, 0))  # magenta and yellow ink are red
    for kind in ("JPEG", "TIFF"):
        assert mean_rgb(decode(encoded(ink, kind), LIMITS)) == pytest.approx([255, 0, 0], abs=4)


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (32, 32), c) for c in ((200, 0, 0), (0, 200, 0))]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {})):
        data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], duration=50, **options)
        assert mean_rgb(decode(data, LIMITS)) == pytest.approx([200, 0, 0], abs=2)


def test_floating_point_samples_have_no_white() -> None:
    assert refusal(encoded(Image.new("F", (32, 32), 0.5), "TIFF")) == "unsupported_format"


# --- orientation -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    # Pillow's TIFF writer takes the tag from tiffinfo
    options: dict[str, Any] = {"tiffinfo": {274: orientation}} if kind == "TIFF" else {"exif": exif.tobytes()}
    decoded = decode(encoded(photo(), kind, **options), LIMITS)
    tagged = photo()
    tagged.getexif()[ExifTags.Base.Orientation] = orientation
    upright = ImageOps.exif_transpose(tagged)
    assert decoded.orientation == orientation
    assert decoded.stored_size == (96, 64)
    assert (decoded.width, decoded.height) == decoded.image.size == upright.size
    difference = np.asarray(decoded.image, dtype=np.float64) - np.asarray(upright, dtype=np.float64)
    assert np.abs(difference).mean() < 3


@given(
    orientation=st.integers(1, 8),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    corners=st.tuples(*[st.integers(-10, 50)] * 4),
)
def test_a_box_turns_as_its_pixels_do(
    orientation: int, size: tuple[int, int], corners: tuple[int, int, int, int]
) -> None:
    x1, x2 = sorted(corners[:2])
    y1, y2 = sorted(corners[2:])
    mask = np.zeros((size[1], size[0]), dtype=np.uint8)
    mask[max(0, y1) : max(0, y2), max(0, x1) : max(0, x2)] = 255
    drawn = Image.fromarray(mask)
    drawn.getexif()[ExifTags.Base.Orientation] = orientation
    turned = ImageOps.exif_transpose(drawn)
    assert upright_box((x1, y1, x2, y2), *size, orientation) == turned.getbbox()


def test_broken_exif_leaves_the_pixels_as_stored() -> None:
    data = encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7f")
    assert decode(data, LIMITS).orientation == 1
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 77
    assert decode(encoded(photo(), "JPEG", exif=exif.tobytes()), LIMITS).orientation == 1


# --- a reduced decode ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target_px", "side"), [(None, 480), (400, 480), (241, 480), (240, 240), (100, 120), (10, 60)]
)
def test_a_reduced_decode_keeps_the_target_and_tells_the_full_size(target_px: int | None, side: int) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    decoded = decode(encoded(photo(640, 480), "JPEG", exif=exif.tobytes()), LIMITS, target_px=target_px)
    assert (decoded.width, decoded.height, decoded.stored_size) == (480, 640, (640, 480))
    assert decoded.image.size == (side, side * 4 // 3)
    whole = (
        photo(640, 480).transpose(Image.Transpose.ROTATE_270).resize(decoded.image.size, Image.Resampling.BOX)
    )
    difference = np.asarray(decoded.image, dtype=np.float64) - np.asarray(whole, dtype=np.float64)
    assert np.abs(difference).mean() < 3


def test_other_formats_are_decoded_whole() -> None:
    assert decode(encoded(photo(640, 480), "PNG"), LIMITS, target_px=10).image.size == (640, 480)


# --- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty_file"),
        (b"this is a text", "not_an_image"),
        (b"<!DOCTYPE html><html><body>404</body></html>", "not_an_image"),
        (b"BM is how this text begins, nothing more than that", "not_an_image"),
        (b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'/>", "unsupported_format"),
        (b"\0\0\0\x20ftypheic" + bytes(64), "unsupported_format"),
        (b"8BPS" + bytes(64), "unsupported_format"),
        (b"\xff\xd8\xff\xe0", "truncated"),
        (b"\x89PNG\r\n\x1a\n", "truncated"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, reason: str) -> None:
    assert refusal(data) == reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.3, 0.6, 0.9])
def test_a_cut_file_is_truncated(kind: str, share: float) -> None:
    rng = np.random.default_rng(0)
    data = encoded(Image.fromarray(rng.integers(0, 255, (80, 80, 3), dtype=np.uint8)), kind)
    assert refusal(data[: int(len(data) * share)]) == "truncated"


def test_a_checksum_that_does_not_match_is_corrupt() -> None:
    # stored, not compressed: the flipped byte decodes well, only the checksum tells
    data = bytearray(png(32, 32, zlib.compress(bytes(32 * 97), 0)))
    data[len(data) // 2] ^= 1
    assert refusal(bytes(data)) == "corrupt"


def test_junk_after_the_end_does_no_harm() -> None:
    for kind in ("JPEG", "PNG", "GIF", "WEBP", "BMP"):
        whole = encoded(photo(), kind)
        assert (
            decode(whole + b"\xff\xda junk" * 99, LIMITS).image.tobytes()
            == decode(whole, LIMITS).image.tobytes()
        )


@pytest.mark.parametrize(
    ("width", "height", "reason"),
    [
        (15, 400, "extreme_aspect"), (15, 40, "too_small"), (1, 1, "too_small"), (16, 16, None), (16, 320, None),
        (16, 321, "extreme_aspect"), (330, 16, "extreme_aspect"),
    ],
)  # fmt: skip
def test_sizes_are_judged_by_the_limits(width: int, height: int, reason: str | None) -> None:
    data = encoded(Image.new("RGB", (width, height)), "PNG")
    if reason is None:
        assert decode(data, LIMITS).image.size == (width, height)
    else:
        assert refusal(data) == reason
    assert decode(data, ANY_SIZE).image.size == (width, height)


def test_the_pixel_limit_is_ours_alone() -> None:
    data = encoded(Image.new("1", (20, 20)), "PNG")
    assert decode(data, ImageLimits(max_pixels=400)).width == 20
    assert refusal(data, ImageLimits(max_pixels=399)) == "too_many_pixels"
    long = png(200_000, 1000, zlib.compress(b""))  # 200 MP: Pillow's own limit would refuse it, ours is asked
    assert refusal(long, ImageLimits(max_pixels=300_000_000, max_aspect=500)) in ("truncated", "corrupt")


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "JPEG", "TIFF", "WEBP"])
def test_a_lying_header_costs_neither_memory_nor_time(kind: str) -> None:
    size = 16_000
    if kind == "PNG":
        data = png(size, size, zlib.compress(bytes(1000)))
    elif kind == "GIF":
        data = (
            b"GIF89a"
            + struct.pack("<HH", size, size)
            + b"\0\0\0"
            + b","
            + struct.pack("<HHHH", 0, 0, size, size)
            + b"\0;"
        )
    else:
        small = encoded(Image.new("RGB", (16, 16)), kind)
        data = small.replace(
            *{
                "BMP": (struct.pack("<ii", 16, 16), struct.pack("<ii", size, size)),
                "JPEG": (struct.pack(">HH", 16, 16), struct.pack(">HH", size, size)),
                "TIFF": (struct.pack("<HHII", 256, 4, 1, 16), struct.pack("<HHII", 256, 4, 1, size)),
                "WEBP": (struct.pack("<HH", 16, 16), struct.pack("<HH", 16_383, 16_383)),
            }[kind],
            1,
        )
        if kind == "TIFF":
            data = data.replace(struct.pack("<HHII", 257, 4, 1, 16), struct.pack("<HHII", 257, 4, 1, size), 1)
        assert data != small
    before_kb, began = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic()
    assert refusal(data) == "too_many_pixels"
    assert time.monotonic() - began < 30  # to decode it takes minutes
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before_kb < 100_000


def test_a_jpeg_of_endless_scans_is_refused_at_once() -> None:
    data = encoded(photo(), "JPEG", progressive=True)
    last = data.rfind(b"\xff\xda")
    scan = data[last : data.rfind(b"\xff\xd9")]
    assert refusal(data[:last] + scan * 5000 + b"\xff\xd9") == "corrupt"


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damage_is_a_verdict_never_a_crash(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP"]))
    whole = bytearray(_SAMPLES[kind])
    for position, byte in data.draw(
        st.lists(st.tuples(st.integers(0, len(whole) - 1), st.integers(0, 255)), max_size=8)
    ):
        whole[position] = byte
    cut = data.draw(st.integers(0, len(whole)))
    try:
        decoded = decode(
            bytes(whole[:cut]),
            ImageLimits(max_pixels=1_000_000),
            target_px=data.draw(st.sampled_from([None, 16])),
        )
    except ImageRejected:
        return
    assert decoded.image.mode == "RGB"
    assert decoded.width * decoded.height <= 1_000_000


_SAMPLES = {k: encoded(photo(40, 30), k) for k in ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP")}


def test_threads_get_the_same_pixels() -> None:
    files = [encoded(photo(90 + i, 70), k) for i in range(8) for k in ("JPEG", "PNG", "GIF")] + [
        b"no image"
    ] * 4

    def outcome(data: bytes) -> bytes | str:
        try:
            return decode(data, LIMITS).image.tobytes()
        except ImageRejected as refused:
            return refused.reason

    alone = [outcome(f) for f in files]
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(outcome, files * 4)) == alone * 4


def test_no_warning_and_no_changed_setting_leaks(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(
        encoded(Image.new("1", (10_000, 9_500)), "PNG")
    )  # Pillow warns from 89 MP
    (tmp_path / "exif.jpg").write_bytes(
        encoded(photo(), "JPEG", exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01")
    )
    code = f"""
import PIL.Image, PIL.ImageFile
before = PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES
from pathlib import Path
from training.images import *
for name in ("bomb.png", "exif.jpg"):
    try:
        print(decode((Path({str(tmp_path)!r}) / name).read_bytes(), ImageLimits()).width)
    except ImageRejected as refused:
        print(refused.reason)
assert before == (PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES)
"""
    done = subprocess.run(
        [sys.executable, "-W", "always", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["too_many_pixels", "96"]
    assert "PIL" not in done.stderr


def test_boxes_outside_or_empty_are_none() -> None:
    nothing: list[Box] = [(-5, -5, 0, 9), (10, 2, 20, 5), (3, 3, 3, 5), (5, 5, 2, 8), (float("nan"), 0, 5, 5)]
    assert [upright_box(b, 10, 10, 6) for b in nothing] == [None] * len(nothing)
    assert upright_box((-5.0, 2.5, 4.0, 50.0), 10, 20, 1) == (0.0, 2.5, 4.0, 20.0)
