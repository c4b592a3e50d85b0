"""The tables of wordings: sentences that a person would say, and nothing of the test texts shown in training."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest

from pipelines.world import wordings
from pipelines.world.wordings import FRAMES, Wording

PHRASES: dict[str, Wording] = {
    **wordings.PLACE,
    **wordings.LIGHT,
    **wordings.WEATHER,
    **wordings.POSITION,
    **wordings.DISTANCE,
    **{f"{domain} {pose}": w for domain, poses in wordings.POSE.items() for pose, w in poses.items()},
}


def words(text: str) -> list[str]:
    return re.findall(r"[a-z]+", text.lower().replace("{place}", "").replace("{changes}", ""))


def governors(frame: str) -> Iterator[tuple[str, str]]:
    """Of each placeholder: the clause before it, from the last stop on, and what follows it at once."""
    for hole in re.finditer(r"\{(place|changes)\}", frame):
        before = re.sub(r"\{(place|changes)\}", "", frame[: hole.start()])
        yield before, frame[hole.end() :]


@pytest.mark.parametrize("frame", [f for w in FRAMES.values() for f in (*w.training, *w.held_out)])
def test_every_frame_hangs_its_phrases_on_a_verb(frame: str) -> None:
    """'and it facing left' and 'on a beach it should be' are no English."""
    for before, after in governors(frame.lower()):
        assert re.search(r"\b(show|see|put|want|take|is|be|again)\b", before), frame
        assert not re.search(r"\b(and|but|so) it $", before), frame
        assert not re.match(r" (it|one|should)\b", after), frame


@pytest.mark.parametrize("name", PHRASES)
def test_every_phrase_can_follow_show_it(name: str) -> None:
    first = "in|on|at|by|under|during|with|among|against|inside|outside|near|close|far|large|small"
    shapes = rf"({first}|straight|(\w+ing)|(wrapped|placed|seen|tilted|held|set))\b"
    for phrase in (*PHRASES[name].training, *PHRASES[name].held_out):
        assert re.match(shapes, phrase), phrase
        assert not re.search(r"\b(in|on|at|by|of|with|under) (in|on|at|by|of|under)\b", phrase), phrase


def test_no_phrase_and_no_frame_of_the_test_texts_is_shown_in_training() -> None:
    shown = {text for w in (*PHRASES.values(), *FRAMES.values()) for text in w.training}
    kept = [text for w in (*PHRASES.values(), *FRAMES.values()) for text in w.held_out]
    assert not shown & set(kept)
    assert len(kept) == len(set(kept))


def test_test_texts_are_put_together_from_words_that_training_shows() -> None:
    known = {
        word for w in (*PHRASES.values(), *FRAMES.values()) for text in w.training for word in words(text)
    }
    kept = [
        word for w in (*PHRASES.values(), *FRAMES.values()) for text in w.held_out for word in words(text)
    ]
    assert sum(word in known for word in kept) / len(kept) > 0.98
