"""A scripted server of chat completions: real HTTP on loopback, real pictures decoded, answers as a test wants them."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import io
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from aiohttp import web
from PIL import Image

PLACES = (
    "beach", "forest", "kitchen", "market", "garden", "station", "harbour", "library", "mountain", "bridge", "meadow",
    "street", "museum", "desert", "river", "roof",
)  # fmt: skip
LIGHTS = ("at night", "at noon", "in fog", "in rain", "at dawn", "in snow", "under lamps", "in shade")
STATES = (
    "tilted",
    "upright",
    "half hidden",
    "far away",
    "close by",
    "seen from above",
    "seen from behind",
    "turned",
)


@dataclass
class Request:
    """What arrived."""

    body: dict[str, Any]
    digest: str
    """Of the body: equal for equal requests."""
    headers: dict[str, str]
    number: int
    """How many came before, and how many of these with the same body."""
    again: int

    @property
    def text(self) -> str:
        """All that was said in words."""
        return " ".join(_texts(self.body))

    @cached_property
    def pictures(self) -> list[Image.Image]:
        """Its photos, decoded, in order."""
        return [_picture(url) for url in _urls(self.body)]

    @property
    def turns(self) -> int:
        """Messages so far."""
        return len(self.body["messages"])


def good_text(request: Request) -> str:
    """A sentence that keeps the rules and differs from request to request."""
    digest = hashlib.sha256(f"{request.digest}".encode()).digest()
    words = [
        options[byte % len(options)]
        for byte, options in zip(digest, (PLACES, PLACES, LIGHTS, STATES), strict=False)
    ]
    tail = digest[8:11].hex().translate(str.maketrans("0123456789", "ghijklmnop"))
    return f"Show it near the {words[0]} beyond a {words[1]}, {words[2]} and {words[3]}, with a sign that says {tail}."


def content(text: str) -> str:
    """The answer to a pair."""
    return json.dumps({"changes": ["another place"], "text": text})


def good(request: Request) -> str:
    """Right answers to every kind of question; the drawings are really looked at."""
    if "two drawings" in request.text:
        first, second = (look(picture) for picture in request.pictures)
        return json.dumps({"first": first, "second": second})
    if "filed under one landmark" in request.text or "show one product" in request.text:
        label = {"type": "visual", "label": "clay kettle", "synonyms": ["tea maker"], "reasoning": "seen"}
        return json.dumps(label)
    return content(good_text(request))


def look(picture: Image.Image) -> dict[str, str]:
    """Shape and colour of a drawing, from its pixels: how wide it is at its top and bottom, and its middle."""
    small = picture.convert("RGB")
    side = small.width
    r, g, b = small.getpixel((side // 2, side // 2))
    colour = (
        "black" if max(r, g, b) < 90 else "yellow" if min(r, g) > 170 else
        {0: "red", 1: "green", 2: "blue"}[max(range(3), key=lambda n: (r, g, b)[n])]
    )  # fmt: skip
    edge = side // 5 + 6
    corners = [sum(small.getpixel(p)) < 600 for p in ((edge, edge), (edge, side - edge))]
    shape = "square" if corners[0] else "triangle" if corners[1] else "circle"
    return {"shape": shape, "colour": colour}


Answer = str | web.Response
Script = Callable[[Request], Answer]


@dataclass
class ChatServer:
    """A server on a free port of loopback.

    Attributes:
        script: what it answers; a text is the content of a completion, a response is sent as it is.
        latency_s: how long it takes for each answer.
        usage: whether it says how many tokens it took: 100 of the prompt, 20 of the answer.
    """

    script: Script = good
    latency_s: float = 0.0
    usage: bool = True
    answered: Counter[str] = field(default_factory=Counter)
    """Digest of a request → how often a completion for it was sent to the end."""
    arrived: list[float] = field(default_factory=list)
    """When requests came, on the loop's clock."""
    moments: list[tuple[float, float]] = field(default_factory=list)
    """When each completion was asked for and sent, in seconds since the epoch."""
    requests: list[Request] = field(default_factory=list)
    keep: bool = True
    """Whether requests are kept to look at."""
    most_at_once: int = 0
    url: str = ""
    _seen: Counter[str] = field(default_factory=Counter)
    _now: int = 0

    async def handle(self, call: web.Request) -> web.StreamResponse:
        """One request."""
        came = time.time()
        data = await call.read()
        digest = hashlib.sha256(data).hexdigest()
        self._now += 1
        self.most_at_once = max(self.most_at_once, self._now)
        self.arrived.append(asyncio.get_running_loop().time())
        try:
            body = json.loads(data)
            request = Request(body, digest, dict(call.headers), len(self.arrived) - 1, self._seen[digest])
            self._seen[digest] += 1
            if self.keep:
                self.requests.append(request)
            answer = self.script(request)
            if self.latency_s:
                await asyncio.sleep(self.latency_s)
        finally:
            self._now -= 1
        if isinstance(answer, web.Response):
            return answer
        message = {"role": "assistant", "content": answer}
        tree: dict[str, Any] = {
            "id": "1", "object": "chat.completion", "model": "scripted-1",
            "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
        }  # fmt: skip
        if self.usage:
            tree["usage"] = {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120}
        response = web.json_response(tree)
        await response.prepare(call)
        await response.write_eof()
        self.answered[digest] += 1
        self.moments.append((came, time.time()))
        return response

    @property
    def pairs(self) -> list[Request]:
        """The requests that were no canary."""
        return [r for r in self.requests if "two drawings" not in r.text]


@contextmanager
def chat_server(script: Script = good, **options: Any) -> Iterator[ChatServer]:
    """A running server; its thread ends with the block."""
    server = ChatServer(script, **options)
    loop = asyncio.new_event_loop()
    ready: list[str] = []
    up = threading.Event()

    async def start() -> web.AppRunner:
        app = web.Application(client_max_size=64 << 20)
        app.router.add_post("/v1/chat/completions", server.handle)
        runner = web.AppRunner(app, shutdown_timeout=0.5, handler_cancellation=True)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0, backlog=1024)
        await site.start()
        ready.append(f"http://127.0.0.1:{runner.addresses[0][1]}/v1")
        return runner

    def serve() -> None:
        runner = loop.run_until_complete(start())
        up.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    assert up.wait(30)
    server.url = ready[0]
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


def _texts(body: dict[str, Any]) -> Iterator[str]:
    for message in body["messages"]:
        parts: str | Sequence[Any] = message["content"]
        if isinstance(parts, str):
            yield parts
        else:
            yield from (part["text"] for part in parts if part["type"] == "text")


def _urls(body: dict[str, Any]) -> Iterator[str]:
    for message in body["messages"]:
        if not isinstance(message["content"], str):
            yield from (
                part["image_url"]["url"] for part in message["content"] if part["type"] == "image_url"
            )


def _picture(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB")
