"""The consistency check: what separates the photos passes, what the target does not show or both show does not."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from chat_server import Request, chat_server, good

from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.annotators.chat.annotator import ChatAnnotator
from pipelines.annotators.chat.check import shares, verdict
from pipelines.annotators.chat.options import CheckOptions

QUESTIONS = ["Is it on a beach?", "Is it dark?", "Is it small?", "Is it tilted?"]


@pytest.mark.parametrize(
    ("target", "reference", "reason"),
    [
        ("yyyy", "nnnn", None),
        ("yyyn", "nnnn", None),  # three of four: just enough
        ("yyun", "nnnn", "text_untrue"),  # unclear is no yes
        ("yyyy", "yynn", None),  # a gap of two of four: just enough
        ("yyyy", "yyyn", "text_not_separating"),
        ("yyyn", "ynun", None),
        ("yyyn", "yynn", "text_not_separating"),
        ("nnnn", "yyyy", "text_untrue"),
    ],
)
def test_the_verdict(target: str, reference: str, reason: str | None) -> None:
    word = {"y": "yes", "n": "no", "u": "unclear"}
    sides = [[word[a] for a in side] for side in (target, reference)]
    found = verdict(QUESTIONS, *sides, CheckOptions())
    assert (found.reason if found else None) == reason
    if found:
        assert "Is it dark? " + sides[0][1] + "/" + sides[1][1] in found.detail


def test_shares() -> None:
    assert shares(["yes", "no", "unclear", "yes"], ["no", "no", "no", "yes"]) == (0.5, 0.25)


def looked_at(request: Request) -> int:
    """Which photo it is: the first pixel of the made-up photos tells them apart."""
    return hash(request.pictures[0].tobytes())


def test_questions_are_made_from_the_text_and_asked_of_each_photo_alone(
    make_annotator: Callable[..., ChatAnnotator], make_pairs: Callable[..., list[PairToAnnotate]]
) -> None:
    pairs = make_pairs(2)  # 0 → 1 and 1 → 0
    shown: dict[int, list[str]] = {}

    def script(request: Request) -> str:
        if "Turn the request into questions" in request.text:
            assert not request.pictures
            return json.dumps({"questions": QUESTIONS})
        if "answer each question about it" in request.text:
            (only,) = request.pictures
            # the photo that comes first in the first pair is the one where nothing is seen
            seen = shown.setdefault(looked_at(request), [])
            seen.append(request.text)
            answer = "yes" if only.tobytes() == wanted[0] else "no"
            return json.dumps({"answers": [answer] * 4})
        if not wanted:
            wanted.append(request.pictures[1].tobytes())
        return good(request)

    wanted: list[bytes] = []
    with chat_server(script) as server:
        annotator = make_annotator(server.url, concurrency=1, check={})
        # one after the other: of one call, either pair may be asked for first
        made = [*annotator.annotate(pairs[:1], 0), *annotator.annotate(pairs[1:], 0)]
        texts = [a for a in made if isinstance(a, Annotation)]
        first, second = annotator.confirm(pairs, texts, 0)
        # the texts differ, so do the questions' requests; the two photos are each asked for both pairs
        asked = [r for r in server.requests if "Turn the request" in r.text]
        assert [t.text in r.text for t, r in zip(texts, asked, strict=True)] == [True, True]
        assert all("(plaything)" in r.text for r in asked)
        assert sorted(map(len, shown.values())) == [1, 1]  # the same questions of the same photo: asked once
        assert all(f"2. {QUESTIONS[1]}" in text for texts_ in shown.values() for text in texts_)
    assert isinstance(first, Annotation)
    assert first.extra["check"] == {"questions": 4, "target": 1.0, "reference": 0.0}
    assert first.text == texts[0].text
    assert isinstance(second, Rejection)
    assert second.reason == "text_untrue"


@pytest.mark.parametrize(
    ("questions", "answers", "detail"),
    [
        ('{"questions": []}', "", "questions: List should have at least 1 item"),
        ("none", "", "no JSON"),
        (json.dumps({"questions": QUESTIONS}), '{"answers": ["yes"]}', "1 answers to 4 questions"),
        (
            json.dumps({"questions": QUESTIONS}),
            '{"answers": ["maybe"]}',
            "answers.0: Input should be 'yes', 'no'",
        ),
    ],
)
def test_bad_answers_are_rows(
    questions: str,
    answers: str,
    detail: str,
    make_annotator: Callable[..., ChatAnnotator],
    make_pairs: Callable[..., list[PairToAnnotate]],
) -> None:
    def script(request: Request) -> str:
        return questions if "Turn the request" in request.text else answers

    pairs = make_pairs(2)[:1]
    text = Annotation("It is on a beach.", (0, 0, 1, 1), "chat", None)
    with chat_server(script) as server:
        (found,) = make_annotator(server.url, check={}).confirm(pairs, [text], 0)
    assert isinstance(found, Rejection)
    assert found.reason == "bad_answer"
    assert found.detail.startswith(detail)


def test_without_a_check_nothing_is_asked(
    make_annotator: Callable[..., Any], make_pairs: Callable[..., list[PairToAnnotate]]
) -> None:
    text = Annotation("It is on a beach.", (0, 0, 1, 1), "chat", None)
    with chat_server() as server:
        assert make_annotator(server.url).confirm(make_pairs(2)[:1], [text], 0) == [text]
        assert server.requests == []
