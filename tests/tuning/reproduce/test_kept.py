"""What trials leave behind, and the queue of those that are left."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ranked import ranked
from ray.tune.search import Searcher

from infra.base.errors import OacirError
from training.config import TrainRecipe
from tuning.reproduce.kept import TrialKept, find, keep, ranks_of
from tuning.reproduce.trial import Queue, Task

KEPT = TrialKept(name="adafocal-s0", key="k", run="/runs/a", run_hash="h", train_s=1.0, measure_s=2.0)


def test_a_trial_is_there_once_its_record_is_and_only_as_long_as_it_is_the_same_trial(tmp_path: Path) -> None:
    place = str(tmp_path)
    assert find(place, KEPT.name, "k") is None
    keep(place, KEPT, ranked(40))
    assert find(place, KEPT.name, "k") == KEPT
    assert find(place, KEPT.name, "of another recipe") is None
    assert ranks_of(place, KEPT.name).equals(ranked(40))
    (tmp_path / "trials" / "adafocal-s0.json").write_text("{")
    with pytest.raises(OacirError, match="damaged record; delete it"):
        find(place, KEPT.name, "k")


def test_ranks_without_a_record_are_no_trial(tmp_path: Path) -> None:
    keep(str(tmp_path), KEPT, ranked(40))
    (tmp_path / "trials" / "adafocal-s0.json").unlink()
    assert find(str(tmp_path), KEPT.name, "k") is None


def test_no_trial_begins_once_the_time_is_up() -> None:
    tasks = [Task(f"t{i}", "k", TrainRecipe(), None, (), 0) for i in range(2)]
    queue = Queue(tasks, time.monotonic() + 1000)
    assert [queue.suggest(str(i))["task"].name for i in range(2)] == ["t0", "t1"]
    assert queue.suggest("2") == Searcher.FINISHED
    assert Queue(tasks, time.monotonic() - 1).suggest("0") == Searcher.FINISHED
    assert Queue(tasks, None).suggest("0")["task"] is tasks[0]
