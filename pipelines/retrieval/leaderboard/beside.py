"""Which published rows stand in which table, and which by themselves, with the reason."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.retrieval.leaderboard.groups import Group
from pipelines.retrieval.leaderboard.published import PublishedRow, published
from pipelines.retrieval.protocols.known import BENCHMARKS


@dataclass(frozen=True)
class Apart:
    """Published rows of a benchmark that stand in no table of ours."""

    title: str
    metrics: list[str]
    rows: list[tuple[PublishedRow, str]]
    """Each with why."""


def beside(group: Group) -> list[PublishedRow]:
    """The published rows that a group's table shows: of its declared benchmark, as it is declared."""
    subject = group.subject
    if subject.split != "test" or group.figures.get("departures") or group.figures.get("perturbed"):
        return []
    return [row for row in published().rows if row.benchmark == subject.benchmark and not row.doubt]


def apart(groups: Sequence[Group]) -> list[Apart]:
    """All the others, by benchmark."""
    shown = {id(row) for group in groups for row in beside(group)}
    present = {group.subject.benchmark for group in groups}
    rows: dict[str, list[tuple[PublishedRow, str]]] = {}
    for row in published().rows:
        if id(row) not in shown:
            rows.setdefault(row.benchmark, []).append((row, row.doubt or _why(row.benchmark, present)))
    return [Apart(_title(name), _metrics([row for row, _ in own]), own) for name, own in rows.items()]


def _why(benchmark: str, present: set[str]) -> str:
    if benchmark in present:
        return "the evaluations here ranked other galleries or queries than the benchmark declares"
    return "no evaluation of this benchmark is here"


def _title(name: str) -> str:
    return BENCHMARKS[name].title if name in BENCHMARKS else "FashionIQ val"


def _metrics(rows: Sequence[PublishedRow]) -> list[str]:
    return list(dict.fromkeys(metric for row in rows for metric in row.metrics))
