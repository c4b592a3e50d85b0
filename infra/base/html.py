"""The page kit: one self-contained HTML file, escaped by default, that needs no network, and no script to be read."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from markupsafe import Markup
    from PIL import Image

JPEG_LEVELS = ((152, 80), (132, 76), (112, 72), (96, 68), (80, 62), (64, 55), (48, 50))
"""Longest side in pixels and JPEG quality of thumbnails, from generous to frugal (see `thumbnail_level`)."""


def render(template: str, **values: Any) -> Markup:
    """What a template (a file name in `infra/base/templates`) makes of the values: markup, safe to nest in another.

    Every value that is not itself such markup is escaped; an unknown name in a template is an error, never a blank.
    """
    import jinja2
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("infra.base", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return Markup(environment.get_template(template).render(**values))


def source(name: str) -> Markup:
    """A script of `infra/base/templates` as it is, for a page that allows it by the hash of its bytes."""
    from importlib import resources

    from markupsafe import Markup

    return Markup((resources.files("infra.base") / "templates" / name).read_text(encoding="utf-8"))


def data_uri(data: bytes, mime: str) -> str:
    """Bytes as a `data:` URI, which a page carries in itself."""
    return f"data:{mime};base64,{base64.b64encode(data).decode('ascii')}"


def jpeg(image: Image.Image, side_px: int, quality: int) -> bytes:
    """The image as JPEG with its longest side at most `side_px`; never enlarged."""
    small = image.convert("RGB")
    small.thumbnail((side_px, side_px))
    stream = io.BytesIO()
    small.save(stream, "JPEG", quality=quality, optimize=True)
    return stream.getvalue()


def thumbnail_level(
    samples: list[Image.Image],
    count: int,
    budget_bytes: int,
    levels: Sequence[tuple[int, int]] = JPEG_LEVELS,
) -> tuple[int, int]:
    """The most generous (side, quality) at which `count` images like the samples fit the budget as data-URIs."""
    for side_px, quality in levels:
        sizes = [len(jpeg(image, side_px, quality)) for image in samples]
        if sum(sizes) / max(1, len(sizes)) * count * 4 / 3 <= budget_bytes:
            return side_px, quality
    return levels[-1]
