"""The chat annotator in a worker of Ray: it travels there, keeps to its requests in flight, is counted."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
from chat_server import chat_server

from infra.base.command import Context
from infra.base.versions import open_version
from pipelines.build import build
from pipelines.config import BuildRecipe

pytestmark = pytest.mark.ray
LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}


def test_a_build_on_ray(ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOME_KEY", "sk-of-the-driver")
    with chat_server(latency_s=0.02) as server:
        world = {"domains": ["car"], "instances_per_domain": 8, "image_size_px": 64}
        tree = {
            "name": "asked",
            "source": {"kind": "world", "world": world},
            "thresholds": {"default": LOOSE},
            "max_pairs_per_instance": 6,
            "images_per_part": 16,
            "annotator": "chat",
            "chat": {"base_url": server.url, "model": "m", "concurrency": 3, "key_variable": "SOME_KEY"},
        }
        done = build(BuildRecipe.model_validate(tree), Context(root=str(tmp_path)))
    figures = open_version(str(done.location)).manifest.figures
    queries = sum(figures["domains"]["car"]["queries"].values())
    assert queries > 30
    assert figures["chat"]["requests"] == queries == len(server.pairs)
    assert max(Counter(r.digest for r in server.pairs).values()) == 1
    assert server.most_at_once == 3  # however many CPUs the session has
    assert {r.headers["Authorization"] for r in server.requests} == {"Bearer sk-of-the-driver"}
    told = [p for p in tmp_path.rglob("*") if p.is_file() and b"sk-of-the-driver" in p.read_bytes()]
    assert told == []
