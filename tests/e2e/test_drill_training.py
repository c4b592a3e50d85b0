"""One fault of each drill of training, and the same with its recovery taken out; `make drills` does ten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.drill, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
STEPS = 60
KINDS = (
    "worker", "workers", "sent-away", "hang", "node", "drained", "driver", "term", "damaged", "half", "s3", "disk",
    "nan",
)  # fmt: skip


def drilled(folder: Path, kind: str, *more: str) -> tuple[int, dict[str, Any]]:
    """The drill's exit code and what it wrote."""
    script, place = Path(__file__).with_name("drill_training.py"), folder / "result.json"
    words = ["--kind", kind, "--moments", "1", "--seed", "3", "--steps", str(STEPS), "--json", str(place)]
    done = subprocess.run(
        [sys.executable, str(script), *words, *more], capture_output=True, text=True, timeout=880, check=False
    )
    assert place.exists(), done.stdout + done.stderr[-2000:]
    return done.returncode, next(iter(json.loads(place.read_text()).values()))[0]


@pytest.mark.parametrize("kind", KINDS)
def test_losses_are_those_of_a_training_left_in_peace(kind: str, tmp_path: Path) -> None:
    code, result = drilled(tmp_path, kind)
    assert (code, result["passed"], result["moments"]) == (0, True, 1), result


@pytest.mark.parametrize("kind", KINDS)
def test_a_drill_fails_without_its_recovery(kind: str, tmp_path: Path) -> None:
    code, result = drilled(tmp_path, kind, "--without-recovery")
    assert (code, result["passed"]) == (1, False), result
    assert result["taken_out"]
