"""The chat annotator over real HTTP: what is asked, what becomes of good and bad answers, what is paid."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from aiohttp import web
from chat_server import Request, chat_server, content, good, good_text
from PIL import Image

from infra.base.errors import OacirError
from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.annotators.chat.annotator import ChatAnnotator
from pipelines.annotators.chat.prompts import instruction_hash

Make = Callable[..., ChatAnnotator]
Pairs = Callable[..., list[PairToAnnotate]]


def reasons(answers: list[Annotation | Rejection]) -> list[str]:
    return [a.reason if isinstance(a, Rejection) else "text" for a in answers]


def paid(annotator: ChatAnnotator) -> Counter[str]:
    return sum((Counter(c) for c in annotator.used().values()), Counter())


def test_a_pair_is_asked_with_both_photos_in_order_and_becomes_a_text(
    make_annotator: Make, make_pairs: Pairs
) -> None:
    pairs = make_pairs(3)
    with chat_server() as server:
        annotator = make_annotator(server.url, key="sk-secret", image_side_px=32)
        answers = annotator.annotate(pairs, 7)
    assert all(isinstance(a, Annotation) for a in answers)
    assert len({a.text for a in answers if isinstance(a, Annotation)}) == 6
    by_seed = {r.body["seed"]: r for r in server.requests}
    assert len(by_seed) == 6
    request = server.requests[0]
    kinds = [part["type"] for part in request.body["messages"][0]["content"]]
    assert kinds == ["text", "text", "image_url", "text", "image_url", "text"]
    assert [p.size for p in request.pictures] == [(32, 32)] * 2
    assert "between 0 and 50 percent of the width" in request.text
    assert "between 25 and 100 percent of the height" in request.text
    assert "At most 30 words" in request.text
    assert request.body["response_format"]["json_schema"]["schema"]["required"] == ["changes", "text"]
    assert request.headers["Authorization"] == "Bearer sk-secret"
    # the pictures of a-b and b-a are the same two in the other order
    shown = {tuple(p.tobytes() for p in r.pictures) for r in server.requests}
    assert len(shown) == 6
    assert {pair[::-1] for pair in shown} == shown
    asked = by_seed[annotator._question(pairs[0], 7).seed]
    for shown_one, side in zip(asked.pictures, (pairs[0].reference, pairs[0].target), strict=True):
        wanted = Image.open(side["uri"]).resize((32, 32), Image.Resampling.BICUBIC)
        assert np.abs(np.asarray(shown_one, float) - np.asarray(wanted, float)).mean() < 30
    first = answers[0]
    assert isinstance(first, Annotation)
    assert (first.annotator, first.model, first.box) == ("chat", "scripted-1", (0.0, 12.0, 24.0, 48.0))
    assert first.prompt_sha256 == instruction_hash("general", 30)
    assert first.extra == {"changes": ["another place"]}


def test_what_was_answered_is_never_asked_again(make_annotator: Make, make_pairs: Pairs) -> None:
    pairs = make_pairs(4)
    with chat_server() as server:
        first = make_annotator(server.url)
        answers = first.annotate(pairs, 0)
        assert paid(first) == {
            "chat requests": 12,
            "chat prompt tokens": 1200,
            "chat completion tokens": 240,
        }
        same = make_annotator(server.url)
        assert same.annotate(pairs, 0) == answers
        assert paid(same)["chat requests"] == 12  # what this benchmark paid for counts, whenever that was
        other = make_annotator(server.url, benchmark="b/2")
        assert other.annotate(pairs, 0) == answers
        assert paid(other) == {"chat answers of others": 12}
        assert len(server.requests) == 12
        for changed in ({"model": "n"}, {"temperature": 0.1}, {"image_side_px": 40}):
            make_annotator(server.url, **changed).annotate(pairs[:1], 0)
        make_annotator(server.url).annotate(pairs[:1], 1)
        assert len(server.requests) == 16
    # nor does it need the server
    server_is_gone = make_annotator(server.url)
    assert server_is_gone.annotate(pairs, 0) == answers


def test_a_photo_of_other_bytes_is_another_question(make_annotator: Make, make_pairs: Pairs) -> None:
    pairs = make_pairs(3)
    with chat_server() as server:
        make_annotator(server.url).annotate(pairs, 0)
        other = make_pairs(2, name="another one")
        assert other[0].reference["sha256"] != pairs[0].reference["sha256"]
        changed = {k: other[0].reference[k] for k in ("uri", "sha256")}
        pairs[0].reference.update(changed)  # the photo of four of the six pairs
        make_annotator(server.url).annotate(pairs, 0)
    assert len(server.requests) == 6 + 4


def test_bad_answers_are_rows_with_what_the_model_said(make_annotator: Make, make_pairs: Pairs) -> None:
    said = [
        "It is on the beach now.",
        '{"changes": ["x"], "text": 3}',
        '{"changes": [], "text": ""}',
        '```json\n{"changes": ["x"], "text": "It is on the beach now."}\n```',
        '{"changes": ["x"], "text": "cut off in the mid',
        "[" * 100_000 + "{}",
    ]
    pairs = make_pairs(3)
    order = {p.pair_id: n for n, p in enumerate(pairs)}
    with chat_server() as server:
        annotator = make_annotator(server.url, concurrency=1)
        questions = [annotator._question(p, 0).seed for p in pairs]
        server.script = lambda request: said[questions.index(request.body["seed"])]
        answers = annotator.annotate(pairs, 0)
    assert len(order) == 6
    assert reasons(answers) == [
        "bad_answer",
        "bad_answer",
        "no_difference",
        "text",
        "bad_answer",
        "bad_answer",
    ]
    details = [a.detail if isinstance(a, Rejection) else "" for a in answers]
    assert said[0] in details[0]
    assert details[1].startswith("text: Input should be a valid string")
    assert len(details[5]) < 3000


def test_an_answer_cut_at_max_tokens_or_empty_is_bad(make_annotator: Make, make_pairs: Pairs) -> None:
    def script(request: Request) -> web.Response:
        text, finish = (content("It is on the beach."), "length") if request.number == 0 else (None, "stop")
        choice = {"message": {"content": text}, "finish_reason": finish}
        return web.json_response({"choices": [choice]})

    with chat_server(script) as server:
        answers = make_annotator(server.url, concurrency=1).annotate(make_pairs(2), 0)
    assert reasons(answers) == ["bad_answer", "bad_answer"]
    details = sorted(a.detail for a in answers if isinstance(a, Rejection))
    assert details[0].startswith("it was cut at max_tokens")
    assert details[1].startswith("no text")


def test_a_request_that_the_server_never_answers_is_a_row_and_the_others_go_on(
    make_annotator: Make, make_pairs: Pairs, fast: None
) -> None:
    pairs = make_pairs(4)
    with chat_server() as server:
        annotator = make_annotator(server.url, concurrency=4)
        seeds = [annotator._question(p, 0).seed for p in pairs]

        def script(request: Request) -> str | web.Response:
            number = seeds.index(request.body["seed"])
            status = {1: 400, 6: 500}.get(number)
            return web.Response(status=status, text="picture too odd") if status else good(request)

        server.script = script
        answers = annotator.annotate(pairs, 0)
        assert reasons(answers) == ["text", "no_answer", *["text"] * 4, "no_answer", *["text"] * 5]
        details = [a.detail for a in answers if isinstance(a, Rejection)]
        assert details == ["HTTP 400: picture too odd", "no answer after 3 tries (HTTP 500: picture too odd)"]
        times = Counter(seeds.index(r.body["seed"]) for r in server.requests)
        assert (times[1], times[6]) == (1, 3)
        server.script = good
        assert reasons(annotator.annotate(pairs, 0)) == ["text"] * 12
        assert len(server.requests) == 10 + 1 + 3 + 2  # only those two are asked again


def test_pairs_without_a_box_cost_nothing(make_annotator: Make, make_pairs: Pairs) -> None:
    pairs = make_pairs(3)
    pairs[0].reference["box"] = None  # the photo is the reference of the first two
    with chat_server() as server:
        answers = make_annotator(server.url).annotate(pairs, 0)
    assert reasons(answers) == ["no_box", "no_box", "text", "text", "text", "text"]
    assert len(server.requests) == 4


def test_a_fault_is_named_in_the_second_try(make_annotator: Make, make_pairs: Pairs) -> None:
    pairs = make_pairs(2)

    def script(request: Request) -> str:
        return content("In the second image it lies on the beach.") if request.turns == 1 else good(request)

    with chat_server(script) as server:
        annotator = make_annotator(server.url)
        texts = [a for a in annotator.annotate(pairs, 0) if isinstance(a, Annotation)]
        faults = [Rejection("text_names_image", "the text says 'second image'")] * 2
        mended = annotator.revise(pairs, texts, faults, 0)
        last = server.requests[-1]
        assert [m["role"] for m in last.body["messages"]] == ["user", "assistant", "user"]
        assert "In the second image it lies" in last.body["messages"][1]["content"]
        assert "speaks of the photographs" in last.text
        assert "the text says 'second image'" in last.text
        assert len(last.pictures) == 2
        assert [a.extra["mended"] for a in mended if isinstance(a, Annotation)] == ["text_names_image"] * 2
        assert annotator.revise(pairs, texts, faults, 0) == mended
        assert len(server.requests) == 4


def test_products_are_named_once_each_and_landmarks_that_eyes_cannot_tell_are_left_out(
    make_annotator: Make, make_pairs: Pairs
) -> None:
    products = make_pairs(3, "product") + make_pairs(3, "product", name="other")
    places = make_pairs(2, "landmark")

    def script(request: Request) -> str:
        if "filed under one landmark" in request.text:
            return json.dumps({"type": "knowledge", "label": None, "reasoning": "a whole town"})
        return good(request)

    with chat_server(script) as server:
        answers = make_annotator(server.url).annotate(products + places, 0)
    labels = [r for r in server.requests if "show one product" in r.text]
    assert [len(r.pictures) for r in labels] == [3, 3]
    assert reasons(answers) == ["text"] * 12 + ["not_visual"] * 2
    assert isinstance(answers[-1], Rejection)
    assert answers[-1].detail == "knowledge: a whole town"
    first = answers[0]
    assert isinstance(first, Annotation)
    assert first.names == ("clay kettle", "tea maker")
    assert first.extra["label"] == "clay kettle"
    assert len(server.requests) == 2 + 12 + 1


@pytest.mark.parametrize(
    ("budget", "match"),
    [
        ({"most_tokens": 600}, r"of chat.most_tokens = 600 are spent"),
        (
            {"most_money": 0.006, "price": {"prompt": 10, "completion": 0}},
            r"of chat.most_money = 0.01 are spent",
        ),
    ],
)
def test_a_budget_stops_and_what_was_paid_is_there_when_it_is_raised(
    make_annotator: Make, make_pairs: Pairs, budget: dict[str, Any], match: str
) -> None:
    pairs = make_pairs(4)
    with chat_server() as server:
        annotator = make_annotator(server.url, concurrency=1, **budget)
        with pytest.raises(OacirError, match=match):
            annotator.annotate(pairs, 0)
        before = len(server.requests)
        assert 3 <= before <= 6  # of 120 tokens each; those that wait for their turn are counted at the mean
        again = make_annotator(server.url, concurrency=1, **budget)
        with pytest.raises(OacirError, match=match):
            again.annotate(pairs, 0)
        # parts that are done count as well
        third = make_annotator(server.url, concurrency=1, most_tokens=12 * 120 + 10_000)
        third.go_on({"chat prompt tokens": 11_000, "chat completion tokens": 0, "chat requests": 110})
        with pytest.raises(OacirError, match="budget"):
            third.annotate(pairs, 0)
        assert len(server.requests) <= 6
        raised = make_annotator(server.url)
        assert reasons(raised.annotate(pairs, 0)) == ["text"] * 12
        assert max(server.answered.values()) == 1
        assert len(server.requests) == 12


def test_what_was_paid_for_counts_before_anything_else_is_asked(
    make_annotator: Make, make_pairs: Pairs
) -> None:
    pairs = make_pairs(2)
    with chat_server() as server:
        make_annotator(server.url, concurrency=1).annotate(pairs[-1:], 0)
        assert len(server.requests) == 1
        with pytest.raises(OacirError, match=r"120 tokens in 1 requests of chat.most_tokens = 120 are spent"):
            make_annotator(server.url, concurrency=1, most_tokens=120).annotate(pairs, 0)
        assert len(server.requests) == 1


def test_a_photo_that_changed_stops_the_build(make_annotator: Make, make_pairs: Pairs) -> None:
    pairs = make_pairs(2)
    with open(pairs[0].reference["uri"], "ab") as stream:  # noqa: PTH123
        stream.write(b"x")
    with chat_server() as server, pytest.raises(OacirError, match="changed since it was collected"):
        make_annotator(server.url).annotate(pairs, 0)


def test_good_texts_differ(make_pairs: Pairs) -> None:
    """Of the scripted server itself: it would hide what the near-copy gate does."""
    requests = [Request({}, str(n), {}, n, 0) for n in range(2000)]
    assert len({good_text(r) for r in requests}) == 2000
