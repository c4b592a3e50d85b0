"""Letters that a font lacks are never empty boxes: another font, a spelling, or a question mark that is explained."""

from __future__ import annotations

import pytest

from pipelines.retrieval import fonts
from pipelines.retrieval.fonts import lacking, lettering, own_font


def test_plain_english_is_drawn_in_pillows_own_font() -> None:
    told = lettering("Now show it at night, 100 %.", 17)
    assert (told.text, told.incomplete) == ("Now show it at night, 100 %.", False)
    assert told.font.getname() == own_font(17).getname()


def test_what_a_font_lacks_is_known() -> None:
    assert lacking("aβ b", own_font(17)) == {"β"}
    assert lacking("日 \n", own_font(17)) == {"日"}


@pytest.mark.parametrize(
    ("text", "told", "incomplete"),
    [
        ("adafocal: β = 19.98", "adafocal: beta = 19.98", False),
        ("Größe, čaj, œuvre – más", "Grosse, caj, ?uvre - mas", True),
        ("на пляже", "?? ?????", True),
        ("why? ok", "why? ok", False),  # a question mark of the text is not one of ours
    ],
)
def test_without_another_font_letters_are_spelled_or_marked(
    text: str, told: str, incomplete: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fonts, "INSTALLED", ())
    found = lettering(text, 17)
    assert (found.text, found.incomplete) == (told, incomplete)


def test_another_font_is_taken_where_it_has_more_of_the_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    poor, rich = own_font(17), own_font(19)  # stand-ins that differ in size alone
    monkeypatch.setattr(fonts, "INSTALLED", ("poor", "rich"))
    monkeypatch.setattr(fonts, "_installed", lambda name, size_px: {"poor": poor, "rich": rich}[name])
    monkeypatch.setattr(fonts, "lacking", lambda text, font: set() if font is rich else set(text) - {" "})
    found = lettering("на пляже", 17)
    assert found.font is rich
    assert (found.text, found.incomplete) == ("на пляже", False)
