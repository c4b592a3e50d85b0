"""`oacir reproduce` as a whole on a world of a few instances: one sitting, killed, gone on with, finished."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_sweep import SMALL

pytestmark = [pytest.mark.ray, pytest.mark.long, pytest.mark.timeout(900)]

LIMIT_S = 400.0
ROWS = ["adafocal", "roi_crop", "cross_sprc"]
RECIPE: dict[str, Any] = {
    "extends": "reproduce.yaml",
    "name": "small",
    "build": {
        "extends": "world.yaml",
        "source": {"world": {"instances_per_domain": 24, "image_size_px": 64, "domains": ["car", "product"]}},
    },
    "train": {
        "extends": "tiny.yaml",
        "model": {"overrides": SMALL},
        "training": {"steps": 12, "batch_size": 24, "dev_every_epochs": None, "checkpoint_every_steps": 4},
        "scaling": {"workers": 1},
    },
    "only": ROWS,
    "seeds": 1,
    "demanded": False,
}


def begin(root: Path, *options: str) -> subprocess.Popen[bytes]:
    words = ["reproduce", "--config", str(root / "small.yaml"), "--root", str(root), "--json", *options]
    return subprocess.Popen(
        [sys.executable, "-m", "infra.cli", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"RAY_ADDRESS": "local", "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def finish(process: subprocess.Popen[bytes]) -> tuple[int, dict[str, Any]]:
    out, complaint = process.communicate(timeout=LIMIT_S)
    assert out, complaint.decode()
    return process.returncode, json.loads(out)


def written(root: Path) -> dict[str, int]:
    """Records of finished trials and when they were written."""
    place = root / "reproductions" / "small" / "trials"
    return {file.stem: file.stat().st_mtime_ns for file in place.glob("*.json")}


def test_a_killed_reproduction_goes_on_and_repeats_no_finished_trial(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(yaml.safe_dump(RECIPE))
    process = begin(tmp_path, "--concurrent", "1")
    deadline = time.monotonic() + LIMIT_S
    while not written(tmp_path) and time.monotonic() < deadline and process.poll() is None:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    before = written(tmp_path)
    assert len(before) == 1

    code, outcome = finish(begin(tmp_path))
    after = written(tmp_path)
    assert code == 0
    assert set(after) == {"adafocal-s0", "roi_crop-s0", "cross_sprc-car-s0", "cross_sprc-product-s0"}
    assert after["adafocal-s0"] == before["adafocal-s0"]
    labels = [row["label"] for row in outcome["figures"]["rows"]]
    assert labels == [
        "AdaFocal", "AdaFocal, box IoU 0.8", "AdaFocal, box IoU 0.5", "AdaFocal, text only", "AdaFocal, reference only",
        "ROI crop", "SPRC, domain left out",
    ]  # fmt: skip
    assert outcome["figures"]["missing"] == []
    assert "## Orderings" in (tmp_path / "reproductions" / "small" / "report.md").read_text()

    code, again = finish(begin(tmp_path, "--demanded", "true", "--minutes", "0.0001"))
    assert written(tmp_path) == after
    assert again["figures"]["rows"] == outcome["figures"]["rows"]
    assert code == (0 if all(one["verdict"] != "FAIL" for one in again["figures"]["orderings"]) else 3)
