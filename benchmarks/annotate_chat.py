"""Pairs a second that the chat annotator has answered by a server that takes 200 ms for each, and its memory meanwhile.

python -m benchmarks.annotate_chat [--pairs 10000] [--concurrency 32] [--latency-s 0.2]

`oacir build` over a rendered world runs as a process of its own, with the scripted server of the tests in this one:
real HTTP on loopback, photos encoded and sent, answers kept on disk, texts held against the gates. The most that can be
had is concurrency / latency. Measured is from the first request for a pair to the last answer, with all breaks between.
"""

from __future__ import annotations

import argparse
import importlib
import json
import math
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from benchmarks.machine import FamilyMemory, write_result

SUPPORT = Path(__file__).parents[1] / "tests" / "support"
SCENES = 5
"""Of an instance: 20 ordered pairs."""
GOAL, GOAL_GROWTH = 0.9, 1.05
OPEN = {"tau_valid": 3, "tau_high": 1.0, "tau_centric": 1.0, "tau_count": 5}


def main() -> None:
    """Measure, write `results/annotate_chat_CONCURRENCY.json`; exit with 1 if a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=32)
    parser.add_argument("--latency-s", type=float, default=0.2)
    parser.add_argument("--image-size-px", type=int, default=224)
    options = parser.parse_args()
    sys.path.insert(0, str(SUPPORT))
    scripted: Any = importlib.import_module("chat_server")
    with (
        scripted.chat_server(latency_s=options.latency_s, keep=False) as server,
        tempfile.TemporaryDirectory() as folder,
        FamilyMemory(0.25) as memory,
    ):
        recipe = Path(folder) / "recipe.yaml"
        recipe.write_text(yaml.safe_dump(recipe_of(options, server.url)))
        command = [
            sys.executable,
            "-m",
            "infra.cli",
            "build",
            "--config",
            str(recipe),
            "--root",
            folder,
            "--json",
        ]
        done = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, env=memory.environment()
        )
        figures = json.loads(done.stdout)["chat"]
        moments = list(server.moments)
    found = judged(moments[2:], memory.history, options.concurrency, options.latency_s)
    setting = {
        "concurrency": options.concurrency,
        "latency_s": options.latency_s,
        "image_size_px": options.image_size_px,
        "most_at_once": server.most_at_once,
        "asked_twice": sum(n - 1 for n in server.answered.values()),
    }
    told = f"python -m benchmarks.annotate_chat --pairs {options.pairs} --concurrency {options.concurrency}"
    data = {"command": told, "setting": setting, "chat": figures, **found}
    print(json.dumps(data, indent=1))
    print(write_result(f"annotate_chat_{options.concurrency}", data))
    sys.exit(0 if found["ratio"] >= GOAL and found["growth"] <= GOAL_GROWTH else 1)


def recipe_of(options: argparse.Namespace, url: str) -> dict[str, Any]:
    """A world with at least so many pairs, of two domains whose objects are not named first."""
    instances = math.ceil(options.pairs / (2 * SCENES * (SCENES - 1)))
    world = {
        "domains": ["car", "fashion"],
        "instances_per_domain": max(2, instances),
        "scenes_per_instance": SCENES,
        "reserve_fraction": 0.0,
        "near_duplicate_fraction": 0.0,
        "class_centric_fraction": 0.0,
        "image_size_px": options.image_size_px,
    }
    return {
        "name": "asked",
        "source": {"kind": "world", "world": world},
        "thresholds": {"default": OPEN},
        "annotator": "chat",
        "chat": {"base_url": url, "model": "scripted", "concurrency": options.concurrency},
    }


def judged(
    answered: Sequence[tuple[float, float]],
    history: Sequence[tuple[float, dict[str, int]]],
    concurrency: int,
    latency_s: float,
) -> dict[str, Any]:
    """Throughput against the most there can be, and the growth of the workers' memory.

    Args:
        answered: moments (`time.time`) at which each request came and its answer was sent.
        history: moment → role → bytes.
        concurrency: requests in flight.
        latency_s: of the server.
    """
    began, ended = min(a for a, _ in answered), max(b for _, b in answered)
    rate, most = len(answered) / (ended - began), concurrency / latency_s
    during = [roles.get("workers", 0) for moment, roles in history if began <= moment <= ended]
    quarter = max(1, len(during) // 4)
    second, last = statistics.fmean(during[quarter : 2 * quarter]), statistics.fmean(during[-quarter:])
    return {
        "requests": len(answered),
        "seconds": round(ended - began, 2),
        "per_second": round(rate, 2),
        "most_per_second": most,
        "ratio": round(rate / most, 4),
        "goal": GOAL,
        "workers_mib_second_quarter": round(second / 2**20, 1),
        "workers_mib_last_quarter": round(last / 2**20, 1),
        "growth": round(last / second, 4),
        "goal_growth": GOAL_GROWTH,
        "looks": len(during),
        "at": time.strftime("%Y-%m-%d"),
    }


if __name__ == "__main__":
    main()
