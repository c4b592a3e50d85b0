"""Which texts pass, in what order, and what the second try changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection
from pipelines.annotators.gates import Rules, fingerprint, kind_names
from pipelines.gating import Answers, hold, rules_of

BEACH, FOREST, NIGHT = (
    f"Show it {place}, farther away and on the left." for place in ("on a beach", "in a forest", "at night")
)


class Scribe(Annotator):
    """Writes once more what it is told to, and notes what it was asked for."""

    name = "scribe"
    free = True

    def __init__(self, second: dict[str, str | Rejection]) -> None:
        self.second = second
        self.asked: list[tuple[str, str, str]] = []

    def annotate(self, pairs: Sequence[PairToAnnotate], seed: int) -> list[Annotation | Rejection]:
        raise AssertionError("nobody asks for it here")

    def revise(
        self,
        pairs: Sequence[PairToAnnotate],
        texts: Sequence[Annotation],
        faults: Sequence[Rejection],
        seed: int,
    ) -> list[Annotation | Rejection]:
        self.asked += [(p.pair_id, t.text, f.reason) for p, t, f in zip(pairs, texts, faults, strict=True)]
        return [said(self.second[p.pair_id]) for p in pairs]


def said(text: str | Rejection) -> Annotation | Rejection:
    return text if isinstance(text, Rejection) else Annotation(text, (0, 0, 1, 1), "scribe", None)


def held(
    first: dict[str, str | Rejection], second: dict[str, str | Rejection], others: Sequence[str] = ()
) -> tuple[dict[str, str], list[tuple[str, str, str]], dict[str, int]]:
    pairs = [PairToAnnotate(name, "d", "train", "d/i", "mug", {}, {}) for name in first]
    rules = dict.fromkeys(first, Rules(30, ("red kettle",), kind_names("mug")))
    writer = Scribe(second)
    answers: Answers = {name: said(text) for name, text in first.items()}
    done, counts = hold(writer, pairs, answers, rules, {fingerprint(t) for t in others}, 0)
    found = {n: a.text if isinstance(a, Annotation) else f"{a.reason}: {a.detail}" for n, a in done.items()}
    return found, writer.asked, dict(counts)


def test_texts_that_keep_the_rules_are_not_asked_again() -> None:
    first: dict[str, Any] = {"a": BEACH, "b": FOREST, "c": Rejection("no_box", "none")}
    assert held(first, {}) == ({"a": BEACH, "b": FOREST, "c": "no_box: none"}, [], {})


def test_the_later_of_two_equal_texts_is_the_copy_and_gets_one_more_try() -> None:
    found, asked, counts = held({"a": BEACH, "b": BEACH, "c": FOREST}, {"b": NIGHT})
    assert asked == [("b", BEACH, "text_repeats")]
    assert found == {"a": BEACH, "b": NIGHT, "c": FOREST}
    assert counts == {"texts asked again": 1, "texts mended": 1}


def test_a_second_fault_is_a_rejection_that_tells_both_and_the_text() -> None:
    found, _, counts = held({"a": BEACH, "b": "Show the mug in the rain."}, {"b": BEACH})
    assert found["b"] == (
        f"text_repeats: another text of the build says the same words; after text_names_category; {BEACH!r}"
    )
    assert counts == {"texts asked again": 1, "texts mended": 0}


def test_a_second_try_without_a_text_is_that() -> None:
    found, _, counts = held({"a": "Show the mug in the rain."}, {"a": Rejection("bad_answer", "no JSON")})
    assert found == {"a": "bad_answer: no JSON"}
    assert counts == {"texts asked again": 1, "texts mended": 0}


def test_texts_of_other_parts_count_and_two_second_tries_may_not_be_equal() -> None:
    found, asked, _ = held({"a": BEACH, "b": BEACH, "c": BEACH}, dict.fromkeys("abc", FOREST), others=[BEACH])
    assert [name for name, *_ in asked] == ["a", "b", "c"]
    assert found["a"] == FOREST
    assert [found[n].split(":")[0] for n in "bc"] == ["text_repeats"] * 2


def test_rules_of_a_pair() -> None:
    pair = PairToAnnotate("p", "d", "train", "d/i", "shoe", {}, {})
    text = Annotation(BEACH, (0, 0, 1, 1), "chat", None, names=("clay kettle",))
    rules = rules_of(pair, text, 12, ("old one",), True)
    assert (rules.max_words, rules.instance) == (12, ("old one", "clay kettle"))
    assert {"sneakers", "teapot"} <= rules.kinds
    assert rules_of(pair, text, 12, (), False).kinds == frozenset()
