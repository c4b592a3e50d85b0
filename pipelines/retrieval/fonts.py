"""Fonts of pictures: Pillow's own, a font of this machine where that one lacks letters, and words for what none has."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from PIL import ImageFont

INSTALLED = (
    "DejaVuSans.ttf", "NotoSans-Regular.ttf", "LiberationSans-Regular.ttf", "Arial Unicode.ttf", "Arial.ttf",
    "NotoSansCJK-Regular.ttc", "msgothic.ttc", "PingFang.ttc", "DroidSansFallback.ttf",
)  # fmt: skip
"""Fonts that a machine may have, asked in this order where Pillow's own lacks a letter."""
UNKNOWN = "?"
NOTE = f"{UNKNOWN} = a letter that no font here has; the search saw it as it was typed"
_PLAIN = {
    "ß": "ss",
    "æ": "ae",
    "Æ": "AE",
    "ø": "o",
    "Ø": "O",
    "ł": "l",
    "Ł": "L",
    "đ": "d",
    "–": "-",
    "—": "-",
}


@dataclass(frozen=True)
class Lettering:
    """A text as it can be drawn."""

    text: str
    font: ImageFont.FreeTypeFont
    incomplete: bool
    """Whether letters had to be drawn as UNKNOWN."""


def lettering(text: str, size_px: int) -> Lettering:
    """The text in the first font that has all its letters; else in the one that lacks fewest, those spelled out.

    Accents that a font lacks are left away, Greek letters are named (β → beta), all others are drawn as UNKNOWN.
    """
    best, gone = None, set(text)
    for font in _fonts(size_px):
        lacks = lacking(text, font)
        if best is None or len(lacks) < len(gone):
            best, gone = font, lacks
        if not gone:
            break
    assert best is not None  # Pillow's own is always there
    told = "".join(_spelled(letter, best) if letter in gone else letter for letter in text)
    return Lettering(told, best, told.count(UNKNOWN) > text.count(UNKNOWN))


def lacking(text: str, font: ImageFont.FreeTypeFont) -> set[str]:
    """Letters of a text that a font would draw as the empty box of what it does not know."""
    box = bytes(font.getmask("\uffff"))
    return {c for c in set(text) if not c.isspace() and c.isprintable() and bytes(font.getmask(c)) == box}


def own_font(size_px: int) -> ImageFont.FreeTypeFont:
    """Pillow's own font: the same everywhere, letters of English and little else."""
    from PIL import ImageFont

    font = ImageFont.load_default(size_px)
    if not isinstance(font, ImageFont.FreeTypeFont):
        raise RuntimeError(
            "Pillow was built without FreeType; install the Pillow wheel from the package index"
        )
    return font


def _fonts(size_px: int) -> Iterator[ImageFont.FreeTypeFont]:
    yield own_font(size_px)
    for name in INSTALLED:
        font = _installed(name, size_px)
        if font is not None:
            yield font


@cache
def _installed(name: str, size_px: int) -> ImageFont.FreeTypeFont | None:
    from PIL import ImageFont

    try:
        return ImageFont.truetype(name, size_px)
    except OSError:
        return None


def _spelled(letter: str, font: ImageFont.FreeTypeFont) -> str:
    """What stands for a letter that the font lacks."""
    plain = _PLAIN.get(letter) or "".join(
        c for c in unicodedata.normalize("NFKD", letter) if not unicodedata.combining(c)
    )
    name = unicodedata.name(letter, "")
    if name.startswith("GREEK ") and " LETTER " in name:
        plain = name.split(" LETTER ")[1].split(" WITH ")[0].lower()
    return plain if plain and not lacking(plain, font) else UNKNOWN
