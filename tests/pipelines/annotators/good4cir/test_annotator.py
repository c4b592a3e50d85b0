"""The good4cir annotator over real HTTP: which three questions are asked, how often, and what their answers become."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lister
import numpy as np
import pytest
from aiohttp import web
from chat_server import ChatServer, Request, chat_server
from PIL import Image

from infra.base.errors import OacirError
from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.annotators.chat.answers import Listed
from pipelines.annotators.chat.options import ChatOptions, ChatSetting
from pipelines.annotators.good4cir.annotator import Good4cirAnnotator
from pipelines.annotators.good4cir.options import Good4cirOptions
from pipelines.annotators.good4cir.questions import instruction_hash, reference_question, target_question

Make = Callable[..., Good4cirAnnotator]
GOOD = Good4cirOptions()


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(server: ChatServer, good: Good4cirOptions = GOOD, **options: Any) -> Good4cirAnnotator:
        chat = ChatOptions.model_validate({"base_url": server.url, "model": "m", "tries": 2} | options)
        return Good4cirAnnotator(ChatSetting(chat, None, str(tmp_path / "kept"), "b/1", {}, 30, good))

    return make


def pairs_of(folder: Path, photos: int = 3, domain: str = "toys") -> list[PairToAnnotate]:
    sides: list[dict[str, Any]] = []
    for n in range(photos):
        path = folder / f"{domain}-{n}.png"
        pixels = np.random.default_rng(n).integers(0, 255, (48, 48, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)
        sides.append(
            {
                "image_id": f"{domain}/thing/{n}",
                "uri": str(path),
                "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
                "width": 48,
                "height": 48,
                "box": [0.0, 12.0, 24.0, 48.0] if n != 1 else [12.0, 0.0, 48.0, 24.0],
                "variant": None,
            }
        )
    return [
        PairToAnnotate(f"{a}-{b}", domain, "train", f"{domain}/thing", "plaything", x, y)
        for a, x in enumerate(sides) for b, y in enumerate(sides) if a != b
    ]  # fmt: skip


def texts(answers: list[Annotation | Rejection]) -> list[Annotation]:
    assert all(isinstance(a, Annotation) for a in answers), answers
    return [a for a in answers if isinstance(a, Annotation)]


def reasons(answers: list[Annotation | Rejection]) -> list[str]:
    return [a.reason if isinstance(a, Rejection) else "text" for a in answers]


def asked(server: ChatServer) -> Counter[str]:
    return Counter(lister.kind(r) for r in server.requests)


def test_each_reference_is_listed_once_each_target_in_its_words_and_words_alone_are_compared(
    make: Make, tmp_path: Path
) -> None:
    pairs = pairs_of(tmp_path, 4)
    with chat_server(lister.listing) as server:
        answers = texts(make(server).annotate(pairs, 7))
    assert asked(server) == {"reference": 4, "target": 12, "differences": 12}
    by_kind: dict[str, list[Request]] = {}
    for request in server.requests:
        by_kind.setdefault(lister.kind(request), []).append(request)
    assert [len(r.pictures) for r in by_kind["reference"] + by_kind["target"]] == [1] * 16
    assert [r.pictures for r in by_kind["differences"]] == [[]] * 12
    assert {r.body["max_tokens"] for r in server.requests} == {1500}
    listed = {json.dumps(lister.seen(r.pictures[0])) for r in by_kind["reference"]}
    assert len(listed) == 4
    for request in by_kind["target"]:  # shown is the reference's list, and another photo than that
        (shown,) = lister.lists_of(request)
        assert json.dumps(shown) in listed
        assert lister.seen(request.pictures[0]) != shown
    seen = {tuple(json.dumps(one) for one in lister.lists_of(r)) for r in by_kind["differences"]}
    assert len(seen) == 12
    assert {one for two in seen for one in two} == listed
    assert "between 25 and 100 percent of the width" in "".join(r.text for r in by_kind["target"])
    for answer in answers:
        told = answer.extra["differences"]
        assert answer.text.count(".") == answer.extra["sentences"] <= 3
        assert all(part in [d["sentence"] for d in told] for part in _sentences(answer.text))
        assert {d["change"] for d in told} == {"changed"}
        assert (answer.annotator, answer.model) == ("good4cir", "scripted-1")
        assert answer.prompt_sha256 == instruction_hash("general", GOOD, 30)
        assert len(answer.text.split()) <= 30
    assert {a.extra["sentences"] for a in answers} == {1, 2, 3}  # drawn by pair


def test_what_was_answered_is_never_asked_again_and_a_list_serves_new_pairs(
    make: Make, tmp_path: Path
) -> None:
    pairs = pairs_of(tmp_path, 4)
    with chat_server(lister.listing) as server:
        few = make(server).annotate(pairs[:2], 0)  # both of the first photo
        assert asked(server) == {"reference": 1, "target": 2, "differences": 2}
        annotator = make(server)
        whole = annotator.annotate(pairs, 0)
        assert whole[:2] == few
        assert asked(server) == {"reference": 4, "target": 12, "differences": 12}
        assert max(Counter(r.digest for r in server.requests).values()) == 1
        assert annotator.used()["toys"]["chat requests"] == 28
        assert make(server).annotate(pairs, 0) == whole
        assert len(server.requests) == 28


def test_equal_lists_are_no_difference_and_cost_no_third_request(make: Make, tmp_path: Path) -> None:
    def same(request: Request) -> str:
        if lister.kind(request) == "target":
            return lister.as_list(lister.lists_of(request)[0])
        return lister.listing(request)

    with chat_server(same) as server:
        answers = make(server).annotate(pairs_of(tmp_path), 0)
    assert reasons(answers) == ["no_difference"] * 6
    assert asked(server) == {"reference": 3, "target": 6}


def test_sentences_that_the_lists_do_not_bear_out_are_in_no_text(make: Make, tmp_path: Path) -> None:
    invented = {"object": "elephant", "sentence": "Add an elephant."}

    def some(request: Request) -> str:
        said = lister.listing(request)
        if lister.kind(request) != "differences":
            return said
        told = json.loads(said)["differences"]
        return json.dumps({"differences": [invented, *(told if lister.seed_is_even(request) else [])]})

    pairs = pairs_of(tmp_path)
    with chat_server(some) as server:
        answers = make(server).annotate(pairs, 0)
    assert set(reasons(answers)) == {"text", "no_difference"}
    for answer in answers:
        if isinstance(answer, Annotation):
            assert "elephant" not in answer.text
            assert answer.extra["left_out"] == 1
        else:
            assert answer.detail.endswith("entries differ, 1 sentences are about others or empty")


def test_a_bad_list_refuses_the_pairs_that_need_it_and_no_others(make: Make, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    broken = {"reference": 0, "target": 0}

    def script(request: Request) -> str | web.Response:
        asked_for = lister.kind(request)
        if asked_for == "reference" and request.body["seed"] == seeds["reference"]:
            broken["reference"] += 1
            return '{"objects": [{"name": "rug"'
        if asked_for == "target" and request.body["seed"] == seeds["target"]:
            broken["target"] += 1
            return web.Response(status=400, text="too odd")
        return lister.listing(request)

    with chat_server(lister.listing) as server:
        annotator = make(server)
        options = annotator.options
        seeds = {
            "reference": reference_question(pairs[0], options, GOOD, 0).seed,
            "target": target_question(pairs[3], [Listed(name="a", descriptors=[])], options, GOOD, 0).seed,
        }
        server.script = script
        answers = annotator.annotate(pairs, 0)
    assert reasons(answers) == ["bad_answer", "bad_answer", "text", "no_answer", "text", "text"]
    assert broken == {"reference": 1, "target": 1}
    details = [a.detail for a in answers if isinstance(a, Rejection)]
    assert details[0].startswith("no JSON")
    assert "rug" in details[0]
    assert details[2] == "HTTP 400: too odd"
    assert asked(server) == {"reference": 3, "target": 4, "differences": 3}


def test_a_text_that_breaks_a_rule_is_told_with_its_fault(make: Make, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, 2)

    def script(request: Request) -> str:
        said = lister.listing(request)
        return said.replace("it ", "the plaything ") if request.turns == 1 and "differences" in said else said

    with chat_server(script) as server:
        annotator = make(server)
        found = texts(annotator.annotate(pairs, 0))
        fault = Rejection("text_names_category", "the text says 'plaything'")
        mended = texts(annotator.revise(pairs, found, [fault] * 2, 0))
        last = server.requests[-1]
    assert [m["role"] for m in last.body["messages"]] == ["user", "assistant", "user"]
    assert "it names the kind of object (the text says 'plaything')" in last.text
    assert {d["object"] for d in json.loads(last.body["messages"][1]["content"])["differences"]} <= set(
        lister.SENTENCES
    )
    assert not any("plaything" in a.text for a in mended)
    assert [a.extra["mended"] for a in mended] == ["text_names_category"] * 2
    assert asked(server) == {"reference": 2, "target": 2, "differences": 4}  # no photo is listed again


def test_a_budget_stops_between_the_questions_and_goes_on(make: Make, tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path)
    with chat_server(lister.listing) as server:
        with pytest.raises(OacirError, match=r"budget: .* of chat.most_tokens = 800 are spent"):
            make(server, most_tokens=800, concurrency=1).annotate(pairs, 0)
        assert 4 <= len(server.requests) <= 7
        whole = texts(make(server).annotate(pairs, 0))
        assert len(whole) == 6
        assert max(Counter(r.digest for r in server.requests).values()) == 1


def test_a_server_that_fails_now_and_then_is_asked_again(
    make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.annotators.chat import client

    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)

    def script(request: Request) -> str | web.Response:
        if request.again == 0 and request.number % 3 == 0:
            return web.Response(status=(429, 500)[request.number % 2], headers={"Retry-After": "0"})
        return lister.listing(request)

    with chat_server(script) as server:
        answers = make(server).annotate(pairs_of(tmp_path), 0)
        assert len(texts(answers)) == 6
    assert max(server.answered.values()) == 1
    assert sum(server.answered.values()) == 3 + 6 + 6 < len(server.requests)


def _sentences(text: str) -> list[str]:
    return [f"{part.strip()}." for part in text.split(".") if part.strip()]
