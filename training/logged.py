"""What a training tells MLflow, in the driver: settings and origins at the start, figures on the way, results at the
end. Where no tracking server is asked for, nothing happens here."""

from __future__ import annotations

import logging
import os
import platform
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import datetime
from importlib import metadata

import yaml

from infra.base import storage
from infra.base.errors import OacirError, TerminatedError
from infra.base.spool import FOLDER, Spool, flattened
from infra.base.teller import Teller
from infra.base.tracking import PATIENCE_S, Tracker, send, shown, tracking_uri
from infra.base.versions import Draft, Version, code_version
from training import card
from training.config import TrainRecipe
from training.export import FOLDER as EXPORT
from training.job import Note
from training.listening import StoppedError

log = logging.getLogger(__name__)
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "mlflow")
EPOCH_MEANS = ("loss", "beta_mean", "gradient_norm")
"""Columns of the history whose mean over an epoch is told."""
COMMIT_TAG = "mlflow.source.git.commit"
"""What MLflow's pages show as the version of the source."""


class Log:
    """A training's way to MLflow; without a tracker it takes everything and does nothing."""

    def __init__(self, tracker: Tracker | None = None) -> None:
        self.tracker = tracker
        self.failure: str | None = None
        """What could not be sent, said in one line; None where all was, and before the end."""

    def notes(self, notes: Iterable[Note]) -> None:
        """What workers told, also twice."""
        if self.tracker is not None:
            for note in notes:
                figures = {name: value for name, value in note.figures.items() if name != "step"}
                self.tracker.metrics(note.group, note.step, figures, note.time_s)

    def finished(self, version: Version) -> None:
        """The results: figures of the run and of its epochs, tables, card, and the model where that is asked for."""
        if self.tracker is not None:
            _results(self.tracker, version)

    def line(self) -> tuple[str, ...]:
        """Where the run is in MLflow, and what could not be sent, for the outcome."""
        if self.tracker is None:
            return ()
        found = self.tracker.run_id
        where = () if found is None else (f"MLflow run {found} at {shown(self.tracker.uri)}",)
        return where if self.failure is None else (*where, f"warning: {self.failure}")


@contextmanager
def logged(recipe: TrainRecipe, draft: Draft, parents: Mapping[str, Version]) -> Iterator[Log]:
    """The log of a training, ended with it.

    Args:
        recipe: what is trained; `tracking` says where to.
        draft: the run, in whose folder the spool lies.
        parents: role → version that it is made from.
    """
    section = recipe.tracking
    uri = tracking_uri(section.mlflow_uri)
    if uri is None:
        yield Log()
        return
    spool = Spool(storage.join(draft.url, FOLDER))
    tracker = Tracker(spool, uri, section.experiment, section.run_name or recipe.name, section.parent)
    _begin(tracker, recipe, draft, parents)
    log_ = Log(tracker)
    try:
        yield log_
    except BaseException as error:
        killed = isinstance(error, (KeyboardInterrupt, StoppedError, TerminatedError))
        log_.failure = tracker.close("KILLED" if killed else "FAILED", 0.0 if killed else PATIENCE_S)
        raise
    else:
        log_.failure = tracker.close("FINISHED")
    finally:
        if log_.failure:
            log.warning(log_.failure)


def mended(version: Version, uri: str | None) -> int:
    """Tell MLflow what it lacks of a finished run, with all results where the driver was killed before it told them.

    Args:
        version: the finished run.
        uri: of the tracking server; None does nothing.

    Returns:
        How many records were sent; 0 for a run that was never tracked.

    Raises:
        OacirError: the server does not take them; they are sent the next time.
    """
    spool = Spool(version.path(FOLDER))
    if uri is None or not spool.records:
        return 0
    if spool.ended != "FINISHED":
        teller = Teller(spool)
        _results(teller, version)
        teller.status("FINISHED", _created_s(version))
    return send(spool, uri)


