"""Pairs of made-up photos, and the chat annotator over a scripted server."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import SecretStr

from pipelines.annotators.base import PairToAnnotate
from pipelines.annotators.chat.annotator import ChatAnnotator
from pipelines.annotators.chat.options import ChatOptions, ChatSetting

Pairs = Callable[..., list[PairToAnnotate]]


@pytest.fixture
def make_pairs(tmp_path: Path) -> Pairs:
    """Makes ordered pairs of the photos of one instance, each photo another picture."""

    def make(
        photos: int = 4, domain: str = "toys", side: int = 48, name: str = "thing"
    ) -> list[PairToAnnotate]:
        sides: list[dict[str, Any]] = []
        for n in range(photos):
            path = tmp_path / f"{domain}-{name}-{n}.png"
            pixels = np.random.default_rng([n, len(name)]).integers(0, 255, (side, side, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(path)
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            sides.append(
                {
                    "image_id": f"{domain}/{name}/{n}",
                    "uri": str(path),
                    "sha256": digest,
                    "width": side,
                    "height": side,
                    "box": [0.0, 12.0, 24.0, 48.0],
                    "variant": None,
                }
            )
        return [
            PairToAnnotate(f"{domain}/{name}/{a}-{b}", domain, "train", f"{domain}/{name}", "plaything", x, y)
            for a, x in enumerate(sides) for b, y in enumerate(sides) if a != b
        ]  # fmt: skip

    return make


@pytest.fixture
def make_annotator(tmp_path: Path) -> Callable[..., ChatAnnotator]:
    """Makes a chat annotator of a server's address; equal ones share what is kept."""

    def make(
        url: str, key: str | None = None, benchmark: str = "b/1", kept: str = "kept", **options: Any
    ) -> ChatAnnotator:
        chat = ChatOptions.model_validate({"base_url": url, "model": "m", "tries": 3} | options)
        secret = SecretStr(key) if key else None
        return ChatAnnotator(ChatSetting(chat, secret, str(tmp_path / kept), benchmark, {"car": 25}, 30))

    return make


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries again at once."""
    from pipelines.annotators.chat import client

    monkeypatch.setattr(client, "FIRST_PAUSE_S", 0.01)
