"""Retries, waits, time-outs and giving up, over real HTTP."""

from __future__ import annotations

import asyncio
import email.utils
from typing import Any

import pytest
from aiohttp import web
from chat_server import ChatServer, Request, chat_server, content, good
from pydantic import SecretStr

from infra.base.errors import OacirError
from pipelines.annotators.chat import client as module
from pipelines.annotators.chat.client import ChatClient, NoAnswer, Reply, retry_after
from pipelines.annotators.chat.options import ChatOptions

BODY = {"model": "m", "messages": [{"role": "user", "content": "hello"}]}


def ask(server: ChatServer | str, times: int = 1, **options: Any) -> list[Reply | BaseException]:
    url = server if isinstance(server, str) else server.url
    chat = ChatOptions.model_validate({"base_url": url, "model": "m", "tries": 4} | options)

    async def all_of_them() -> list[Reply | BaseException]:
        async with ChatClient(chat, SecretStr("sk-very-secret")) as client:
            bodies = [BODY | {"seed": n} for n in range(times)]
            return await asyncio.gather(*map(client.ask, bodies), return_exceptions=True)

    return asyncio.run(all_of_them())


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503, 529])
def test_what_may_go_better_is_tried_again(status: int, fast: None) -> None:
    def script(request: Request) -> Any:
        return good(request) if request.again == 2 else web.Response(status=status, text="later")

    with chat_server(script) as server:
        (reply,) = ask(server)
    assert isinstance(reply, Reply)
    assert (reply.finish, reply.prompt_tokens, reply.completion_tokens) == ("stop", 100, 20)
    assert len(server.requests) == 3


def test_a_pause_grows_and_is_drawn(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = ChatOptions(base_url="http://localhost/v1", model="m")

    async def pauses() -> list[list[float]]:
        client = ChatClient(chat, None)
        return [[client._pause(n) for _ in range(200)] for n in range(8)]

    drawn = asyncio.run(pauses())
    for n, row in enumerate(drawn):
        longest = min(module.LONGEST_PAUSE_S, module.FIRST_PAUSE_S * 2**n)
        assert longest / 2 <= min(row) < 0.6 * longest < 0.9 * longest < max(row) <= longest


def test_retry_after_holds_every_request() -> None:
    def script(request: Request) -> Any:
        if request.number == 0:
            return web.Response(status=429, headers={"Retry-After": "1"}, text="slow down")
        return good(request)

    with chat_server(script) as server:
        chat = ChatOptions(base_url=server.url, model="m", concurrency=1)

        async def one_after_the_other() -> None:
            async with ChatClient(chat, None) as client:
                await asyncio.gather(*(client.ask(BODY | {"seed": n}) for n in range(4)))

        asyncio.run(one_after_the_other())
    first, second = server.arrived[:2]
    assert second - first >= 0.99
    assert len(server.arrived) == 5


def test_retry_after_is_a_number_or_a_date() -> None:
    assert retry_after("7", 0.0) == 7.0
    assert retry_after("-3", 0.0) == 0.0
    date = email.utils.formatdate(1_000_030, usegmt=True)
    assert retry_after(date, 1_000_000.0) == 30.0
    assert retry_after(date, 2_000_000.0) == 0.0
    assert retry_after("soon", 0.0) is None
    assert retry_after(None, 0.0) is None


def test_a_wait_of_hours_is_not_waited_for() -> None:
    with chat_server(lambda _: web.Response(status=429, headers={"Retry-After": "7200"})) as server:
        (error,) = ask(server)
    assert isinstance(error, OacirError)
    assert "asks for 7,200 s of patience" in str(error)


def test_a_slow_answer_is_cut_in_the_middle_too(fast: None) -> None:
    def script(request: Request) -> Any:
        return good(request)

    with chat_server(script, latency_s=1.0) as server:
        (error,) = ask(server, seconds_per_request=0.2, tries=2)
    assert isinstance(error, NoAnswer)
    assert str(error) == "no answer after 2 tries (not done after 0.2 s)"


@pytest.mark.parametrize("status", [301, 401, 402, 403, 404])
def test_who_is_not_let_in_is_told_at_once_and_without_the_key(status: int) -> None:
    answer = {"status": status, "text": "no such key", "headers": {"Location": "http://127.0.0.1:1/"}}
    with chat_server(lambda _: web.Response(**answer)) as server:
        (error,) = ask(server)
        assert len(server.requests) == 1
    assert isinstance(error, OacirError)
    assert f"HTTP {status}: no such key; check base_url, model and the API key (OPENAI_API_KEY)" in str(error)
    assert "sk-very-secret" not in str(error)


def test_a_server_that_is_away_stops_the_build(fast: None) -> None:
    with chat_server() as server:
        pass
    errors = ask(server.url, times=4, tries=2)
    assert sum(isinstance(e, NoAnswer) for e in errors) == 2  # the third in a row is enough
    assert any(
        isinstance(e, OacirError) and "requests in a row had no answer after 2 tries" in str(e)
        for e in errors
    )


@pytest.mark.parametrize(
    "body",
    ["<html>busy</html>", "", '{"error": {"message": "x"}}', '{"choices": []}', "[1]", '{"choices": [null]}'],
)
def test_what_is_no_completion_is_tried_again(body: str, fast: None) -> None:
    def script(request: Request) -> Any:
        return web.Response(text=body) if request.again == 0 else content("It is on the beach.")

    with chat_server(script) as server:
        (reply,) = ask(server)
    assert isinstance(reply, Reply)
    assert len(server.requests) == 2


def test_an_answer_without_an_end_is_given_up() -> None:
    with chat_server(lambda _: web.Response(body=b"x" * (module.MOST_BYTES + 1))) as server:
        (error,) = ask(server)
    assert isinstance(error, NoAnswer)
    assert "more than" in str(error)


def test_never_more_in_flight_than_asked_for() -> None:
    with chat_server(latency_s=0.05) as server:
        replies = ask(server, times=40, concurrency=5)
    assert all(isinstance(r, Reply) for r in replies)
    assert server.most_at_once == 5
