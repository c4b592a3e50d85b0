"""Perturbed texts: what changes, how much of it, and that it is the same for the same seed."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.retrieval.robustness.texts import TEXTS, dropped_words, telegraphic, typos, word_order

TEXT = "put the red shoe on a wooden table beside the window at night"


@pytest.mark.parametrize(("share", "changed"), [(0.01, 1), (0.25, 3), (1.0, 12)])
def test_typos_change_so_many_words_by_one_letter(share: float, changed: int) -> None:
    for seed in range(20):
        words = typos(TEXT, share, random.Random(seed)).split()
        pairs = list(zip(words, TEXT.split(), strict=True))
        assert sum(a != b for a, b in pairs) == changed  # "a" is too short to be told when it is wrong
        assert all(abs(len(a) - len(b)) <= 1 for a, b in pairs)


def test_every_kind_of_typo_happens() -> None:
    found = {typos("shoe", 1, random.Random(seed)) for seed in range(200)}
    assert {"hsoe", "sho", "shooe", "ahoe"} <= found
    assert "shoe" not in found


def test_words_are_left_out_but_never_all() -> None:
    words = dropped_words(TEXT, 0.25, random.Random(1)).split()
    assert len(words) == 10
    rest = iter(TEXT.split())
    assert all(word in rest for word in words)  # in their order
    assert dropped_words("night", 1.0, random.Random(0)) == "night"
    assert len(dropped_words("at night", 1.0, random.Random(0)).split()) == 1


def test_words_change_places() -> None:
    words = word_order("a b c d e f g h i j", 0.3, random.Random(2)).split()
    assert sorted(words) == list("abcdefghij")
    assert sum(a != b for a, b in zip(words, "abcdefghij", strict=True)) == 3
    assert word_order("night falls", 0.1, random.Random(0)) == "falls night"
    assert word_order("night", 1.0, random.Random(0)) == "night"


def test_telegraphic() -> None:
    assert telegraphic(TEXT, 0.2, random.Random(0)) == "put red shoe wooden table beside window night"
    assert telegraphic("It is on the.", 0.2, random.Random(0)) == "It is on the."


@settings(max_examples=40)
@given(st.text(max_size=40), st.floats(0.01, 1), st.integers(0, 99), st.sampled_from(sorted(TEXTS)))
def test_any_text_is_taken_and_the_seed_decides(text: str, share: float, seed: int, how: str) -> None:
    found = TEXTS[how](text, share, random.Random(seed))
    assert found == TEXTS[how](text, share, random.Random(seed))
    assert bool(found.split()) or len(text.split()) < 2
