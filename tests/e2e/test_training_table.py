"""What the drills of training draw and allow, and that the docs tell their committed results."""

from __future__ import annotations

import random
import sys
from itertools import pairwise
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))


@pytest.mark.parametrize(("steps", "count"), [(400, 10), (60, 1), (400, 80)])
def test_moments_are_drawn_and_apart(steps: int, count: int) -> None:
    from training_course import APART, LATEST, Scene

    scene = Scene(Path(), steps, [], {}, "", 0.1)
    drawn = [scene.moments(random.Random(seed), count, first=3) for seed in range(50)]
    assert all(min(d) >= 3 and max(d) < LATEST * steps for d in drawn)
    assert len({tuple(d) for d in drawn}) > 25
    apart = min((b - a for d in drawn for a, b in pairwise(d)), default=APART)
    assert apart > (APART if count == 10 else 0)


def test_what_a_fault_may_cost() -> None:
    from training_course import Fault, Result

    def passed(lost: int, finished: int, **more: int) -> bool:
        fault = Fault(finished, finished, finished - lost, lost)
        result = Result("x", 400, 0, faults=[fault], **more)  # type: ignore[arg-type]
        result.same_losses = result.same_content = result.steps_once = True
        return result.passed

    assert passed(12, 200)  # a twentieth, and two in hand
    assert not passed(13, 200)
    assert passed(3, 10)  # early, each step has a checkpoint
    assert not passed(4, 10)
    assert passed(22, 200, distances=2)
    assert not passed(23, 200, distances=2)
    assert passed(0, 200, distances=0)
    assert not passed(1, 200, distances=0)


def test_the_docs_have_the_results() -> None:
    from training_table import committed, table

    text = (Path(__file__).resolve().parents[2] / "docs" / "reliability.md").read_text()
    for line in table(committed()).splitlines():
        assert line in text, f"docs/reliability.md lacks: {line}"
