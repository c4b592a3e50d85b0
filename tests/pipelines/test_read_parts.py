"""The driver reads the parts of a table from a real S3 server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from threading import Barrier
from typing import Any

import pyarrow as pa
import pytest
from s3_server import s3_bucket

from infra.base import storage
from infra.base.errors import OacirError
from pipelines import stages
from pipelines.stages import AHEAD, part_path, read_parts

PARTS = 2 * AHEAD + 3


@pytest.fixture(scope="module")
def version() -> Iterator[str]:
    with s3_bucket("parts") as bucket:
        for part in range(PARTS):
            table = pa.table({"n": [part], "other": ["x"]})
            storage.write_table(f"{bucket}/v/{part_path('numbers', part)}", table)
        yield f"{bucket}/v"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The reads that began so far."""
    read, urls = storage.read_table, list[str]()

    def noted(url: str, columns: list[str] | None = None) -> pa.Table:
        urls.append(url)
        return read(url, columns)

    monkeypatch.setattr(storage, "read_table", noted)
    return urls


def numbers(tables: Iterator[pa.Table]) -> list[int]:
    return [n for table in tables for n in table["n"].to_pylist()]


def test_parts_come_in_order_whichever_is_read_first(version: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read, together = storage.read_table, Barrier(AHEAD, timeout=30)

    def held(url: str, columns: list[str] | None = None) -> pa.Table:
        if part_path("numbers", 0) not in url and int(url[-13:-8]) <= AHEAD:
            together.wait()  # breaks unless so many are read at a time
        return read(url, columns)

    monkeypatch.setattr(storage, "read_table", held)
    assert numbers(read_parts(version, "numbers", PARTS)) == list(range(PARTS))


def test_of_large_parts_one_is_in_memory_at_a_time(
    version: str, begun: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "AHEAD_BYTES", 1)
    for number, table in enumerate(read_parts(version, "numbers", PARTS, ["n"])):
        assert table.to_pydict() == {"n": [number]}
        assert len(begun) == number + 1


def test_no_more_is_read_than_asked_for(version: str, begun: list[str]) -> None:
    assert numbers(read_parts(version, "numbers", 2)) == [0, 1]
    assert len(begun) == 2
    assert numbers(read_parts(version, "numbers", 0)) == []


def test_a_part_that_is_not_there_is_one_line(version: str) -> None:
    found: list[Any] = []
    with pytest.raises(OacirError, match=rf"part-{PARTS:05d}\.parquet: cannot be read"):
        found.extend(read_parts(version, "numbers", PARTS + 1))
    assert len(found) == PARTS


def test_local_parts_are_read_one_by_one(tmp_path: Path, begun: list[str]) -> None:
    for part in range(3):
        storage.write_table(str(tmp_path / part_path("numbers", part)), pa.table({"n": [part]}))
    tables = read_parts(str(tmp_path), "numbers", 3)
    next(tables)
    assert len(begun) == 1
    assert numbers(tables) == [1, 2]
