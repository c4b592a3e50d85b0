"""A real HTTP front before an S3 server that fails as stores fail, drawn from a seed, and that can be taken down."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

HOP = frozenset({"connection", "keep-alive", "expect", "transfer-encoding"})
ERRORS = {500: "InternalError", 503: "SlowDown"}
WORDS = {500: "Internal Server Error", 503: "Slow Down"}


@dataclass(frozen=True)
class Faults:
    """Shares of the calls that fail, each from 0 to 1."""

    errors: float = 0.0
    """Answered with 500 or 503 and not passed on."""
    cuts: float = 0.0
    """Cut in the middle of a body: of the answer, or of the request, which the store then never sees."""
    lost: float = 0.0
    """Calls that write, done by the store, of which the caller hears nothing."""
    spoilt: float = 0.0
    """Whole objects that arrive with one byte changed, here or there."""
    shortened: float = 0.0
    """Objects read of which a half arrives, while the header says that this is all."""


@dataclass(frozen=True)
class Call:
    """One call that came in."""

    method: str
    path: str
    """Without the query."""
    query: str
    headers: Mapping[str, str]
    body_bytes: int
    fault: str
    """Which fault befell it; none is empty."""
    status: int
    """What the store answered; 0 where it never saw the call."""


@dataclass
class Front:
    """The front: `url` is its endpoint, `calls` is what came in. Faults may be changed at any time."""

    store: str
    """Endpoint of the store behind."""
    seed: int = 0
    faults: Faults = field(default_factory=Faults)
    outages: dict[int, float] = field(default_factory=dict)
    """Number of the call, from 0, at which the front goes away → for how many seconds; inf is until `up`."""
    calls: list[Call] = field(default_factory=list)
    came: int = 0
    """Calls so far, those under way with them."""
    outages_had: int = 0
    url: str = ""
    watch: Callable[[Call], None] = lambda call: None
    """Called with each call when it is answered, in the front's thread."""
    other_etags: bool = False
    """Whether the ETags are other hashes than MD5."""

    def __post_init__(self) -> None:
        self._random = random.Random(self.seed)
        self._open: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._tasks: set[asyncio.Task[None]] = set()
        self._port = 0

    def start(self) -> None:
        self._thread.start()
        self.up()
        self.url = f"http://127.0.0.1:{self._port}"

    def stop(self) -> None:
        self.down()

        async def end() -> None:
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            await asyncio.gather(*others, return_exceptions=True)

        self._run(end())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def up(self) -> None:
        """Listen; at the same port as before."""
        self._run(self._up())

    def down(self) -> None:
        """Cut all connections and refuse new ones."""
        self._run(self._down())

    def puts(self) -> Counter[str]:
        """Path → how often the store took a whole object of that name."""
        return Counter(
            c.path
            for c in self.calls
            if c.method == "PUT" and c.status == 200 and "partNumber" not in c.query
        )

    def fault_counts(self) -> dict[str, int]:
        """Fault → calls that it befell."""
        return dict(sorted(Counter(c.fault for c in self.calls if c.fault).items()))

    def _run(self, coroutine: Any) -> None:
        asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(30)

    async def _up(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(
                self._serve, "127.0.0.1", self._port, limit=1 << 20, reuse_address=True
            )
            self._port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._open):
            writer.transport.abort()

    async def _outage(self, seconds: float) -> None:
        self.outages_had += 1
        await self._down()
        if seconds != float("inf"):
            await asyncio.sleep(seconds)
            await self._up()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._open.add(writer)
        with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while await self._one(reader, writer):
                pass
        self._open.discard(writer)
        writer.transport.abort() if writer.transport.is_closing() else writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Serve one call; whether the connection goes on."""
        head = await _head(reader)
        method, target, _ = head[0].split(" ", 2)
        headers = _headers(head)
        number, self.came = self.came, self.came + 1
        if number in self.outages:
            task = asyncio.create_task(self._outage(self.outages[number]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        length = int(headers.get("content-length", 0))
        fault = self._draw(method, target, length, headers)
        if "expect" in headers:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        if fault == "cut request":
            await reader.readexactly(length // 2)
            return self._end(method, target, headers, length, fault, 0, writer)
        body = await reader.readexactly(length) if length else await _chunked(reader, headers)
        if fault.startswith("error"):
            status = int(fault[-3:])
            text = f"<Error><Code>{ERRORS[status]}</Code><Message>drawn</Message></Error>".encode()
            self._note(method, target, headers, length, fault, 0)
            writer.write(
                f"HTTP/1.1 {status} {WORDS[status]}\r\nContent-Length: {len(text)}\r\n\r\n".encode()
                + (b"" if method == "HEAD" else text)
            )
            await writer.drain()
            return True
        if fault == "spoilt" and body:
            body = self._spoilt(body)
        status, answer, content = await self._pass_on(head, headers, body)
        if fault == "lost":
            return self._end(method, target, headers, length, fault, status, writer)
        if fault in ("cut answer", "shortened", "spoilt") and (status >= 300 or len(content) < 2):
            fault = "" if fault != "spoilt" or not body else fault  # nothing to cut
        if fault == "shortened":
            content = content[: len(content) // 2]
        elif fault == "spoilt" and method == "GET":
            content = self._spoilt(content)
        if self.other_etags and "etag" in answer:
            answer["etag"] = answer["etag"][::-1]
        stated = answer.get("content-length", "0") if method == "HEAD" else str(len(content))
        lines = [f"{k}: {v}" for k, v in answer.items() if k not in HOP | {"content-length"}]
        self._note(method, target, headers, length, fault, status)  # first: who has the answer may look
        writer.write(
            "\r\n".join([f"HTTP/1.1 {status} As Was", *lines, f"Content-Length: {stated}", "", ""]).encode(
                "latin-1"
            )
        )
        if fault == "cut answer":
            writer.write(content[: len(content) // 2])
            await writer.drain()
            writer.transport.abort()
            return False
        if method != "HEAD":
            writer.write(content)
        await writer.drain()
        return True

    def _spoilt(self, data: bytes) -> bytes:
        """Another byte each time, or one wrong could right the other."""
        at = self._random.randrange(len(data))
        return data[:at] + bytes([data[at] ^ self._random.randrange(1, 256)]) + data[at + 1 :]

    def _draw(self, method: str, target: str, length: int, headers: Mapping[str, str]) -> str:
        f, drawn = self.faults, self._random.random()
        whole = method in ("GET", "PUT") and "?" not in target and "range" not in headers
        for share, name in (
            (f.errors, f"error {self._random.choice((500, 503))}"),
            (f.cuts, "cut request" if length else "cut answer"),
            (f.lost if method in ("PUT", "POST", "DELETE") else 0, "lost"),
            (f.spoilt if whole else 0, "spoilt"),
            (f.shortened if method == "GET" and "?" not in target else 0, "shortened"),
        ):
            if drawn < share:
                return name
            drawn -= share
        return ""

    async def _pass_on(
        self, head: list[str], headers: Mapping[str, str], body: bytes
    ) -> tuple[int, dict[str, str], bytes]:
        there = urlsplit(self.store)
        reader, writer = await asyncio.open_connection(there.hostname, there.port)
        try:
            lines = [line for line in head[1:] if line.split(":")[0].lower() not in HOP | {"content-length"}]
            lines += [f"Content-Length: {len(body)}", "Connection: close"]
            writer.write("\r\n".join([head[0], *lines, "", ""]).encode("latin-1") + body)
            await writer.drain()
            answer = await _head(reader)
            content = await reader.read()
        finally:
            writer.close()
        return int(answer[0].split(" ")[1]), _headers(answer), content

    def _end(self, *noted: Any) -> bool:
        *what, writer = noted
        self._note(*what)
        writer.transport.abort()
        return False

    def _note(
        self, method: str, target: str, headers: Mapping[str, str], length: int, fault: str, status: int
    ) -> None:
        path, _, query = target.partition("?")
        call = Call(method, path, query, headers, length, fault, status)
        self.calls.append(call)
        self.watch(call)


@contextmanager
def front_of(store: str, seed: int = 0, faults: Faults | None = None) -> Iterator[Front]:
    """A front before the store at an endpoint, listening."""
    front = Front(store, seed, faults or Faults())
    front.start()
    try:
        yield front
    finally:
        front.stop()


async def _head(reader: asyncio.StreamReader) -> list[str]:
    raw = await reader.readuntil(b"\r\n\r\n")
    return raw[:-4].decode("latin-1").split("\r\n")


def _headers(head: list[str]) -> dict[str, str]:
    pairs = (line.split(":", 1) for line in head[1:])
    return {name.strip().lower(): value.strip() for name, value in pairs}


async def _chunked(reader: asyncio.StreamReader, headers: Mapping[str, str]) -> bytes:
    if "chunked" not in headers.get("transfer-encoding", ""):
        return b""
    body = b""
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    await reader.readline()
    return body