def mending(
    version: Version, uri: str | None, mend: Callable[[Version, str | None], int] = mended
) -> tuple[str, ...]:
    """The same for a command that has nothing else to do: what was done or could not be, in a line."""
    try:
        sent = mend(version, uri)
    except OacirError as error:
        return (f"warning: {error}",)
    return (
        (f"{sent:,} records that MLflow lacked of this {version.manifest.kind[:-1]} were sent",)
        if sent
        else ()
    )


def _begin(tracker: Tracker, recipe: TrainRecipe, draft: Draft, parents: Mapping[str, Version]) -> None:
    tree = recipe.model_dump(mode="json")
    tracker.params(tree)
    tracker.text("recipe.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    tracker.text("environment.txt", environment())
    code, _, revision = code_version().partition("+")
    for role, version in parents.items():
        manifest = version.manifest
        context = "training" if role == "dataset" else role
        profile = {"kind": manifest.kind, "key": manifest.key, "files": len(manifest.files)}
        tracker.input(manifest.name, version.url, manifest.content_hash, context, profile)
    tracker.tags(
        {
            "oacir.run": f"{draft.name}/{draft.key}",
            "oacir.version": code,
            **({"oacir.revision": revision, COMMIT_TAG: revision} if revision else {}),
            **{f"oacir.{role}_hash": v.manifest.content_hash for role, v in parents.items()},
            **{f"version.{name}": _version(name) for name in PACKAGES},
            "version.python": platform.python_version(),
        }
    )


def _results(tracker: Teller, version: Version) -> None:
    """What is known of a finished run. The same at any time, so that it may be told again."""
    manifest, time_s = version.manifest, _created_s(version)
    with_model = manifest.recipe.get("tracking", {}).get("log_model", False)
    figures = flattened(manifest.figures) | {"seconds": manifest.wall_seconds}
    numbers = {
        name.replace(".", "/"): float(value)
        for name, value in figures.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    tracker.metrics("run", int(manifest.figures["steps"]), numbers, time_s)
    for epoch, values in by_epoch(version).items():
        tracker.metrics("epoch", epoch, values, time_s)
    tracker.text("model_card.md", storage.read_bytes(version.path(EXPORT, card.FILE)).decode())
    for file in manifest.files:
        if file.path.endswith(".parquet") or (with_model and file.path.startswith(f"{EXPORT}/")):
            tracker.file(file.path, version.path(file.path), file.sha256)
    tracker.tags({"oacir.content_hash": manifest.content_hash})


def by_epoch(version: Version) -> dict[int, dict[str, float]]:
    """Figures of a run by epoch: means over its steps, and what was measured on dev at its end (domain/measure)."""
    from training.devset import MEASURES

    found: dict[int, dict[str, float]] = {}
    history = version.table("history")
    names = [name for name in EPOCH_MEANS if name in history.column_names]  # an older run has fewer
    for row in history.group_by("epoch").aggregate([(name, "mean") for name in names]).to_pylist():
        values = {name: row[f"{name}_mean"] for name in names}
        found[row["epoch"]] = {n: v for n, v in values.items() if v is not None and v == v}
    for row in version.table("dev").to_pylist():
        found.setdefault(row["epoch"], {}).update({f"dev/{row['domain']}/{m}": row[m] for m in MEASURES})
    return dict(sorted(found.items()))


def environment() -> str:
    """What a training ran in: Python, system, processors, and the version of every installed package."""
    lines = [
        f"python {platform.python_version()}",
        f"system {platform.system()} {platform.machine()}",
        f"cpus {os.cpu_count()}",
        *sorted({f"{d.metadata['Name']}=={d.version}" for d in metadata.distributions()}, key=str.lower),
    ]
    return "\n".join(lines) + "\n"


def _created_s(version: Version) -> float:
    return datetime.fromisoformat(version.manifest.created_at).timestamp()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
