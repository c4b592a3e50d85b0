"""The page kit: nothing of a value becomes markup, thumbnails shrink to a budget."""

from __future__ import annotations

import base64
import io

import jinja2
import numpy as np
import pytest
from PIL import Image

from infra.base.html import JPEG_LEVELS, data_uri, jpeg, render, thumbnail_level

HOSTILE = '"><script>alert(1)</script>&'


def noise(side: int) -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 255, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def test_values_are_escaped_and_nested_markup_is_not_escaped_twice() -> None:
    inner = render("histogram.svg.jinja", **histogram_values(HOSTILE))
    assert "<script" not in inner
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&amp;" in inner
    assert f"{inner}" in render_inside(inner)


def test_a_missing_value_is_an_error() -> None:
    values = histogram_values("x")
    del values["bars"]
    with pytest.raises(jinja2.UndefinedError):
        render("histogram.svg.jinja", **values)


def test_data_uri_holds_the_bytes() -> None:
    head, _, tail = data_uri(b"\x00\xffabc", "image/png").partition(",")
    assert head == "data:image/png;base64"
    assert base64.b64decode(tail) == b"\x00\xffabc"


def test_jpeg_shrinks_but_never_enlarges() -> None:
    assert Image.open(io.BytesIO(jpeg(noise(300).resize((300, 150)), 100, 80))).size == (100, 50)
    assert Image.open(io.BytesIO(jpeg(noise(20), 100, 80))).size == (20, 20)


def test_level_is_the_first_that_fits() -> None:
    samples = [noise(160)]
    assert thumbnail_level(samples, 1, 10**9) == JPEG_LEVELS[0]
    for level in JPEG_LEVELS:
        need = len(jpeg(samples[0], *level)) * 4 / 3 * 50
        assert thumbnail_level(samples, 50, int(need) + 1) == level
    assert thumbnail_level(samples, 50, 0) == JPEG_LEVELS[-1]


def histogram_values(title: str) -> dict[str, object]:
    from infra.base.charts import _Frame

    return {
        "title": title,
        "frame": _Frame((0, 1), (0, 1)),
        "x": "x",
        "y": "y",
        "x_marks": [],
        "y_marks": [],
        "bars": [],
        "colour": 0,
    }


def render_inside(inner: object) -> str:
    frame = histogram_values("outer") | {"x": inner}
    return render("histogram.svg.jinja", **frame)
