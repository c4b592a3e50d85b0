"""A sweep in MLflow: one run above the runs of its trials, from the driver. Each trial's training logs itself, in a run
that names this one; a trial whose run was there before gets a short one of its own."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from typing import Any

import yaml

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.spool import FOLDER, Spool, flattened
from infra.base.teller import Teller
from infra.base.tracking import PATIENCE_S, Tracker, send, shown, tracking_uri
from infra.base.versions import MANIFEST, Draft, Version, code_version, open_version
from tuning.config import SweepRecipe
from tuning.records import TrialRecord, read

log = logging.getLogger(__name__)
FOUND = "found"
"""Folder in the sweep of the spools of trials that were found."""
PAGE = "report.html"


class SweepLog:
    """A sweep's way to MLflow; without a server it takes everything and does nothing."""

    def __init__(self, recipe: SweepRecipe, draft: Draft, uri: str | None) -> None:
        self.recipe, self.draft, self.uri = recipe, draft, uri
        self.tracker: Tracker | None = None
        self.failures: list[str] = []
        """What could not be sent, a line each."""
        if uri is not None:
            section = recipe.train.tracking
            spool = Spool(storage.join(draft.url, FOLDER))
            self.tracker = Tracker(spool, uri, section.experiment, recipe.name, section.parent)

    @property
    def spool_id(self) -> str | None:
        """What trials name this run by."""
        return None if self.tracker is None else str(self.tracker.spool.run["id"])

    def begin(self, parents: Mapping[str, Version]) -> None:
        """Recipe and origins."""
        if self.tracker is None:
            return
        tree = self.recipe.model_dump(mode="json")
        searched = {"space": tree.pop("space"), "algorithm": tree.pop("algorithm")}
        self.tracker.params(searched | {"scheduler": tree["scheduler"], "train": tree["train"]})
        text = yaml.safe_dump(self.recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True)
        self.tracker.text("recipe.yaml", text)
        code, _, revision = code_version().partition("+")
        for role, version in parents.items():
            manifest = version.manifest
            profile = {"kind": manifest.kind, "key": manifest.key, "files": len(manifest.files)}
            self.tracker.input(manifest.name, version.url, manifest.content_hash, role, profile)
        self.tracker.tags(
            {
                "oacir.sweep": f"{self.draft.name}/{self.draft.key}",
                "oacir.version": code,
                **({"oacir.revision": revision} if revision else {}),
                **{f"oacir.{role}_hash": v.manifest.content_hash for role, v in parents.items()},
            }
        )

    def ended(self, record: TrialRecord) -> None:
        """A trial that has ended: its figures at the step of its number; of one that was found, a run of its own. Told
        again, it is logged once."""
        if self.tracker is None or self.uri is None:
            return
        if record.figures:
            self.tracker.metrics("trial", record.number, record.figures, time.time())
        if record.found and not self._logged_here(record):
            self._short(record, self.uri)

    def finished(self, figures: Mapping[str, Any], page: str, content_hash: str) -> None:
        """The page and what is best."""
        if self.tracker is not None:
            _results(self.tracker, figures, page, content_hash, time.time())

    def line(self) -> tuple[str, ...]:
        """Where the run is in MLflow, for the outcome."""
        if self.tracker is None:
            return ()
        found = self.tracker.run_id
        where = () if found is None else (f"MLflow run {found} at {shown(self.tracker.uri)}",)
        return (*where, *(f"warning: {failure}" for failure in self.failures))

    def close(self, status: str, patience_s: float = PATIENCE_S) -> None:
        """End the run; says what could not be sent."""
        if self.tracker is not None and (failure := self.tracker.close(status, patience_s)):
            self._fails(failure)

    def send_trials(self) -> None:
        """Send what the trials spooled and could not send: each gave up by itself, maybe long ago."""
        if self.tracker is None or self.uri is None:
            return
        place, why, missing, trials = shown(self.uri), "", 0, 0
        for _, spool in trial_spools(self.draft.url):
            if len(spool.records) == spool.sent(place)[1]:
                continue
            try:
                if not why:  # a server that is away is so for the next one, too
                    send(spool, self.uri)
            except OacirError as error:
                why = str(error).partition(";")[0]
            if left := len(spool.records) - spool.sent(place)[1]:
                missing, trials = missing + left, trials + 1
        if missing:
            self._fails(
                f"{missing:,} records of {trials} trial{'s' * (trials > 1)} are not in MLflow ({why});"
                f" `oacir mlflow sync --runs {self.draft.url}` sends them"
            )

    def _fails(self, failure: str) -> None:
        self.failures.append(failure)
        log.warning(failure)

    def _logged_here(self, record: TrialRecord) -> bool:
        """Whether the run's own training stands under this sweep: it was killed between its end and ours."""
        return Spool(storage.join(record.run, FOLDER)).records[:1] != [] and (
            Spool(storage.join(record.run, FOLDER)).run.get("parent") == self.spool_id
        )

    def _short(self, record: TrialRecord, uri: str) -> None:
        section = self.recipe.train.tracking
        spool = Spool(storage.join(self.draft.url, FOUND, f"{record.number:05d}", FOLDER))
        if spool.ended is not None:
            return
        name = f"{self.recipe.name} {record.number}"
        tracker = Tracker(spool, uri, section.experiment, name, self.spool_id)
        tracker.params(record.values)
        tracker.metrics("trial", record.number, record.figures, time.time())
        place = "/".join(record.run.rstrip("/").split("/")[-2:])
        tracker.tags({"oacir.run": place, "oacir.found": "true", "oacir.content_hash": record.run_hash})
        # where the sweep's own run waits for the server, every found trial would wait as long once more
        away = self.tracker is not None and self.tracker.error is not None
        tracker.close(
            "FINISHED", 0.0 if away else PATIENCE_S
        )  # what is left is sent with the other trials' rest


