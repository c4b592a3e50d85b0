"""What Ray Tune's callbacks leave in the records; Tune itself is not started."""

from __future__ import annotations

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from small_sweep import ended

from infra.base.progress import Progress
from training.listening import MARK
from tuning.ledger import Ledger
from tuning.records import Reading, TrialRecord, read
from tuning.trial import begun_with, result

VALUES = {"training.learning_rate": 1e-3}
OTHERS = {"training.learning_rate": 2e-3}


def trial(number: int = 0, values: dict[str, Any] = VALUES) -> Any:
    config = {"trial": {"number": number, "values": values}}
    return SimpleNamespace(config=config, run_metadata=SimpleNamespace(num_failures=2))


def told(step: int, avg: float, values: dict[str, Any] = VALUES, origin: str = "") -> dict[str, Any]:
    item = Reading(step=step, figures={"avg": avg})
    return result(item, f"/root/runs/small/{step}") | {"values": values, "origin": origin}


def ledger(folder: Path, ended_records: list[TrialRecord], *known: TrialRecord) -> Ledger:
    progress = Progress("tune", 3, "trials", stream=io.StringIO())
    return Ledger(str(folder), {r.number: r for r in known}, progress, "avg", ended_records.append)


def test_every_measurement_is_kept_once_and_a_stop_by_the_scheduler_is_told(tmp_path: Path) -> None:
    over: list[TrialRecord] = []
    book = ledger(tmp_path, over)
    book.on_trial_start(trial=trial())
    assert read(str(tmp_path)) == [TrialRecord(number=0, values=VALUES)]
    for step, avg in ((3, 1.0), (6, 2.0), (6, 9.0)):  # a lost worker tells some of it again
        book.on_trial_result(trial=trial(), result=told(step, avg))
    (kept,) = read(str(tmp_path))
    assert [(r.step, r.figures["avg"]) for r in kept.readings] == [(3, 1.0), (6, 2.0)]
    assert kept.run == "/root/runs/small/6"
    book.on_trial_complete(trial=trial())
    (stopped,) = over
    assert (stopped.state, stopped.figures) == ("stopped", {"avg": 2.0})
    assert stopped.reason == "stopped by the scheduler after 2 dev measurements"
    assert read(str(tmp_path)) == [stopped]


def test_an_end_is_told_by_the_trial_and_by_nobody_else(tmp_path: Path) -> None:
    over: list[TrialRecord] = []
    book = ledger(tmp_path, over)
    book.on_trial_start(trial=trial())
    end = {"state": "finished", "figures": {"avg": 5.0}, "run_hash": "h", "values": VALUES, "origin": ""}
    book.on_trial_result(trial=trial(), result=end | {"avg": 5.0, "done": True})
    book.on_trial_complete(trial=trial())
    assert [(r.state, r.figures) for r in over] == [("finished", {"avg": 5.0})]
    assert book.progress.done == 1


def test_a_copied_trial_says_from_whom_and_with_what(tmp_path: Path) -> None:
    book = ledger(tmp_path, [])
    book.on_trial_start(trial=trial())
    book.on_trial_result(trial=trial(), result=told(3, 1.0))
    # the scheduler has changed the configuration already, the measurement is still of the values before
    book.on_trial_result(trial=trial(values=OTHERS), result=told(6, 1.5))
    assert read(str(tmp_path))[0].changes == ()
    book.on_trial_start(trial=trial(values=OTHERS))
    book.on_trial_result(
        trial=trial(values=OTHERS), result=told(9, 7.0, OTHERS, "/root/runs/small/best#trial-0-8")
    )
    (kept,) = read(str(tmp_path))
    assert kept.values == OTHERS
    assert kept.origin == "/root/runs/small/best#trial-0-8"
    assert kept.changes == ('went on from small/best with {"training.learning_rate": 0.002}',)


def test_copies_of_one_trial_are_runs_of_their_own() -> None:
    """Two copies of the best with the same values would train in one folder, and a later one would find the earlier."""
    best = {"number": 5, "values": VALUES, "run": "/root/runs/small/best", "origin": "", "step": 8}
    copies = [begun_with(best, 0, OTHERS), begun_with(best, 1, OTHERS)]
    copies += [begun_with(best | {"step": 16}, 0, OTHERS), begun_with(best, 0, VALUES)]
    assert len(set(copies[:3])) == 3
    assert {origin.partition(MARK)[0] for origin in copies} == {"/root/runs/small/best"}
    # its own checkpoint, after its process was lost, leads to the run it had
    own = {"number": 0, "values": OTHERS, "run": "/root/runs/small/own", "origin": copies[0], "step": 9}
    assert begun_with(own, 0, OTHERS) == copies[0]


def test_a_process_that_is_lost_too_often_fails_its_trial_alone(tmp_path: Path) -> None:
    over: list[TrialRecord] = []
    book = ledger(tmp_path, over)
    book.on_trial_start(trial=trial())
    book.on_trial_error(trial=trial())
    assert over[0].state == "failed"
    assert over[0].reason == "its process or machine was lost 2 times (max_failures)"


def test_a_replayed_trial_is_left_as_it_is(tmp_path: Path) -> None:
    over: list[TrialRecord] = []
    before = ended(0, VALUES, avg=4.0)
    book = ledger(tmp_path, over, before)
    book.on_trial_start(trial=trial())
    book.on_trial_result(trial=trial(), result=told(3, 1.0) | {"replayed": True})
    book.on_trial_result(trial=trial(), result={"replayed": True, "state": "finished", "avg": 1.0})
    book.on_trial_complete(trial=trial())
    assert book.records[0] == before
    assert over == []
