"""Pictures: boxes where they belong, borders in the colour of the verdict, texts that fit."""

from __future__ import annotations

import pytest
from PIL import Image

from pipelines.retrieval import fonts
from pipelines.retrieval.fonts import own_font
from pipelines.retrieval.picture import (
    BORDER_PX,
    BOX_COLOUR,
    COLOURS,
    THUMB_PX,
    Candidate,
    draw_query,
    fit,
    scaled_with_box,
    with_box,
    wrap,
)

GREY = (120, 120, 120)


def plain(size: tuple[int, int] = (100, 80)) -> Image.Image:
    return Image.new("RGB", size, GREY)


def rgb(colour: str) -> tuple[int, ...]:
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_the_line_lies_inside_the_half_open_box_and_the_image_is_untouched() -> None:
    image = plain()
    drawn = with_box(image, (10, 20, 50, 60), 1)
    marked = {(x, y) for x in range(100) for y in range(80) if drawn.getpixel((x, y)) == rgb(BOX_COLOUR)}
    edge = {(x, y) for x in range(10, 50) for y in range(20, 60) if x in (10, 49) or y in (20, 59)}
    assert marked == edge
    assert image.getcolors() == [(8000, GREY)]


@pytest.mark.parametrize("box", [(0, 0, 100, 80), (90.5, 70.2, 100, 80), (5, 5, 5.2, 5.2)])
def test_a_box_at_the_edge_or_tiny_is_drawn(box: tuple[float, ...]) -> None:
    drawn = with_box(plain(), box, 1)
    assert rgb(BOX_COLOUR) in {colour for _, colour in drawn.getcolors() or []}


def test_scaling_moves_the_box() -> None:
    drawn = scaled_with_box(plain((100, 50)), (50, 25, 100, 50), 200)
    assert drawn.size == (200, 100)
    assert drawn.getpixel((101, 51)) == rgb(BOX_COLOUR)
    assert drawn.getpixel((97, 47)) == GREY


def test_every_candidate_has_a_border_of_its_verdict() -> None:
    verdicts = ["target", "instance", "other", "unknown", "other", "instance", "target"]
    candidates = [Candidate(plain((80, 80)), "0.5", v) for v in verdicts]  # type: ignore[arg-type]
    picture = draw_query(plain(), (10, 10, 40, 40), "on a beach", candidates)
    side = THUMB_PX + 2 * BORDER_PX
    for verdict in COLOURS:
        count = sum(n for n, colour in picture.getcolors(1 << 24) or [] if colour == rgb(COLOURS[verdict]))
        squares = verdicts.count(verdict)
        legend = 0 if verdict == "unknown" else 14 * 14
        # antialiased text may hit a colour by chance, a border never misses it
        assert count == pytest.approx(squares * (side**2 - THUMB_PX**2) + legend, abs=30)


def test_the_picture_grows_with_text_target_and_rows() -> None:
    one = draw_query(plain(), None, "short", [Candidate(plain(), "a")])
    rows = draw_query(plain(), None, "short", [Candidate(plain(), "a")] * 11)
    long = draw_query(plain(), None, "long " * 200, [Candidate(plain(), "a")], target=plain())
    assert one.width == rows.width == long.width
    assert one.height < rows.height
    assert one.height < long.height
    assert rgb(COLOURS["target"]) in {c for _, c in long.getcolors(1 << 24) or []}


def test_a_long_caption_keeps_its_rank_and_the_digits_that_tell_instances_apart() -> None:
    font = own_font(13)
    captions = [fit(f"1. 0.842  landmark-of-the-world-000{n}", font, THUMB_PX) for n in (41, 42)]
    for caption, digits in zip(captions, ("0041", "0042"), strict=True):
        assert caption.startswith("1. 0.842")
        assert caption.endswith(digits)
        assert "…" in caption
        assert THUMB_PX - 12 < font.getlength(caption) <= THUMB_PX
    assert fit("short", font, THUMB_PX) == "short"
    assert fit("wide", font, 1) == "…"


def test_a_text_that_no_font_has_is_drawn_with_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fonts, "INSTALLED", ())
    plain_text = draw_query(plain(), None, "am Strand", [])
    noted = draw_query(plain(), None, "浜辺で", [])
    assert noted.height - plain_text.height in (18, 36, 54)  # lines of the note


def test_wrapped_lines_fit_and_lose_no_letter() -> None:
    font = own_font(17)
    text = "Put it on a sandy beach " + "w" * 120 + " in the warm light"
    lines = wrap(text, font, 300)
    assert all(font.getlength(line) <= 300 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrap("", font, 300) == []
