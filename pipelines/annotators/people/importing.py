"""`oacir review import` and `status`: what people said in Label Studio, kept for the next build."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import Config, Name
from infra.base.errors import OacirError
from pipelines.annotators.gates import Rules, fault
from pipelines.annotators.people import store
from pipelines.annotators.people.agreement import agreement, lines
from pipelines.annotators.people.reading import Read, read_export
from pipelines.annotators.people.settle import settle
from pipelines.annotators.people.store import Reviews

SHOWN = 20
"""Faults that an error names; the rest are counted."""


class ReviewImportRecipe(Config):
    """What people said."""

    file: str
    """Label Studio's export of the project, as JSON or JSON-MIN: a path or URL."""
    bad: Literal["refuse", "skip"] = "refuse"
    """What cannot be used: nothing of the file is imported, and every such line is said; or it is left out and told."""
    names: dict[str, str] = Field(default_factory=dict)
    """Label Studio's number or e-mail address of a person → the name to keep; else the number, of an address its
    hash."""
    reviews: str | None = None
    """Where it is kept; null = reviews/NAME under the root, NAME the dataset's."""


class ReviewStatusRecipe(Config):
    """Whose reviews."""

    name: Name = "benchmark"
    """Name of the dataset."""
    reviews: str | None = None
    """Where they are kept; null = reviews/NAME under the root."""


def import_(recipe: ReviewImportRecipe, context: Context) -> Outcome:
    """Keep the decisions of an export; importing it again, or a later one of the same project, adds what is new.

    Raises:
        OacirError: the file is no export of ours, or something in it cannot be used and `bad` is refuse.
    """
    try:
        data = json.loads(storage.read_bytes(recipe.file))
    except ValueError as error:
        raise OacirError(
            f"{recipe.file}: no JSON ({error}); export the project as JSON or JSON-MIN"
        ) from error
    place = recipe.reviews or store.folder(context.root, _benchmark(recipe.file, data))
    before = store.read(place)
    if not before.tasks:
        raise OacirError(
            f"{before.url}: no task was exported from here; give the --root (or reviews) of the export"
        )
    read = read_export(data, before.tasks, recipe.names)
    if read.faults and recipe.bad == "refuse":
        raise OacirError(
            f"{recipe.file}: {len(read.faults):,} cannot be used, nothing is imported (--bad skip imports the others);"
            f" {_first(read.faults)}"
        )
    details = [*_told(read), *(f"left out: {line}" for line in read.faults), *_gates(read, before)]
    if context.dry_run:
        return Outcome(
            f"would import {len(read.decisions):,} decisions: {before.url}", details=tuple(details)
        )
    if read.decisions:
        store.keep(before.url, store.DECISIONS, read.decisions)
    after = store.read(before.url)
    new = len({_key(r) for r in after.decisions} - {_key(r) for r in before.decisions})
    figures = {"decisions": len(read.decisions), "new": new, "faults": read.faults, **_status(after)}
    details += _lines(after)
    return Outcome(
        f"{len(read.decisions):,} decisions read, {new:,} of them new: {after.url}",
        after.url,
        figures,
        (*details, "next: oacir build … --people '{}' with the recipe of the benchmark applies them"),
    )


def status(recipe: ReviewStatusRecipe, context: Context) -> Outcome:
    """How far people are, and how far they agree.

    Raises:
        OacirError: nothing was given to people.
    """
    reviews = store.read(recipe.reviews or store.folder(context.root, recipe.name))
    if not reviews.tasks:
        raise OacirError(f"{reviews.url}: no task was exported; `oacir review export --dataset …` gives some")
    figures = _status(reviews)
    message = f"{figures['pending']:,} of {figures['tasks']:,} tasks pending: {reviews.url}"
    return Outcome(message, reviews.url, figures, tuple(_lines(reviews)))


def _benchmark(file: str, data: Any) -> str:
    """The dataset that the tasks were exported from."""
    entries = [e for e in data if isinstance(e, dict)] if isinstance(data, list) else []
    inner = [e["data"] if isinstance(e.get("data"), dict) else e for e in entries]
    names = {str(e["benchmark"]) for e in inner if "benchmark" in e}
    if len(names) != 1:
        said = f"tasks of {', '.join(sorted(names))}" if names else "no task of ours"
        raise OacirError(
            f"{file}: holds {said}; export one project, set up with tasks of `oacir review export`, as JSON or JSON-MIN"
        )
    return names.pop()


def _told(read: Read) -> list[str]:
    counts = ", ".join(f"{name} {n:,}" for name, n in sorted(read.counts.items()) if n)
    verdicts = Counter(row["verdict"] for row in read.decisions)
    said = ", ".join(f"{n:,} {verdict}" for verdict, n in sorted(verdicts.items()))
    return [f"in the file: {counts or 'nothing'}", f"decisions: {said or 'none'}"]


def _gates(read: Read, reviews: Reviews) -> list[str]:
    """Texts that a build would refuse, told while the project is still at hand."""
    found = []
    for row in read.decisions:
        if row["verdict"] != "edit" or row["text_after"] == row["text_before"]:
            continue
        task = reviews.tasks[row["task"]]
        held = Rules(task["max_words"], tuple(task["names"]), frozenset(task["kinds"]))
        if why := fault(row["text_after"], held):
            found.append(
                f"breaks a rule: {row['pair_id']}, {row['person']}: {why.reason}, {why.detail}: {row['text_after']!r}"
            )
    return found


def _status(reviews: Reviews) -> dict[str, Any]:
    outcomes = Counter(settle(reviews.by_task.get(t, []), "pending").outcome for t in reviews.tasks)
    return {
        "tasks": len(reviews.tasks),
        "pending": outcomes["pending"] + outcomes["disagree"],
        "outcomes": {o: outcomes[o] for o in ("keep", "reject", "pending", "disagree")},
        "verdicts": dict(sorted(Counter(r["verdict"] for r in reviews.decisions).items())),
        "people": _people(reviews),
        "agreement": agreement(reviews.by_task),
    }


def _people(reviews: Reviews) -> dict[str, dict[str, float | None]]:
    """Person → decisions, and mean seconds of one."""
    seconds: dict[str, list[float]] = {person: [] for person in reviews.people}
    for row in reviews.decisions:
        if row["seconds"] is not None:
            seconds[row["person"]].append(row["seconds"])
    done = Counter(row["person"] for row in reviews.decisions)
    return {p: {"decisions": done[p], "seconds": sum(s) / len(s) if s else None} for p, s in seconds.items()}


def _lines(reviews: Reviews) -> list[str]:
    found = _status(reviews)
    o = found["outcomes"]
    people = [
        f"{person}: {p['decisions']:,} decisions" + (f", {p['seconds']:.0f} s each" if p["seconds"] else "")
        for person, p in found["people"].items()
    ]
    return [
        f"{found['tasks']:,} tasks: {o['keep']:,} to keep, {o['reject']:,} to reject, {o['disagree']:,} judged in two"
        f" ways, {o['pending']:,} undecided",
        *people,
        *lines(found["agreement"]),
    ]


def _first(faults: list[str]) -> str:
    more = f"; and {len(faults) - SHOWN:,} more" if len(faults) > SHOWN else ""
    return "; ".join(faults[:SHOWN]) + more


def _key(row: Mapping[str, Any]) -> tuple[str, str, str]:
    return row["task"], row["person"], row["decided_at"]
