"""What a training tells MLflow, in the driver: settings and origins at the start, figures on the way, results at the
end. Where no tracking server is asked for, nothing happens here."""

from __future__ import annotations

import logging
import platform
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from importlib import metadata

import yaml

from infra.base import storage
from infra.base.spool import FOLDER, Spool, flattened
from infra.base.tracking import PATIENCE_S, Tracker, shown, tracking_uri
from infra.base.versions import Draft, Version, code_version
from training import card
from training.config import TrainRecipe
from training.export import FOLDER as EXPORT
from training.job import Note

log = logging.getLogger(__name__)
PACKAGES = ("torch", "ray", "deepspeed", "transformers", "mlflow")


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

    def finished(self, version: Version, time_s: float) -> None:
        """The results: numbers of the figures, the model card, what the run is called here."""
        if self.tracker is None:
            return
        manifest = version.manifest
        figures = flattened(manifest.figures) | {"seconds": manifest.wall_seconds}
        numbers = {
            name.replace(".", "/"): float(value)
            for name, value in figures.items()
            if isinstance(value, (int, float)) and not isinstance(value, bool)
        }
        self.tracker.metrics("run", int(manifest.figures["steps"]), numbers, time_s)
        card_url = version.path(EXPORT, card.FILE)
        self.tracker.text("model_card.md", storage.read_bytes(card_url).decode())
        self.tracker.tags({"oacir.content_hash": manifest.content_hash})

    def line(self) -> tuple[str, ...]:
        """Where the run is in MLflow, for the outcome."""
        if self.tracker is None or self.tracker.run_id is None:
            return ()
        return (f"MLflow run {self.tracker.run_id} at {shown(self.tracker.uri)}",)


@contextmanager
def logged(recipe: TrainRecipe, draft: Draft, parents: Mapping[str, str]) -> Iterator[Log]:
    """The log of a training, ended with it.

    Args:
        recipe: what is trained; `tracking` says where to.
        draft: the run, in whose folder the spool lies.
        parents: role → content hash of what it is made from.
    """
    section = recipe.tracking
    uri = tracking_uri(section.mlflow_uri)
    if uri is None:
        yield Log()
        return
    spool = Spool(storage.join(draft.url, FOLDER))
    tracker = Tracker(spool, uri, section.experiment, section.run_name or recipe.name)
    _begin(tracker, recipe, draft, parents)
    log_ = Log(tracker)
    try:
        yield log_
    except BaseException as error:
        killed = isinstance(error, KeyboardInterrupt)
        log_.failure = tracker.close("KILLED" if killed else "FAILED", 0.0 if killed else PATIENCE_S)
        raise
    else:
        log_.failure = tracker.close("FINISHED")
    finally:
        if log_.failure:
            log.warning(log_.failure)


def _begin(tracker: Tracker, recipe: TrainRecipe, draft: Draft, parents: Mapping[str, str]) -> None:
    tree = recipe.model_dump(mode="json")
    tracker.params(tree)
    tracker.text("recipe.yaml", yaml.safe_dump(tree, sort_keys=False, allow_unicode=True))
    code, _, revision = code_version().partition("+")
    tracker.tags(
        {
            "oacir.run": f"{draft.name}/{draft.key}",
            "oacir.version": code,
            **({"oacir.revision": revision} if revision else {}),
            **{f"oacir.{role}_hash": content for role, content in parents.items()},
            **{f"version.{name}": _version(name) for name in PACKAGES},
            "version.python": platform.python_version(),
        }
    )


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "absent"
