"""`oacir runs list | show | gc`: trainings under a root, what became of them, and what of them nothing needs."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from infra.base import catalogue, storage, versions
from infra.base.catalogue import Entry
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import duration
from infra.base.tables import age, aligned, size

CHECKPOINTS = "checkpoints"
MEASURE = "R@1"
"""What runs are compared by: of the exported step, mean over the domains of dev, percent."""


class ListRecipe(Config):
    """Which runs to list."""

    name: str | None = None
    """Only runs of this name; null lists all."""
    sort: Literal["age", "dev"] = "age"
    """Newest first, or best on dev first."""


class ShowRecipe(Config):
    """Which run to show."""

    run: str
    """A path or URL, name/key, or name (the newest of it)."""
    steps: Annotated[int, Field(gt=0)] = 10
    """How many rows of its dev measurements to show, the last ones."""


class GcRecipe(Config):
    """What may be deleted of runs."""

    older_than_days: Annotated[float, Field(ge=0)] = 30.0
    """Only what is older: finished before, or unfinished and untouched since."""
    keep_best: Annotated[int, Field(ge=0)] = 1
    """So many runs of each name stay, the best on dev, beside the newest."""
    yes: bool = False
    """Delete (--yes); without it the command only says what it would delete."""


@dataclass(frozen=True)
class Doomed:
    """What may go: a run, or the checkpoints that a finished one no longer needs."""

    url: str
    what: Literal["run", "checkpoints"]
    entry: Entry
    why: str
    stored_bytes: int


def list_runs(recipe: ListRecipe, context: Context) -> Outcome:
    """Every training under the root: finished or how far, what it reached on dev, and what it was made from."""
    everything = catalogue.entries(context.root)
    now = _now()
    found = [e for e in everything if e.kind == "runs" and recipe.name in (None, e.name)]
    rows = [_row(entry, everything, now) for entry in found]
    if recipe.sort == "dev":
        rows.sort(key=lambda row: -(row["dev"] if row["dev"] is not None else -1.0))
    else:
        rows.sort(key=lambda row: row["age_days"] if row["age_days"] is not None else float("inf"))
    lines = [
        ["name/key", "state", "step", f"dev {MEASURE}", "loss", "bytes", "age", "evaluations", "made from"]
    ]
    for row in rows:
        lines.append(
            [
                f"{row['name']}/{row['key']}",
                row["state"],
                "" if row["step"] is None else f"{row['step']:,}",
                "" if row["dev"] is None else f"{row['dev']:.1f}",
                "" if row["loss"] is None else f"{row['loss']:.3f}",
                size(row["bytes"]),
                age(row["age_days"]),
                str(len(row["evaluations"]) or ""),
                row["dataset"] or "",
            ]
        )
    unfinished = sum(row["state"] == "unfinished" for row in rows)
    said = f", {unfinished} of them unfinished" if unfinished else ""
    return Outcome(
        f"{len(rows)} runs{said}: {context.root}",
        figures={"runs": rows},
        details=tuple(aligned(lines, right=(2, 3, 4, 5, 6, 7))) if rows else (),
    )


def show(recipe: ShowRecipe, context: Context) -> Outcome:
    """One run: state, figures, its last dev measurements, what it was made from, and what was made of it.

    Raises:
        OacirError: there is no such run, or it is none.
    """
    everything = catalogue.entries(context.root)
    entry = _find(recipe.run, context.root, everything)
    row = _row(entry, everything, _now())
    heads = [["run", f"{entry.name}/{entry.key}"], ["state", row["state"]]]
    if entry.problem:
        heads.append(["problem", entry.problem])
    if entry.manifest is None and not entry.problem:
        heads.append(["checkpoint", f"step {row['step']:,}" if row["step"] else "none yet"])
        heads.append(["to go on", "the same `oacir train`, with the recipe below"])
    if entry.manifest is not None:
        heads += [["made", f"{entry.manifest.created_at} by oacir {entry.manifest.code_version}"]]
        heads += [[name.replace("_", " "), value] for name, value in _plain(entry.manifest.figures)]
        if (spent := entry.manifest.seconds.get("train")) is not None:
            heads.append(["trained in", duration(spent)])
    parents = entry.manifest.parents if entry.manifest else entry.begun_from
    heads += [[f"parent {role}", _named(content, everything)] for role, content in parents.items()]
    heads += [["evaluation", place] for place in row["evaluations"]]
    lines = aligned(heads)
    if entry.manifest is not None:
        lines += ["", f"dev, percent (the last {recipe.steps})", *_dev_lines(entry, recipe.steps)]
    return Outcome(entry.url, entry.url, row | {"recipe": dict(entry.recipe)}, tuple(lines))


def gc(recipe: GcRecipe, context: Context) -> Outcome:
    """Delete runs that nothing needs, and checkpoints that a kill left in finished ones; only with --yes.

    A run is needed while it may go on, if an evaluation or a sweep under the root refers to it, if it is the newest
    of its name or among the best of it on dev. A registered model holds its own files and needs no run.
    """
    everything = catalogue.entries(context.root)
    found = _doomed(everything, recipe, _now())
    really = recipe.yes and not context.dry_run
    rows = [[one.what, f"{one.entry.name}/{one.entry.key}", size(one.stored_bytes), one.why] for one in found]
    if really:
        for one in found:
            if one.what == "run":
                catalogue.delete(one.entry)
            else:
                storage.remove(one.url)
    runs = sum(one.what == "run" for one in found)
    total = sum(one.stored_bytes for one in found)
    said = f"{runs} runs and the checkpoints of {len(found) - runs}, {size(total)}"
    return Outcome(
        f"{'deleted' if really else 'would delete'} {said}"
        + ("" if really or not found else "; --yes deletes them"),
        figures={
            "deleted": really,
            "bytes": total,
            "found": [{"what": o.what, "url": o.url, "why": o.why, "bytes": o.stored_bytes} for o in found],
        },
        details=tuple(aligned(rows, right=(2,))),
    )


def _doomed(everything: Sequence[Entry], recipe: GcRecipe, now: datetime.datetime) -> list[Doomed]:
    kept = {*_of_sweeps(everything), *_best(everything, recipe.keep_best)}
    found = [
        Doomed(one.entry.url, "run", one.entry, one.why, one.stored_bytes)
        for one in catalogue.garbage(everything, ("runs",), recipe.older_than_days, now)
        if one.entry.url not in kept
    ]
    gone = {one.url for one in found}
    for entry in everything:
        if entry.kind != "runs" or entry.manifest is None or entry.url in gone:
            continue
        days = entry.age_days(now)
        place = storage.join(entry.url, CHECKPOINTS)
        files = list(storage.list_files(place)) if days is not None and days > recipe.older_than_days else []
        if files:
            why = "the run is finished and no longer needs them"
            found.append(Doomed(place, "checkpoints", entry, why, sum(max(0, f.size_bytes) for f in files)))
    return found


def _of_sweeps(everything: Sequence[Entry]) -> Iterator[str]:
    """URLs of the trials of every sweep, finished or not."""
    from tuning.records import read

    for entry in everything:
        if entry.kind == "sweeps":
            texts = []
            if entry.manifest is not None:
                texts = versions.open_version(entry.url).table("trials", ["record"])["record"].to_pylist()
            yield from (url for url in (json.loads(text)["run"] for text in texts) if url)
            yield from (record.run for record in read(entry.url) if record.run)


def _best(everything: Sequence[Entry], count: int) -> Iterator[str]:
    names = {entry.name for entry in everything if entry.kind == "runs"}
    for name in names:
        measured = [(_dev(e), e.url) for e in everything if e.kind == "runs" and e.name == name]
        ranked = sorted(((value, url) for value, url in measured if value is not None), reverse=True)
        yield from (url for _, url in ranked[:count])


def _find(named: str, root: str, everything: Sequence[Entry]) -> Entry:
    """Also an unfinished one, which is nothing to other readers."""
    runs = [entry for entry in everything if entry.kind == "runs"]
    place = storage.absolute(named)
    exact = [e for e in runs if e.url == place or f"{e.name}/{e.key}" == named]
    if exact:
        return exact[0]
    now = _now()
    of_name = [e for e in runs if e.name == named]
    if of_name:
        return min(of_name, key=lambda e: days if (days := e.age_days(now)) is not None else float("inf"))
    known = ", ".join(sorted({e.name for e in runs})) or "none"
    raise OacirError(f"run {named}: there is none under {root}; names there: {known}")


def _row(entry: Entry, everything: Sequence[Entry], now: datetime.datetime) -> dict[str, Any]:
    figures = entry.manifest.figures if entry.manifest else {}
    parents = entry.manifest.parents if entry.manifest else entry.begun_from
    content = entry.manifest.content_hash if entry.manifest else None
    evaluations = [
        f"{e.name}/{e.key}"
        for e in everything
        if e.kind == "evaluations"
        and e.manifest
        and content is not None
        and content in e.manifest.parents.values()
    ]
    return {
        "name": entry.name,
        "key": entry.key,
        "url": entry.url,
        "state": entry.state,
        "step": figures.get("steps") if entry.manifest else _checkpoint(entry),
        "dev": _dev(entry),
        "loss": figures.get("loss"),
        "bytes": entry.listed_bytes,
        "age_days": entry.age_days(now),
        "evaluations": evaluations,
        "dataset": _named(parents["dataset"], everything) if "dataset" in parents else None,
        "content_hash": content,
    }


def _checkpoint(entry: Entry) -> int | None:
    """The newest complete one of an unfinished run."""
    if entry.state != "unfinished":
        return None
    from training.checkpoints import complete_steps

    steps = complete_steps(entry.url)
    return steps[-1] if steps else None


def _dev(entry: Entry) -> float | None:
    dev = entry.manifest.figures.get("dev", {}) if entry.manifest else {}
    return dev.get(MEASURE)


def _named(content: str, everything: Sequence[Entry]) -> str:
    found = (f"{e.name}/{e.key}" for e in everything if e.manifest and e.manifest.content_hash == content)
    return next(found, f"{content[:12]}… (not under this root)")


def _plain(figures: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Figures that are one number or word."""
    for name, value in figures.items():
        if isinstance(value, bool | str):
            yield name, str(value)
        elif isinstance(value, int | float):
            yield name, f"{value:,}" if isinstance(value, int) else f"{value:,.4g}"


def _dev_lines(entry: Entry, count: int) -> list[str]:
    version = versions.open_version(entry.url)
    rows = version.table("dev").to_pylist() if version.table_files("dev") else []
    if not rows:
        return ["  none was measured"]
    measures = [name for name in rows[0] if name.startswith("R")]
    lines = [["  step", "domain", "queries", *measures]]
    lines += [
        [f"  {row['step']:,}", row["domain"], f"{row['queries']:,}", *(f"{row[m]:.1f}" for m in measures)]
        for row in rows[-count:]
    ]
    return aligned(lines, right=range(2, len(lines[0])))


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)
