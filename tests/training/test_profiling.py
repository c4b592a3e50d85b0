"""The trace of a few steps, whatever step a training goes on from."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
import torch

from training.profiling import Trace
from training.tracking import TrackingSection

SECTION = TrackingSection(profile_from=4, profile_steps=2)


def work(folder: Path, start: int) -> None:
    """Ten steps behind `start`, of a product each."""
    with Trace(SECTION, str(folder), start, active=True) as trace:
        for step in range(start + 1, start + 11):
            torch.ones(8, 8) @ torch.ones(8, 8)
            trace.step(step)


@pytest.mark.parametrize("start", [0, 1, 2])
def test_steps_have_their_own_numbers_in_the_trace(tmp_path: Path, start: int) -> None:
    work(tmp_path, start)
    (file,) = (path for path in tmp_path.rglob("*") if path.is_file())
    assert file.name == "steps-4-5.json.gz"
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    steps = {e["name"]: e for e in events if e["name"].startswith("ProfilerStep")}
    assert set(steps) == {"ProfilerStep#4", "ProfilerStep#5"}
    for step in steps.values():
        inside = [
            e for e in events if e["name"] == "aten::mm" and step["ts"] <= e["ts"] < step["ts"] + step["dur"]
        ]
        assert len(inside) == 1


def test_a_training_that_goes_on_behind_them_traces_nothing(tmp_path: Path) -> None:
    work(tmp_path, 3)
    assert not list(tmp_path.iterdir())
