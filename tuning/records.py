"""What a sweep knows of each trial. It is all that a resumed sweep reads: Ray Tune's own state is thrown away."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from infra.base import storage
from infra.base.config import Config
from infra.base.errors import OacirError
from training.job import Note
from tuning.config import AVERAGE, MEASURES

FOLDER = "trials"
State = Literal["running", "finished", "stopped", "failed"]


class Reading(Config):
    """A dev measurement."""

    step: int
    """After which."""
    figures: dict[str, float]
    """avg, its parts (means over the domains) and those of each domain (domain/R@1), percent."""


class Measured(Config):
    """A metric of a domain (or of all) with its interval, percent."""

    value: float
    low: float | None
    """None where all queries are of one instance."""
    high: float | None
    """None where all queries are of one instance."""


class TrialRecord(Config):
    """A trial as far as it came."""

    number: int
    """From 0, in the order in which they were begun."""
    values: dict[str, Any]
    """Of the fields that are searched."""
    state: State = "running"
    """stopped: the scheduler ended it."""
    reason: str = ""
    """Why it failed or was stopped, one line."""
    run: str = ""
    """URL of its run."""
    run_hash: str = ""
    """Content hash of its finished run."""
    found: bool = False
    """Whether its run had been finished before."""
    readings: tuple[Reading, ...] = ()
    """Dev measurements in order."""
    figures: dict[str, float] = Field(default_factory=dict)
    """Of the exported weights on dev, and what is known at the end; of a stopped trial those of its last reading."""
    domains: dict[str, dict[str, Measured]] = Field(default_factory=dict)
    """Domain → metric → interval, from the evaluation on dev."""
    beta: dict[str, float] | None = None
    """mean and std of β over the dev queries; None without modulation or evaluation."""
    changes: tuple[str, ...] = ()
    """What population based training did to it, in words."""
    origin: str = ""
    """The run whose checkpoint its present run began with."""
    seconds: float | None = None
    """From its start to its end, in the run of the sweep that ended it."""

    @property
    def ended(self) -> bool:
        """Whether nothing is left to do."""
        return self.state != "running"


def reading(note: Note) -> Reading:
    """A dev note of the workers with its means over the domains (`devset.dev_readings`)."""
    figures = {name: float(value) for name, value in note.figures.items() if name not in ("step", "mean")}
    for measure in MEASURES:
        of_domains = [value for name, value in figures.items() if name.rpartition("/")[2] == measure]
        figures[measure] = sum(of_domains) / len(of_domains)
    return Reading(step=note.step, figures={**figures, AVERAGE: float(note.figures["mean"])})


def write(sweep_url: str, record: TrialRecord) -> None:
    """Keep a record; whole or not at all."""
    text = json.dumps(record.model_dump(mode="json"), ensure_ascii=False)
    storage.write_bytes(storage.join(sweep_url, FOLDER, f"{record.number:05d}.json"), text.encode())


def anew(record: TrialRecord) -> TrialRecord:
    """A trial that failed, to be tried again: it goes on with the values and the run that it has."""
    gone: dict[str, object] = {"state": "running", "reason": "", "figures": {}, "seconds": None}
    return record.model_copy(update=gone) if record.state == "failed" else record


def read(sweep_url: str) -> list[TrialRecord]:
    """All records, by number.

    Raises:
        OacirError: one is damaged.
    """
    place = storage.join(sweep_url, FOLDER)
    found = []
    for file in storage.files_in(place):
        url = storage.join(place, file.path)
        try:
            found.append(TrialRecord.model_validate(json.loads(storage.read_bytes(url))))
        except ValueError as error:
            raise OacirError(
                f"{url}: damaged record ({error}); delete it, its trial is then tried again"
            ) from error
    return sorted(found, key=lambda record: record.number)


def last_figures(readings: Sequence[Reading]) -> dict[str, float]:
    """Those of the newest reading; nothing where there is none."""
    return dict(readings[-1].figures) if readings else {}