def _results(teller: Teller, figures: Mapping[str, Any], page: str, content_hash: str, time_s: float) -> None:
    numbers = {
        name: float(value)
        for name, value in flattened(figures).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    teller.metrics("sweep", int(figures["trials"]), numbers, time_s)
    teller.text(PAGE, page)
    teller.tags({"oacir.content_hash": content_hash})


def mended(version: Version, uri: str | None) -> int:
    """Tell MLflow what it lacks of a finished sweep, as `training.logged.mended` does of a run.

    Returns:
        How many records were sent; 0 for a sweep that was never tracked.

    Raises:
        OacirError: the server does not take them; they are sent the next time.
    """
    spool, manifest = Spool(version.path(FOLDER)), version.manifest
    if uri is None or not spool.records:
        return 0
    if spool.ended != "FINISHED":
        teller, time_s = Teller(spool), datetime.fromisoformat(manifest.created_at).timestamp()
        page = storage.read_bytes(version.path(PAGE)).decode()
        _results(teller, manifest.figures, page, manifest.content_hash, time_s)
        teller.status("FINISHED", time_s)
    return send(spool, uri)


def trial_spools(place: str) -> Iterator[tuple[str, Spool]]:
    """What the trials of a sweep spooled, by the run's or the spool's URL.

    Args:
        place: URL of the sweep, finished or not.
    """
    if storage.exists(storage.join(place, MANIFEST)):
        rows = open_version(place).table("trials", ["record"]).to_pylist()
        records = [TrialRecord.model_validate_json(row["record"]) for row in rows]
    else:
        records = list(read(place))
    above = Spool(storage.join(place, FOLDER)).run["id"]
    for record in records:
        found = storage.join(place, FOUND, f"{record.number:05d}")
        for url in (record.run, found) if record.run else (found,):
            spool = Spool(storage.join(url, FOLDER))
            # a run that was found may stand under another sweep, and goes along with that one
            if spool.records and spool.run.get("parent") in (None, above):
                yield url, spool


@contextmanager
def logged(recipe: SweepRecipe, draft: Draft, parents: Mapping[str, Version]) -> Iterator[SweepLog]:
    """The log of a sweep, ended with it; `parents` are what all trials read, by role."""
    found = SweepLog(recipe, draft, tracking_uri(recipe.train.tracking.mlflow_uri))
    found.begin(parents)
    try:
        yield found
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        found.close("KILLED" if killed else "FAILED", 0.0 if killed else PATIENCE_S)
        raise
    else:
        found.close("FINISHED")
        found.send_trials()
