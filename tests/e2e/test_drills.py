"""One fault of each drill, and the same with its recovery taken out: the drill must notice. `make drills` does ten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(600)]
DRILLS = {
    "driver": ["drill_build.py", "--seed", "3", "--instances", "4"],
    "driver of an update": ["drill_build.py", "--update", "--seed", "3", "--instances", "6"],
    "worker": ["drill_worker.py", "--seed", "3", "--instances", "6"],
    "node": ["drill_node.py", "--seed", "3", "--instances", "6"],
    "a photo whose decoding hangs in C": [
        "drill_hang.py",
        "--seed",
        "2",
        "--instances",
        "6",
        "--seconds",
        "3",
    ],
}
WHAT_FAILS = {
    "driver": "parts_redone",
    "worker": "lost 1 times with its worker or node",
    "node": "lost 1 times with its worker or node",
    "a photo whose decoding hangs in C": "no record was noted",
}


def drilled(name: str, tmp_path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """The drill's exit code and what it wrote."""
    script, *options = DRILLS[name]
    place = tmp_path / "result.json"
    command = [sys.executable, str(Path(__file__).with_name(script)), *options, "--trials", "1", *more]
    done = subprocess.run(
        [*command, "--json", str(place)], capture_output=True, text=True, timeout=560, check=False
    )
    assert place.exists(), done.stdout + done.stderr[-2000:]
    return done.returncode, json.loads(place.read_text())


@pytest.mark.parametrize(
    "name", [n if n in ("driver", "worker") else pytest.param(n, marks=pytest.mark.long) for n in DRILLS]
)
def test_nothing_is_lost_or_done_twice(name: str, tmp_path: Path) -> None:
    code, result = drilled(name, tmp_path)
    (trial,) = result["results"]
    assert (code, result["passed"]) == (0, True), trial
    assert trial["parts_before"] > 0
    assert trial["parts_redone"] == 0
    assert trial["same_content"]
    assert trial["same_accounts"]
    assert trial["as_stated"]


@pytest.mark.drill
@pytest.mark.parametrize("name", WHAT_FAILS)
def test_a_drill_fails_without_its_recovery(name: str, tmp_path: Path) -> None:
    code, result = drilled(name, tmp_path, "--without-recovery")
    (trial,) = result["results"]
    assert (code, result["passed"]) == (1, False), trial
    if WHAT_FAILS[name] == "parts_redone":
        assert trial["same_content"]
        assert trial["parts_redone"] == trial["parts_before"] > 0
        assert result["redone_share"] > 0.1
    else:
        assert WHAT_FAILS[name] in trial["failure"]
