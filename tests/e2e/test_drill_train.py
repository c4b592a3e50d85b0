"""One kill of the training drill, and the same where no run looks for checkpoints; `make drills` does ten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
STEPS = 24


def drilled(folder: Path, *more: str) -> tuple[int, dict[str, Any]]:
    """The drill's exit code and what it wrote."""
    sizes = ["--kills", "1", "--seed", "1", "--steps", str(STEPS), "--identities", "24"]
    done = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("drill_train.py")),
            *sizes,
            "--out",
            str(folder),
            *more,
        ],
        capture_output=True,
        text=True,
        timeout=880,
        check=False,
    )
    place = folder / "drill_train.json"
    assert place.exists(), done.stdout + done.stderr[-2000:]
    return done.returncode, json.loads(place.read_text())


@pytest.mark.long
def test_a_killed_driver_resumes_to_the_same_losses(tmp_path: Path) -> None:
    code, result = drilled(tmp_path)
    assert (code, result["passed"]) == (0, True), result
    assert result["steps_once"]
    assert result["same_losses"]
    assert result["same_content"]
    assert 0 < result["kills"][0]["resumed_at"] < STEPS
    assert result["largest_share"] <= 0.1


@pytest.mark.drill
def test_the_drill_fails_where_no_checkpoint_is_looked_for(tmp_path: Path) -> None:
    code, result = drilled(tmp_path, "--without-recovery")
    assert (code, result["passed"]) == (1, False), result
    assert result["kills"][0]["resumed_at"] < 3
    assert result["largest_share"] > 0.1
