"""`oacir mlflow sync`: what runs spooled and a server does not have yet; test scores and report pages beside it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any

from pydantic import Field

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError, RecipeError
from infra.base.progress import Progress
from infra.base.spool import FOLDER, Spool
from infra.base.teller import Teller
from infra.base.tracking import forget_if_gone, send, shown, tracking_uri
from infra.base.versions import Version

PAGES = "pages"
"""Folder of attached files among a run's artifacts."""


class SyncRecipe(Config):
    """Which runs to bring to which server."""

    runs: Annotated[list[str], Field(min_length=1)]
    """Runs and sweeps, finished or not: a path or URL, name/key, or a name (all of it); a sweep's trials go along."""
    mlflow_uri: str | None = None
    """The server (http://…) or database (sqlite:///…); null takes the variable MLFLOW_TRACKING_URI."""
    evaluations: list[str] = Field(default_factory=list)
    """Evaluations of these runs (path or URL, name/key, or name): their scores by domain and metrics.json go along."""
    files: list[str] = Field(default_factory=list)
    """Files (report pages) that go among the artifacts of the one run that is named."""


def sync(recipe: SyncRecipe, context: Context) -> Outcome:
    """Send what is not there yet, each record once, and end in MLflow what a killed driver left running.

    Raises:
        OacirError: no server is named or it does not take the records, no such run, or a run was never tracked.
    """
    uri = tracking_uri(recipe.mlflow_uri)
    if uri is None:
        raise RecipeError(["mlflow_uri is null: name the server, --mlflow_uri http://127.0.0.1:5000"])
    places = [place for named in recipe.runs for place in find_runs(context.root, named)]
    if recipe.files and len(places) != 1:
        raise RecipeError([f"files belong to one run, and {len(places)} are meant; name one"])
    spools = _spools(places)
    found = _by_run(recipe, context, list(spools))
    if context.dry_run:
        waiting = sum(len(s.records) - s.sent(shown(uri))[1] for s in spools.values())
        return Outcome(f"would send {waiting:,} records of {len(spools)} runs to {shown(uri)}")
    lines, sent, lost = [], 0, 0
    with Progress("sync", len(spools), "runs") as progress:
        for place, spool in spools.items():
            forget_if_gone(spool, uri)
            before, lost_before = spool.sent(shown(uri))[1], len(spool.lost(shown(uri)))
            if _is_finished(place):
                _mend(versions.open_version(place), uri)
                spool = Spool(storage.join(place, FOLDER))
            _attach(spool, found.get(place, []), recipe.files)
            send(spool, uri)
            run_id, now = spool.sent(shown(uri))
            state = spool.ended or "not ended, stays RUNNING"
            gone = spool.lost(shown(uri))[lost_before:]
            sent, lost = sent + now - before, lost + len(gone)
            lines.append(f"{place}: {now - before:,} records sent to run {run_id} ({state})")
            lines += [f"lost: {line}" for line in gone]
            progress.update(1)
    figures = {"records": sent, "runs": len(spools), "lost": lost}
    said = f", {lost} files lost (above)" if lost else ""
    return Outcome(f"{sent:,} records sent{said}: {shown(uri)}", shown(uri), figures, tuple(lines))


def find_runs(root: str, reference: str) -> Iterator[str]:
    """URLs of the runs and sweeps that a user means, finished or not.

    Raises:
        OacirError: nothing of that name was tracked.
    """
    place = storage.absolute(reference)
    if storage.is_s3(reference) or storage.exists(place):
        yield place
        return
    found = []
    for kind in ("sweeps", "runs"):  # a sweep first: its trials stand under its run
        base = storage.join(storage.absolute(root), kind, reference)
        inner = (
            [storage.join(base, key) for key in storage.list_folders(base)] if "/" not in reference else []
        )
        found += [p for p in inner or [base] if storage.files_in(storage.join(p, FOLDER))]
    if not found:
        raise OacirError(
            f"{reference}: no tracked run, neither a path nor a name under {storage.absolute(root)}; give the run's"
            " folder, name/key or name"
        )
    yield from found


def _spools(places: list[str]) -> dict[str, Spool]:
    """What is to be sent, by where it lies; a sweep's trials behind the sweep, under which they stand."""
    from tuning.logged import trial_spools

    found = {place: _tracked(place) for place in places}
    for place in places:
        if _kind(place) == "sweeps":
            found |= dict(trial_spools(place))
    return found


def _kind(place: str) -> str:
    """What lies there, finished or begun."""
    for name in (versions.MANIFEST, versions.MARKER):
        if storage.exists(storage.join(place, name)):
            return str(json.loads(storage.read_bytes(storage.join(place, name)))["kind"])
    return "runs"


def _mend(version: Version, uri: str) -> None:
    import training.logged
    import tuning.logged

    mend = {"runs": training.logged.mended, "sweeps": tuning.logged.mended}
    mend[version.manifest.kind](version, uri)


def _tracked(place: str) -> Spool:
    spool = Spool(storage.join(place, FOLDER))
    if not spool.records:
        raise OacirError(
            f"{place}: was never tracked, so there is nothing to send; train with tracking.mlflow_uri set"
        )
    return spool


def _is_finished(place: str) -> bool:
    return storage.exists(storage.join(place, versions.MANIFEST))


def _by_run(recipe: SyncRecipe, context: Context, places: list[str]) -> dict[str, list[Version]]:
    """The evaluations of each run.

    Raises:
        OacirError: one is of none of the runs.
    """
    hashes = {versions.open_version(p).manifest.content_hash: p for p in places if _is_finished(p)}
    found: dict[str, list[Version]] = {}
    for reference in recipe.evaluations:
        evaluation = versions.resolve(context.root, "evaluations", reference)
        place = hashes.get(evaluation.manifest.parents.get("model", ""))
        if place is None:
            raise OacirError(f"{evaluation.url}: evaluates none of the runs named; name its run with --runs")
        found.setdefault(place, []).append(evaluation)
    return found


def _attach(spool: Spool, evaluations: list[Version], files: list[str]) -> None:
    """Tell what is known of a run since it ended; without effect where all of it was told before."""
    teller = Teller(spool)
    for evaluation in evaluations:
        manifest = evaluation.manifest
        group = f"{manifest.figures['split']}/{manifest.figures['dataset']['name']}"
        if manifest.figures.get("perturbed"):  # figures of another kind, which must not stand where scores do
            group += f"/perturbed-{manifest.key}"
        teller.metrics(group, 0, scores(manifest.figures), _time_s(manifest.created_at))
        teller.input(
            manifest.figures["dataset"]["name"],
            manifest.figures["dataset"]["url"],
            manifest.figures["dataset"]["content_hash"],
            manifest.figures["split"],
            {"galleries": {d: part["gallery"]["hash"] for d, part in manifest.figures["domains"].items()}},
        )
        for file in manifest.files:
            if file.path == "metrics.json":
                teller.file(
                    f"evaluations/{manifest.name}/{file.path}", evaluation.path(file.path), file.sha256
                )
    for name in files:
        url = storage.absolute(name)
        teller.file(f"{PAGES}/{storage.name_of(url)}", url, storage.sha256_of(url))


def scores(figures: dict[str, Any]) -> dict[str, float]:
    """Figures of an evaluation as flat names: domain/measure, and mean/measure for that over all."""
    parts = {**figures["domains"], "mean": figures["overall"]}
    return {f"{d}/{m}": v["value"] for d, part in parts.items() for m, v in part["metrics"].items()}


def _time_s(created_at: str) -> float:
    return datetime.fromisoformat(created_at).timestamp()
