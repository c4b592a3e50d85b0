"""Lists of objects and what differs between them; sentences and the text made of them. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

from pipelines.annotators.base import flat
from pipelines.annotators.chat.answers import Difference, Listed

Change = Literal["added", "gone", "changed"]


class Told(NamedTuple):
    """Sentences that the lists bear out, and how many they do not."""

    differences: list[Difference]
    left_out: int


def changes(reference: Sequence[Listed], target: Sequence[Listed]) -> dict[str, Change]:
    """What differs between two lists: flat name of an entry → how.

    Entries of one name count together; they are the same where both lists describe them in the same words, in
    whatever order.
    """
    before, after = _by_name(reference), _by_name(target)
    found: dict[str, Change] = {}
    for name in [*after, *(n for n in before if n not in after)]:
        if name not in before:
            found[name] = "added"
        elif name not in after:
            found[name] = "gone"
        elif before[name] != after[name]:
            found[name] = "changed"
    return found


def borne_out(differences: Sequence[Difference], found: Mapping[str, Change]) -> Told:
    """The sentences about entries that differ; those about others are made up, empty ones say nothing."""
    kept = [d for d in differences if flat(d.object) in found and d.sentence.strip()]
    return Told(kept, len(differences) - len(kept))


def compose(sentences: Sequence[str], number: int, max_words: int) -> tuple[str, int]:
    """A text of up to `number` sentences in their order, as many as the word limit has room for.

    Args:
        sentences: at least one.
        number: most of them.
        max_words: of the text. A sentence that does not fit any more is passed over; where none fits, the first is the
            text, and the gate says that it is too long.

    Returns:
        The text, and how many sentences it has.
    """
    whole = [sentence(s) for s in sentences]
    taken: list[str] = []
    room = max_words
    for one in whole:
        words = len(one.split())
        if len(taken) < number and words <= room:
            taken.append(one)
            room -= words
    taken = taken or whole[:1]
    return " ".join(taken), len(taken)


def sentence(text: str) -> str:
    """On one line, with a capital letter and a full stop."""
    line = " ".join(text.split())
    line = line[:1].upper() + line[1:]
    return line if line.endswith((".", "!", "?")) else f"{line}."


def _by_name(listed: Sequence[Listed]) -> dict[str, list[list[str]]]:
    named: dict[str, list[list[str]]] = {}
    for each in listed:
        named.setdefault(flat(each.name), []).append(sorted(map(flat, each.descriptors)))
    return {name: sorted(those) for name, those in named.items() if name}
