"""Texts as people type them in a hurry: pure functions of a text and a seeded generator."""

from __future__ import annotations

import random
from collections.abc import Callable

ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
BESIDE: dict[str, str] = {
    letter: row[max(0, place - 1) : place] + row[place + 1 : place + 2]
    for row in ROWS
    for place, letter in enumerate(row)
}
"""The keys left and right of each letter of an English keyboard."""
_FUNCTION_WORDS = """a an the this that these those is are was were be been being am do does did has have had will would
shall should can could may might must and or but so as at by for from in into of off on onto out over to up with it its
itself there their them they he she his her him i me my we our us you your please then than just"""
FUNCTION_WORDS = frozenset(_FUNCTION_WORDS.split())


def typos(text: str, share: float, draw: random.Random) -> str:
    """One typing error in each of some words: letters swapped, left out, doubled, or the key beside hit."""
    words = text.split()
    able = [i for i, word in enumerate(words) if sum(letter.isalpha() for letter in word) > 1]
    for place in draw.sample(able, min(len(able), _count(len(words), share))):
        words[place] = _mistyped(words[place], draw)
    return " ".join(words)


def dropped_words(text: str, share: float, draw: random.Random) -> str:
    """Some words left out; one is always kept."""
    words = text.split()
    gone = (
        set(draw.sample(range(len(words)), min(len(words) - 1, _count(len(words), share))))
        if words
        else set()
    )
    return " ".join(word for i, word in enumerate(words) if i not in gone)


def word_order(text: str, share: float, draw: random.Random) -> str:
    """Some words, at least two, each in the place of another one of them."""
    words = text.split()
    places = draw.sample(range(len(words)), min(len(words), max(2, _count(len(words), share))))
    moved = {here: words[there] for here, there in zip(places, places[1:] + places[:1], strict=True)}
    return " ".join(moved.get(i, word) for i, word in enumerate(words))


def telegraphic(text: str, share: float, draw: random.Random) -> str:  # noqa: ARG001
    """Without articles, auxiliaries, prepositions and pronouns, but never without any word."""
    words = text.split()
    kept = [word for word in words if word.strip(".,;:!?\"'").lower() not in FUNCTION_WORDS]
    return " ".join(kept or words)


TEXTS: dict[str, Callable[[str, float, random.Random], str]] = {
    "typos": typos,
    "dropped_words": dropped_words,
    "word_order": word_order,
    "telegraphic": telegraphic,
}
"""`PerturbSection.text` → (text, share of its words, generator) → text."""


def _count(words: int, share: float) -> int:
    return max(1, round(share * words))


def _mistyped(word: str, draw: random.Random) -> str:
    """The word with one error that shows."""
    letters = [i for i, letter in enumerate(word) if letter.isalpha()]
    place = draw.choice(letters)
    swaps = [i for i in letters if i + 1 in letters and word[i].lower() != word[i + 1].lower()]
    kinds = ["left out", "doubled"]
    kinds += ["swapped"] if swaps else []
    kinds += ["beside"] if BESIDE.get(word[place].lower()) else []
    kind = draw.choice(kinds)
    if kind == "swapped":
        place = draw.choice(swaps)
        return word[:place] + word[place + 1] + word[place] + word[place + 2 :]
    middle = {"left out": "", "doubled": 2 * word[place]}.get(kind)
    if middle is None:
        middle = draw.choice(BESIDE[word[place].lower()])
    return word[:place] + middle + word[place + 1 :]
