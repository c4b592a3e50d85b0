"""The gates: what a modification text must keep that nobody here wrote. Pure functions over the text and what is known.

Each gate names one fault, so that the writer can be told what to mend. None of them sees the photos: whether a text is
true is asked elsewhere.
"""

from __future__ import annotations

import hashlib
import re
import unicodedata
from collections.abc import Collection
from dataclasses import dataclass
from functools import lru_cache

from pipelines.annotators.base import Rejection, check_text, flat
from pipelines.annotators.words import FILLERS, FUNCTION_WORDS, KINDS, PLACES_TOO

ENGLISH_SHARE = 0.15
"""Least share of English function words in an English sentence; fluent ones have a third to a half."""
_PICTURE = r"(?:images?|pictures?|photos?|photographs?|shots?|frames?|views?)"
_WHICH = (
    r"(?:first|second|1st|2nd|reference|target|source|query|starting|wanted|original|initial|previous|prior|earlier|former"
    r"|latter|both|two|other|given|before|after)"
)
_REFERS = re.compile(
    rf"\b{_WHICH} {_PICTURE}\b|\b{_PICTURE} (?:1|2|one|two|a|b)\b"
    r"|\b(?:first|second|previous|earlier|former|latter) one\b"
    r"|\b(?:in|than|to|from|as|of|with) the (?:reference|target|original|former|latter)\b"
)


@dataclass(frozen=True)
class Rules:
    """What one text is held against.

    Attributes:
        max_words: most words.
        instance: names of the very object.
        kinds: names of the kind of object, with their synonyms (`kind_names`); none where it may be named.
    """

    max_words: int
    instance: tuple[str, ...]
    kinds: frozenset[str] = frozenset()


def fault(text: str, rules: Rules, others: Collection[bytes] = ()) -> Rejection | None:
    """The first gate that a text does not pass; None if it passes all.

    Args:
        text: the modification text.
        rules: what it is held against.
        others: fingerprints of the other texts of the build.
    """
    if plain := check_text(text, max_words=rules.max_words, banned=rules.instance):
        return plain
    if language := other_language(text):
        return Rejection("text_wrong_language", language)
    if found := _REFERS.search(flat(text)):
        return Rejection("text_names_image", f"the text says {found[0]!r}")
    if name := named(text, rules.kinds):
        return Rejection("text_names_category", f"the text says {name!r}")
    if fingerprint(text) in others:
        return Rejection("text_repeats", "another text of the build says the same words")
    return None


def other_language(text: str) -> str | None:
    """Why a text is no English sentence; None if it is one."""
    letters = [c for c in text if c.isalpha()]
    foreign = sorted({c for c in letters if not unicodedata.name(c, "").startswith("LATIN")})
    if foreign:
        return f"letters that English does not have: {''.join(foreign[:8])}"
    words = re.findall(r"[^\W\d_]+", text.casefold())
    if not words:
        return "no words"
    counts = {name: sum(w in known for w in words) for name, known in FUNCTION_WORDS.items()}
    likeliest = max(counts, key=lambda name: (counts[name], name == "English"))
    if likeliest != "English":
        return f"more words of {likeliest} ({counts[likeliest]}) than of English ({counts['English']})"
    if counts["English"] < ENGLISH_SHARE * len(words):
        return f"{counts['English']} of {len(words)} words are little words that an English sentence is built with"
    return None


_KINDS = tuple(frozenset(map(flat, kind)) for kind in KINDS)


@lru_cache(maxsize=4096)  # asked for every pair of an instance
def kind_names(category: str, more: tuple[str, ...] = ()) -> frozenset[str]:
    """Every way to name a kind of object, flat, singular and plural: the category, its last word, their synonyms."""
    said = [flat(category), *map(flat, more)]
    heads = {phrase.split()[-1] for phrase in said if phrase}
    names = {phrase for phrase in said if phrase} | {head for head in heads if head not in PLACES_TOO}
    names = {name for name in names if not name.isdigit()}
    for same in _KINDS:
        if any(form in same for name in [*said, *heads] for form in _forms(name)):
            names |= same - PLACES_TOO
    return frozenset(form for name in names for form in _forms(name))


def named(text: str, names: Collection[str]) -> str | None:
    """The longest of some flat names that a text says as whole words; None if it says none."""
    words = flat(text).split()
    longest = max((name.count(" ") + 1 for name in names), default=0)
    for size in range(longest, 0, -1):
        for start in range(len(words) - size + 1):
            if (phrase := " ".join(words[start : start + size])) in names:
                return phrase
    return None


def fingerprint(text: str) -> bytes:
    """Eight bytes, equal for texts of the same content words: order, case, punctuation and fillers do not count.

    A text of 20 words has about ten content words. With one of them exchanged it says something else ("facing left"),
    so nothing short of all of them makes a copy.
    """
    words = flat(text).split()
    content = [w for w in words if w not in FILLERS] or words
    return hashlib.sha256(" ".join(sorted(content)).encode()).digest()[:8]


def _forms(name: str) -> set[str]:
    """A flat name in singular and plural, as far as English is regular."""
    if not name:
        return set()
    forms = {name, f"{name}s"}
    if name.endswith(("s", "x", "ch", "sh")):
        forms.add(f"{name}es")
    if name.endswith("y") and name[-2:-1] not in "aeiou":
        forms.add(f"{name[:-1]}ies")
    if name.endswith("ies"):
        forms.add(f"{name[:-3]}y")
    elif name.endswith(("ses", "xes", "ches", "shes")):
        forms.add(name[:-2])
    if name.endswith("s") and not name.endswith("ss"):
        forms.add(name[:-1])
    return forms
