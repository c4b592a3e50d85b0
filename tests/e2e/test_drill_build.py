"""One kill of the build drill; `make drills` does ten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
@pytest.mark.ray
def test_a_killed_build_finishes_with_the_same_content_and_redoes_nearly_nothing(tmp_path: Path) -> None:
    script, place = Path(__file__).with_name("drill_build.py"), tmp_path / "result.json"
    done = subprocess.run(
        [
            sys.executable,
            str(script),
            "--kills",
            "1",
            "--seed",
            "3",
            "--instances",
            "20",
            "--json",
            str(place),
        ],
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    result = json.loads(place.read_text())
    (kill,) = result["results"]
    assert 0 < kill["files_at_kill"] < result["files"]
    assert kill["records_at_kill"] > 0
    assert kill["records_redone"] == 0
    assert kill["same_content"]
    assert result["redone_share"] <= 0.1
