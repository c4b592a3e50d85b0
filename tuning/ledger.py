"""Keeps the records of a sweep up to date while Ray Tune runs: its callbacks, in the driver."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from ray import tune

from infra.base.progress import Progress
from training.listening import MARK
from tuning import orphans
from tuning.records import TrialRecord, last_figures, write
from tuning.schedulers import REPLAYED
from tuning.space import token

log = logging.getLogger(__name__)
LOOK_EVERY_S = 5.0
FIELDS = ("state", "reason", "run", "run_hash", "found", "readings", "figures", "domains", "beta", "seconds")


class Ledger(tune.Callback):
    """Records by number; each is written when its trial begins, measures and ends.

    Args:
        sweep_url: of the sweep.
        records: of the trials that were begun before.
        progress: counts ended trials.
        objective: shown beside the progress.
        ended: called with every record that has ended.
    """

    def __init__(
        self,
        sweep_url: str,
        records: Mapping[int, TrialRecord],
        progress: Progress,
        objective: str,
        ended: Callable[[TrialRecord], None],
    ) -> None:
        self.sweep_url, self.records, self.progress = sweep_url, dict(records), progress
        self.objective, self.ended = objective, ended
        self.lost = False
        self.looked = 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune pickles its callbacks for a restart that this project does otherwise

    def on_trial_start(self, *, trial: Any, **_: Any) -> None:
        """A trial begins, or begins again after its process was lost."""
        self._of(trial)

    def on_trial_result(self, *, trial: Any, result: dict[str, Any], **_: Any) -> None:
        """A dev measurement, or the end."""
        if result.get(REPLAYED):
            return
        record = _moved(self._of(trial), result)
        if result.get("state"):
            known = {name: result[name] for name in FIELDS if name in result}
            self._end(TrialRecord.model_validate(record.model_dump() | known))
            return
        item = result["reading"]
        if all(kept.step != item["step"] for kept in record.readings):
            tree = record.model_dump()
            tree |= {"run": result["run"], "readings": [*tree["readings"], item]}
            self._keep(TrialRecord.model_validate(tree))

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """A trial is over; the scheduler ended it if it did not say so itself."""
        record = self._of(trial)
        if not record.ended:
            count = len(record.readings)
            reason = f"stopped by the scheduler after {count} dev measurement{'s' * (count != 1)}"
            figures = last_figures(record.readings)
            self._end(record.model_copy(update={"state": "stopped", "reason": reason, "figures": figures}))

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """A trial's process was lost more often than the recipe allows."""
        self.lost = True
        record = self._of(trial)
        if not record.ended:
            reason = f"its process or machine was lost {trial.run_metadata.num_failures} times (max_failures)"
            self._end(record.model_copy(update={"state": "failed", "reason": reason}))

    def on_trial_recover(self, **_: Any) -> None:
        """A trial's process was lost, and begins again."""
        self.lost = True

    def on_step_end(self, **_: Any) -> None:
        """After every event: once a process was lost, see now and then what it had reserved."""
        if self.lost and time.monotonic() - self.looked > LOOK_EVERY_S:
            self.looked = time.monotonic()
            orphans.remove()

    def _of(self, trial: Any) -> TrialRecord:
        """Its record, begun here: a process may be lost before Tune says that the trial starts."""
        number, values = trial.config["trial"]["number"], trial.config["trial"]["values"]
        if number not in self.records:
            self._keep(TrialRecord(number=number, values=values))
        return self.records[number]

    def _keep(self, record: TrialRecord) -> None:
        self.records[record.number] = record
        write(self.sweep_url, record)

    def _end(self, record: TrialRecord) -> None:
        self._keep(record)
        self.ended(record)
        if record.state == "failed":
            log.warning("trial %d failed: %s", record.number, record.reason)
        done = sum(r.ended for r in self.records.values()) - self.progress.done
        value = record.figures.get(self.objective)
        note = record.state if value is None else f"{self.objective} {value:.2f}"
        self.progress.update(done, f"trial {record.number}: {note}", at_once=True)


def _moved(record: TrialRecord, result: dict[str, Any]) -> TrialRecord:
    """The record of a trial that population based training has given another's checkpoint and other values."""
    origin, values = result["origin"], result["values"]
    if (origin, values) == (record.origin, record.values):
        return record
    run = origin.partition(MARK)[0]
    said = f"went on from {'/'.join(run.rstrip('/').split('/')[-2:])} with {token(values)}"
    return record.model_copy(
        update={"values": dict(values), "origin": origin, "changes": (*record.changes, said)}
    )
