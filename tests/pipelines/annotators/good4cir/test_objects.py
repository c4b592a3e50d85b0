"""What differs between two lists, which sentences they bear out, and the text made of them."""

from __future__ import annotations

import pytest

from pipelines.annotators.chat.answers import Difference, Listed
from pipelines.annotators.good4cir.objects import borne_out, changes, compose


def listed(**entries: list[str]) -> list[Listed]:
    return [Listed(name=name, descriptors=words) for name, words in entries.items()]


def test_entries_come_go_and_change_and_equal_words_are_no_change() -> None:
    before = listed(lamp=["brass", "tall"], rug=["red"], view=["from above"], cat=["asleep"])
    after = listed(view=["from the side"], Lamp=["Tall", "brass"], plant=["green"], rug=["red"])
    assert changes(before, after) == {"view": "changed", "plant": "added", "cat": "gone"}
    assert changes(before, before) == {}


def test_entries_of_one_name_count_together() -> None:
    man, woman = Listed(name="person", descriptors=["a man"]), Listed(name="person", descriptors=["a woman"])
    assert changes([man, woman], [woman, man]) == {}
    assert changes([man, woman], [man]) == {"person": "changed"}


def test_sentences_about_what_did_not_change_or_is_not_there_are_left_out() -> None:
    said = [("The Lamp", "Light it."), ("lamp", "Turn it on."), ("dog", "Add a dog."), ("lamp", " ")]
    told = borne_out([Difference(object=o, sentence=s) for o, s in said], {"lamp": "changed"})
    assert [d.sentence for d in told.differences] == ["Turn it on."]
    assert told.left_out == 3


@pytest.mark.parametrize(
    ("number", "max_words", "text"),
    [
        (1, 30, "Put it on a rug."),
        (2, 30, "Put it on a rug. Have the tall brass lamp lit beside it."),
        (3, 30, "Put it on a rug. Have the tall brass lamp lit beside it. Show rain."),
        (9, 30, "Put it on a rug. Have the tall brass lamp lit beside it. Show rain."),
        (3, 7, "Put it on a rug. Show rain."),  # the second does not fit and is passed over
        (3, 1, "Put it on a rug."),  # none fits: the gate refuses it
    ],
)
def test_a_text_has_so_many_sentences_as_are_drawn_and_fit(number: int, max_words: int, text: str) -> None:
    sentences = ["put it on a rug", " Have the tall brass lamp\nlit beside it. ", "Show rain."]
    made, taken = compose(sentences, number, max_words)
    assert made == text
    assert taken == text.count(".")
