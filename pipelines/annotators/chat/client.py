"""One server of chat completions, asked many times at once: retries, waits and time-outs, and when to give up."""

from __future__ import annotations

import asyncio
import email.utils
import json
import logging
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import aiohttp
from pydantic import SecretStr

from infra.base.errors import OacirError
from pipelines.annotators.chat.options import ChatOptions

log = logging.getLogger(__name__)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
LONGEST_WAIT_S = 900.0
"""A server that asks for a longer one (a quota of the day) is not waited for: the build stops and can go on later."""
TRIED_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504, 529})
NOT_LET_IN = frozenset({401, 402, 403, 404, 405})
"""Statuses that speak of the server or the account, not of this request."""
GIVEN_UP_IN_A_ROW = 3
"""So many requests given up without one that succeeds between them mean that the server is away."""
MOST_BYTES = 4 << 20
SAID_CHARACTERS = 300


@dataclass(frozen=True)
class Reply:
    """What a server answered."""

    content: str | None
    finish: str | None
    prompt_tokens: int | None
    completion_tokens: int | None
    model: str | None


class NoAnswer(Exception):  # noqa: N818 - a verdict on one request of many
    """A request that the server does not answer, whatever it does with others."""


class _Again(Exception):  # noqa: N818 - control flow
    """A try that failed and may go better."""

    def __init__(self, why: str, wait_s: float | None = None) -> None:
        super().__init__(why)
        self.wait_s = wait_s


class ChatClient:
    """Asks a server; at most `concurrency` requests at once. Use it as an asynchronous context."""

    def __init__(self, options: ChatOptions, key: SecretStr | None) -> None:
        self.options, self._key = options, key
        self.retries = 0
        self._given_up = 0
        self._not_before = 0.0
        self._jitter = random.Random()
        self._room = asyncio.Semaphore(options.concurrency)

    async def __aenter__(self) -> ChatClient:
        headers = {"Authorization": f"Bearer {self._key.get_secret_value()}"} if self._key else {}
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self.options.seconds_per_request),
            connector=aiohttp.TCPConnector(limit=self.options.concurrency),
            headers=headers,
            trust_env=True,
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._session.close()

    async def ask(self, body: Mapping[str, Any]) -> Reply:
        """The answer to one request.

        Raises:
            NoAnswer: the server refuses this request, or fails at it while it answers others.
            OacirError: it lets nobody in, is away, or asks for a longer wait than `LONGEST_WAIT_S`.
        """
        data = json.dumps(body).encode()
        why = ""
        for attempt in range(self.options.tries):
            try:
                async with self._room:
                    await self._wait_for_the_server()
                    reply = await self._try(data)
            except _Again as again:
                self.retries += 1
                why = str(again)
                if again.wait_s is not None:
                    self._hold(again.wait_s, why)
                if attempt + 1 < self.options.tries:
                    await asyncio.sleep(self._pause(attempt))
                continue
            self._given_up = 0
            return reply
        self._given_up += 1
        if self._given_up >= GIVEN_UP_IN_A_ROW:
            raise OacirError(
                f"{self.options.base_url}: {self._given_up} requests in a row had no answer after {self.options.tries}"
                f" tries each ({why}); see to the server and run the command again, answers so far are kept"
            )
        raise NoAnswer(f"no answer after {self.options.tries} tries ({why})")

    async def _try(self, data: bytes) -> Reply:
        try:
            async with self._session.post(
                f"{self.options.base_url}/chat/completions",
                data=data,
                headers={"Content-Type": "application/json"},
                allow_redirects=False,  # elsewhere the key is nobody's business
            ) as response:
                text = await _body(response)
                status, headers = response.status, response.headers
        except TimeoutError as error:
            raise _Again(f"not done after {self.options.seconds_per_request:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            raise _Again(f"{type(error).__name__}: {_short(str(error))}") from error
        if status == 200:
            return _reply(text)
        said = f"HTTP {status}: {_short(text)}"
        if status in TRIED_AGAIN:
            raise _Again(said, retry_after(headers.get("Retry-After"), time.time()))
        if status in NOT_LET_IN or status < 400:
            raise OacirError(
                f"{self.options.base_url}: {said}; check base_url, model and the API key"
                f" ({self.options.key_file or self.options.key_variable})"
            )
        raise NoAnswer(said)

    def _hold(self, wait_s: float, why: str) -> None:
        """No request before that time: who is over a limit is not helped by the others' tries."""
        if wait_s > LONGEST_WAIT_S:
            raise OacirError(
                f"{self.options.base_url}: asks for {wait_s:,.0f} s of patience ({why}); run the command again then,"
                " answers so far are kept"
            )
        self._not_before = max(self._not_before, time.monotonic() + wait_s)

    async def _wait_for_the_server(self) -> None:
        while (wait_s := self._not_before - time.monotonic()) > 0:
            await asyncio.sleep(wait_s)

    def _pause(self, attempt: int) -> float:
        """Twice as long each time, drawn from the upper half so that many clients do not come back together."""
        longest = min(LONGEST_PAUSE_S, FIRST_PAUSE_S * 2**attempt)
        return self._jitter.uniform(longest / 2, longest)


def retry_after(value: str | None, now_s: float) -> float | None:
    """Seconds that a Retry-After header asks for: a number or a date; None without one that can be read."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - now_s)
    except ValueError:
        return None


async def _body(response: aiohttp.ClientResponse) -> str:
    pieces, size = [], 0
    async for piece in response.content.iter_chunked(1 << 16):
        pieces.append(piece)
        size += len(piece)
        if size > MOST_BYTES:
            raise NoAnswer(f"an answer of more than {MOST_BYTES:,} bytes")
    return b"".join(pieces).decode("utf-8", "replace")


def _reply(text: str) -> Reply:
    """What is used of an answer. One that is none (a proxy's page, a cut body) may go better another time."""
    try:
        tree = json.loads(text)
        choice = tree["choices"][0]
        message, usage = choice["message"], tree.get("usage") or {}
        content, finish, model = message.get("content"), choice.get("finish_reason"), tree.get("model")
        tokens = [usage.get(f"{kind}_tokens") for kind in ("prompt", "completion")]
    except (ValueError, KeyError, IndexError, TypeError, AttributeError, RecursionError) as error:
        raise _Again(f"no chat completion: {_short(text)}") from error
    prompt, completion = (t if isinstance(t, int) and t >= 0 else None for t in tokens)
    return Reply(
        content if isinstance(content, str) else None,
        finish if isinstance(finish, str) else None,
        prompt,
        completion,
        model if isinstance(model, str) else None,
    )


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SAID_CHARACTERS else line[: SAID_CHARACTERS - 1] + "…"
