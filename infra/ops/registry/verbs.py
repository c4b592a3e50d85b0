"""`oacir registry …`: what happened to a registered model, back to the champion before, on to another server."""

from __future__ import annotations

import datetime
import tempfile
from dataclasses import asdict
from pathlib import Path

from infra.base.command import Context, Outcome
from infra.base.config import Config, Name
from infra.base.errors import OacirError
from infra.base.tables import aligned
from infra.base.tracking import shown
from infra.ops.registry import history
from infra.ops.registry.server import CHALLENGER, CHAMPION, TRIES, Registered, server_uri


class HistoryRecipe(Config):
    """Of which registered model."""

    name: Name = "adafocal"
    """Name of the registered model."""
    mlflow_uri: str | None = None
    """MLflow server (http://…) or database (sqlite:///…); null takes the variable MLFLOW_TRACKING_URI."""


class RollbackRecipe(HistoryRecipe):
    """Which champion to go back from."""

    why: str = "rollback"
    """Reason, for the history."""


class CopyRecipe(HistoryRecipe):
    """From where to where."""

    version: str = CHAMPION
    """The version: its number or an alias."""
    to_uri: str | None = None
    """The other server; null stays on the same one."""
    to_name: Name | None = None
    """Name of the registered model there; null keeps it."""
    experiment: str = "oacir"
    """Experiment there that the model's files are logged in."""


def show(recipe: HistoryRecipe, _: Context) -> Outcome:
    """Versions, aliases and every decision, the first one first."""
    uri = server_uri(recipe.mlflow_uri)
    registered = Registered(uri, recipe.name)
    log, versions = registered.log(), registered.versions()
    aliases = {alias: registered.alias(alias) for alias in (CHAMPION, CHALLENGER)}
    rows = [["version", "alias", "model", "run", "registered"]]
    for version in versions:
        mine = ", ".join(a for a, v in aliases.items() if v == str(version.version))
        tags = version.tags
        origin = tags.get("oacir.run", tags.get("oacir.model", ""))
        rows.append(
            [str(version.version), mine, tags.get("oacir.model_hash", "")[:12], origin, _time(version)]
        )
    lines = [*aligned(rows), "", *(aligned(history.table(log)) if log else ["no decision yet"])]
    figures = {
        "versions": [{"version": str(v.version), **v.tags} for v in versions],
        "aliases": aliases,
        "history": [asdict(entry) for entry in log],
    }
    message = f"champion {history.champion(log) or 'none'}, {len(versions)} versions, {len(log)} decisions:"
    standing = registered.standing(log)
    if standing != history.champion(log):
        lines.append(
            f"champion {history.champion(log)} was deleted on the server; for the next promotion"
            f" {standing or 'none'} stands in its place"
        )
    elif aliases[CHAMPION] != standing:
        lines.append(
            f"alias {CHAMPION} points to {aliases[CHAMPION] or 'none'}, which no decision made; the next promotion or"
            " rollback sets it"
        )
    return Outcome(f"{message} {recipe.name} at {shown(uri)}", None, figures, tuple(lines))


def rollback(recipe: RollbackRecipe, context: Context) -> Outcome:
    """Make the champion before the present one champion again. It passed its gates when it became one. Those that were
    deleted on the server are passed over.

    Raises:
        OacirError: there was none.
    """
    uri = server_uri(recipe.mlflow_uri)
    registered = Registered(uri, recipe.name)
    for _ in range(TRIES):
        log = registered.log()
        champions = history.stack(log)
        now = champions[-1] if champions else "none"
        before = registered.newest(champions[:-1])
        if before is None:
            raise OacirError(f"{recipe.name}: no champion before the present one ({now}); promote a version")
        if context.dry_run:
            return Outcome(f"would go back from version {now} to {before} of {recipe.name} at {shown(uri)}")
        if registered.decide(log, "rollback", before, recipe.why) is not None:
            return Outcome(
                f"version {before} of {recipe.name} is champion again, in place of {now}: {shown(uri)}",
                f"models:/{recipe.name}@{CHAMPION}",
                {"version": before, "before": now},
            )
    raise OacirError(f"{recipe.name}: others decide about it without a pause; try again")


def copy(recipe: CopyRecipe, context: Context) -> Outcome:
    """Bring a version to another registered model, as challenger: it becomes champion there through the gates of there.

    Raises:
        OacirError: it would go where it comes from, or its files are not those that were registered.
    """
    uri = server_uri(recipe.mlflow_uri)
    to_uri, to_name = recipe.to_uri or uri, recipe.to_name or recipe.name
    if (to_uri, to_name) == (uri, recipe.name):
        raise OacirError(f"{recipe.name}: would be copied onto itself; give --to_uri or --to_name")
    source, target = Registered(uri, recipe.name), Registered(to_uri, to_name)
    found = source.find(recipe.version)
    if context.dry_run:
        return Outcome(f"would copy version {found.version} of {recipe.name} to {to_name} at {shown(to_uri)}")
    with tempfile.TemporaryDirectory(prefix="oacir-copy-") as folder:
        packed = source.download(found, Path(folder))
        target.ensure()
        note = f"Copied from version {found.version} of {recipe.name}."
        description = f"{found.description or ''}\n{note}".strip()
        run_id = target.run_of(packed, recipe.experiment, f"copy {recipe.name} {found.version}")
        version, new = target.publish(packed, run_id, recipe.experiment, description)
    if history.champion(target.log()) != version:
        target.point(CHALLENGER, version)
    what = "copied" if new else "nothing to do: the same model is there already,"
    return Outcome(
        f"{what} version {found.version} of {recipe.name} as version {version} of {to_name} at {shown(to_uri)}",
        f"models:/{to_name}/{version}",
        {"version": version, "new": new, "model_hash": packed.model_hash},
    )


def _time(version: object) -> str:
    ms = int(getattr(version, "creation_timestamp", 0))
    return datetime.datetime.fromtimestamp(ms / 1000, datetime.UTC).isoformat(timespec="seconds")
