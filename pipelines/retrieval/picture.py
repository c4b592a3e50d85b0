"""Pictures of a query: the reference with its box, the sentence, and the ranked images with coloured borders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from pipelines.retrieval.fonts import NOTE, lettering, own_font

if TYPE_CHECKING:
    from PIL import Image, ImageFont

Verdict = Literal["target", "instance", "other", "unknown"]
COLOURS: dict[Verdict, str] = {
    "target": "#1a9641",
    "instance": "#f2b705",
    "other": "#d7191c",
    "unknown": "#8a8f98",
}
"""Border of a ranked image: the target, another image of the right instance, something else, no truth known."""
WORDS: dict[Verdict, str] = {
    "target": "target",
    "instance": "right instance",
    "other": "other",
    "unknown": "",
}
BOX_COLOUR = "#ff2d95"
PAPER, INK, FAINT = "#ffffff", "#14171c", "#5b616b"
MARGIN_PX, GAP_PX, BORDER_PX = 24, 14, 5
REFERENCE_PX, THUMB_PX, COLUMNS = 300, 150, 5


@dataclass(frozen=True)
class Candidate:
    """One ranked image of a picture."""

    image: Image.Image
    caption: str
    verdict: Verdict = "unknown"


def with_box(image: Image.Image, box: Sequence[float], width_px: int | None = None) -> Image.Image:
    """A copy of the image with the box (x1, y1, x2, y2 in its pixels, half-open) drawn inside its own edges.

    The line is `width_px` wide, by default a hundredth of the longest side and at least 2.
    """
    from PIL import ImageDraw

    drawn = image.convert("RGB")
    line = width_px or max(2, round(max(image.size) / 100))
    x1, y1 = (max(0, int(v)) for v in box[:2])
    x2, y2 = min(image.width, round(box[2])) - 1, min(image.height, round(box[3])) - 1
    ImageDraw.Draw(drawn).rectangle((x1, y1, max(x1, x2), max(y1, y2)), outline=BOX_COLOUR, width=line)
    return drawn


def scaled_with_box(image: Image.Image, box: Sequence[float] | None, side_px: int) -> Image.Image:
    """The image scaled to a longest side of `side_px`, a box drawn on it afterwards so that its line stays crisp."""
    from PIL import Image as Images

    scale = side_px / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    small = image.convert("RGB").resize(size, Images.Resampling.LANCZOS)
    return small if box is None else with_box(small, [v * scale for v in box], max(3, side_px // 90))


def draw_query(
    reference: Image.Image,
    box: Sequence[float] | None,
    text: str,
    candidates: Sequence[Candidate],
    *,
    target: Image.Image | None = None,
    title: str = "",
) -> Image.Image:
    """One picture of a query and its answer.

    Left the reference with its box, the sentence under it and, where it is known, the target; right the candidates,
    best first, five a row, each with its caption and a border in the colour of its verdict.
    """
    from PIL import Image as Images
    from PIL import ImageDraw

    small = own_font(13)
    told, heading = lettering(text, 17), lettering(title, 20)
    captions = [lettering(f"{i + 1}. {c.caption}", 13) for i, c in enumerate(candidates)]
    lines = wrap(told.text, told.font, REFERENCE_PX)
    incomplete = any(one.incomplete for one in (told, heading, *captions))
    note = wrap(NOTE, small, REFERENCE_PX) if incomplete else []
    known = any(c.verdict != "unknown" for c in candidates)
    verdicts = [v for v in COLOURS if v != "unknown"] if known else []
    top = MARGIN_PX + (34 if title else 0)
    rows = max(1, -(-len(candidates) // COLUMNS))
    cell_px = THUMB_PX + 2 * BORDER_PX + 22
    left_px = REFERENCE_PX + 26 + 24 * len(lines) + 18 * len(note)
    left_px += THUMB_PX + 40 if target is not None else 0
    right_px = 26 + rows * (cell_px + GAP_PX) + (24 if verdicts else 0)
    grid_x = MARGIN_PX + REFERENCE_PX + 2 * GAP_PX + 8
    width = grid_x + COLUMNS * (THUMB_PX + 2 * BORDER_PX) + (COLUMNS - 1) * GAP_PX + MARGIN_PX
    picture = Images.new("RGB", (width, top + max(left_px, right_px) + MARGIN_PX), PAPER)
    draw = ImageDraw.Draw(picture)
    if title:
        draw.text((MARGIN_PX, MARGIN_PX - 4), heading.text, INK, heading.font)

    y = top
    draw.text((MARGIN_PX, y), "reference and its box" if box is not None else "reference", FAINT, small)
    shown = scaled_with_box(reference, box, REFERENCE_PX)
    picture.paste(shown, (MARGIN_PX, y + 20))
    y += 20 + shown.height + 12
    for line in lines:
        draw.text((MARGIN_PX, y), line, INK, told.font)
        y += 24
    for line in note:
        draw.text((MARGIN_PX, y), line, FAINT, small)
        y += 18
    if target is not None:
        draw.text((MARGIN_PX, y + 12), "target", FAINT, small)
        _paste_bordered(picture, target, (MARGIN_PX, y + 32), COLOURS["target"])

    draw.text((grid_x, top), "ranked images, best first", FAINT, small)
    for index, candidate in enumerate(candidates):
        row, column = divmod(index, COLUMNS)
        x = grid_x + column * (THUMB_PX + 2 * BORDER_PX + GAP_PX)
        y = top + 20 + row * (cell_px + GAP_PX)
        _paste_bordered(picture, candidate.image, (x, y), COLOURS[candidate.verdict])
        caption = fit(captions[index].text, captions[index].font, THUMB_PX)
        draw.text((x, y + THUMB_PX + 2 * BORDER_PX + 4), caption, INK, captions[index].font)
    x, y = grid_x, top + 20 + rows * (cell_px + GAP_PX) + 2
    for verdict in verdicts:
        draw.rectangle((x, y, x + 13, y + 13), fill=COLOURS[verdict])
        draw.text((x + 20, y - 1), WORDS[verdict], INK, small)
        x += 20 + int(small.getlength(WORDS[verdict])) + 24
    return picture


def wrap(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """The text in lines no wider than `width_px`; a word that alone is wider is broken."""
    lines: list[str] = []
    for word in text.split():
        joined = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(joined) <= width_px:
            lines[-1] = joined
            continue
        while font.getlength(word) > width_px:
            cut = next(n for n in range(len(word), 0, -1) if n == 1 or font.getlength(word[:n]) <= width_px)
            lines.append(word[:cut])
            word = word[cut:]
        if word:
            lines.append(word)
    return lines


def _paste_bordered(picture: Image.Image, image: Image.Image, at: tuple[int, int], colour: str) -> None:
    """The whole image in a square of THUMB_PX with a border of BORDER_PX around it; at is the border's corner."""
    from PIL import Image as Images
    from PIL import ImageDraw

    side = THUMB_PX + 2 * BORDER_PX
    ImageDraw.Draw(picture).rectangle((at[0], at[1], at[0] + side - 1, at[1] + side - 1), fill=colour)
    scale = THUMB_PX / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    square = Images.new("RGB", (THUMB_PX, THUMB_PX), "#eceef1")
    small = image.convert("RGB").resize(size, Images.Resampling.LANCZOS)
    square.paste(small, ((THUMB_PX - size[0]) // 2, (THUMB_PX - size[1]) // 2))
    picture.paste(square, (at[0] + BORDER_PX, at[1] + BORDER_PX))


def fit(text: str, font: ImageFont.FreeTypeFont, width_px: int) -> str:
    """The text, its middle left out where it is wider: rank and score at its front, digits at its end tell it apart."""
    if font.getlength(text) <= width_px:
        return text
    for kept in range(len(text) - 1, 1, -1):
        short = text[: kept // 2] + "…" + text[-(kept - kept // 2) :]
        if font.getlength(short) <= width_px:
            return short
    return "…"
