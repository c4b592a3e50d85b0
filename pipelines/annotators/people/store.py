"""Where tasks and decisions are kept: `reviews/NAME/tasks` and `…/decisions`, files named by the hash of their rows."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from infra.base import storage, versions
from pipelines.records import TABLES, conform

TASKS, DECISIONS = "tasks", "decisions"
SCHEMAS = {TASKS: "review_tasks", DECISIONS: "reviews"}
Row = Mapping[str, Any]


@dataclass(frozen=True)
class Reviews:
    """What was given to people, and what they said of it."""

    url: str
    tasks: Mapping[str, Row] = field(default_factory=dict)
    """Task → its row of `records.REVIEW_TASKS`."""
    decisions: Sequence[Row] = ()
    """Rows of `records.REVIEWS`, the latest of each person and task, sorted by task and person."""

    @cached_property
    def content_hash(self) -> str:
        """Names the tasks and decisions: a build over others is another version."""
        parts = {TASKS: self.tasks.values(), DECISIONS: self.decisions}
        return versions.content_hash({name: versions.rows_hash(rows) for name, rows in parts.items()})

    @cached_property
    def by_task(self) -> dict[str, list[Row]]:
        """Task → its decisions."""
        found: dict[str, list[Row]] = {}
        for row in self.decisions:
            found.setdefault(row["task"], []).append(row)
        return found

    @cached_property
    def people(self) -> list[str]:
        """Everybody who decided something."""
        return sorted({row["person"] for row in self.decisions})


def folder(root: str, benchmark: str) -> str:
    """Where the reviews of a benchmark are kept, unless a recipe says otherwise."""
    return storage.join(storage.absolute(root), "reviews", benchmark)


def read(url: str) -> Reviews:
    """Everything that was exported and imported so far.

    Raises:
        OacirError: a file cannot be read.
    """
    url = storage.absolute(url)
    tasks = {row["task"]: row for row in _rows(url, TASKS)}
    latest: dict[tuple[str, str], Row] = {}
    for row in _rows(url, DECISIONS):
        key = row["task"], row["person"]
        if key not in latest or _age(latest[key]) < _age(row):
            latest[key] = row
    return Reviews(url, tasks, [latest[key] for key in sorted(latest)])


def keep(url: str, what: str, rows: Sequence[Row]) -> str:
    """Keep tasks or decisions; the same rows are the same file. Its URL.

    Args:
        url: of the reviews.
        what: TASKS or DECISIONS.
        rows: of the schema that SCHEMAS names.
    """
    name = SCHEMAS[what]
    table = conform(pa.Table.from_pylist([dict(r) for r in rows], TABLES[name]), name)
    place = storage.join(url, what, f"{versions.rows_hash(table.to_pylist()):064x}"[:16] + ".parquet")
    if not storage.exists(place):
        storage.write_table(place, table)
    return place


def _rows(url: str, what: str) -> Iterable[Row]:
    for file in storage.list_files(storage.join(url, what)):
        yield from storage.read_table(storage.join(url, what, file.path)).to_pylist()


def _age(row: Row) -> tuple[str, int]:
    """By what the later of two decisions is told; the hash, so that equal moments give one answer everywhere."""
    return row["decided_at"], versions.rows_hash([row])
