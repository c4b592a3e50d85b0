"""The protocol against a server of another maker, `transformers serve`: requests are understood, counted and answered.

Its model has random weights, so the canary must refuse it. The server needs the package openai, which comes with the
extra dev.
"""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_seer import save_tiny_seer

from infra.base.errors import OacirError
from pipelines.annotators.chat.canary import SIDE_PX, Drawing, check_eyes
from pipelines.annotators.chat.client import ChatClient
from pipelines.annotators.chat.options import ChatOptions
from pipelines.annotators.chat.pictures import data_url
from pipelines.annotators.chat.prompts import Picture, Question, canary_text, payload

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ChatOptions]:
    folder = tmp_path_factory.mktemp("seer")
    model = save_tiny_seer(folder / "model")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", model, "--device", "cpu"]
    log = (folder / "log").open("wb")
    server = subprocess.Popen([*command, "--host", "127.0.0.1", "--port", str(port)], stdout=log, stderr=log)
    try:
        _wait(f"http://127.0.0.1:{port}/health", server, folder / "log")
        yield ChatOptions(base_url=f"http://127.0.0.1:{port}/v1", model=model, max_tokens=24, tries=2)
    finally:
        server.kill()
        server.wait()
        log.close()


def _wait(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 120
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-3000:]
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.2)
    raise AssertionError(f"not up: {log.read_text()[-3000:]}")


def test_random_weights_are_refused(served: ChatOptions) -> None:
    with pytest.raises(OacirError, match=r"does not see the pictures: shown a .* and a .* it answered"):
        check_eyes(served, None, random.Random(0))


def test_two_pictures_arrive_and_their_tokens_are_counted(served: ChatOptions) -> None:
    drawings = {"a": Drawing("circle", "red"), "b": Drawing("square", "blue")}
    urls = {name: data_url(drawing.image(), SIDE_PX) for name, drawing in drawings.items()}

    async def prompt_tokens(*names: str) -> int:
        parts = (canary_text(), *(Picture("", name) for name in names))
        async with ChatClient(served, None) as client:
            reply = await client.ask(payload(Question((("user", parts),), "canary", 0, ""), served, urls))
        assert reply.content is not None
        assert reply.completion_tokens is not None
        assert 0 < reply.completion_tokens <= 24
        assert reply.prompt_tokens is not None
        return reply.prompt_tokens

    none, one, two = (asyncio.run(prompt_tokens(*names)) for names in ((), ("a",), ("a", "b")))
    # 28 px in patches of 14: each picture is four tokens more
    assert (one - none, two - none) == (4, 8)
