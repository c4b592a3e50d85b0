"""Scores that others published, read from `published.yaml`: shown beside ours, never ranked with them."""

from __future__ import annotations

from functools import cache
from importlib import resources

import yaml

from infra.base.config import Config


class PublishedRow(Config):
    """A row of somebody's table."""

    benchmark: str
    """Name of the declared benchmark, or of a family of which it is not known which one was ranked (fashioniq)."""
    model: str
    settings: str
    source: str
    """A key of `PublishedRows.sources`."""
    table: int | None
    """Of the paper; null where it is not known here."""
    metrics: dict[str, float]
    """Percent."""
    doubt: str = ""
    """Why it cannot be held against an evaluation of that benchmark; empty where it can."""


class PublishedRows(Config):
    """All of them."""

    sources: dict[str, str]
    rows: list[PublishedRow]

    def source_of(self, row: PublishedRow) -> str:
        """Where a row was published, with the table where that is known."""
        return self.sources[row.source] + (f", Table {row.table}" if row.table is not None else "")


@cache
def published() -> PublishedRows:
    """What the file holds."""
    file = resources.files("pipelines.retrieval.leaderboard") / "published.yaml"
    return PublishedRows.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
