"""Only a server that sees both drawings, and in order, is asked for texts."""

from __future__ import annotations

import itertools
import json
import random
from typing import Any

import pytest
from aiohttp import web
from chat_server import Request, chat_server, good, look

from infra.base.errors import OacirError
from pipelines.annotators.chat.canary import COLOURS, SHAPES, Drawing, check_eyes, draw_two
from pipelines.annotators.chat.options import ChatOptions


def check(script: Any, seed: int = 0, usage: bool = True, **options: Any) -> None:
    with chat_server(script, usage=usage) as server:
        chat = ChatOptions.model_validate({"base_url": server.url, "model": "seer", "tries": 1} | options)
        check_eyes(chat, None, random.Random(seed))
        assert len(server.requests) == 2


def answer(first: dict[str, str], second: dict[str, str]) -> str:
    return json.dumps({"first": first, "second": second})


def test_a_server_that_sees_passes_whatever_is_drawn() -> None:
    for seed in range(8):
        check(good, seed)


def test_two_drawings_always_differ_in_shape_and_colour() -> None:
    for seed in range(200):
        a, b = draw_two(random.Random(seed))
        assert a.shape != b.shape
        assert a.colour != b.colour


def test_every_drawing_can_be_told_by_eye() -> None:
    """Of the tests' own eye, too: it reads each of them from its pixels."""
    for shape, colour in itertools.product(SHAPES, COLOURS):
        assert look(Drawing(shape, colour).image()) == {"shape": shape, "colour": colour}


def fixed(_: Request) -> str:
    """Always the same, and right for one of the two orders."""
    a, b = draw_two(random.Random(0))
    return answer({"shape": a.shape, "colour": a.colour}, {"shape": b.shape, "colour": b.colour})


def swapped(request: Request) -> str:
    second, first = (look(p) for p in request.pictures)
    return answer(first, second)


def only_the_first(request: Request) -> str:
    seen = look(request.pictures[0])
    return answer(seen, seen)


@pytest.mark.parametrize(
    "script", [fixed, swapped, only_the_first, lambda _: "two nice drawings", lambda _: "{}"]
)
def test_who_does_not_see_both_in_order_is_refused(script: Any) -> None:
    with pytest.raises(
        OacirError, match=r"seer does not see the pictures: shown a .* and a .* it answered"
    ) as error:
        check(script)
    assert "\n" not in str(error.value)


def test_a_model_that_takes_no_pictures_is_told() -> None:
    with pytest.raises(
        OacirError, match=r"does not answer a request with two pictures \(HTTP 400: text only"
    ):
        check(lambda _: web.Response(status=400, text="text only"))


def test_a_budget_needs_a_server_that_counts() -> None:
    check(good, usage=False)
    with pytest.raises(OacirError, match="does not say how many tokens it took"):
        check(good, usage=False, most_tokens=1000)
