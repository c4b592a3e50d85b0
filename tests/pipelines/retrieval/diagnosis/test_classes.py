"""Kinds of mistakes: hand-worked, with contexts and without."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.base import storage, versions
from infra.base.config import Config
from pipelines.records import conform
from pipelines.retrieval.diagnosis.classes import Truth, crossed, kinds, table, truth_of

INSTANCES = {"a1": "a", "a2": "a", "a3": "a", "b1": "b", "b2": "b"}
PLACES = {"a1": "beach", "a2": "street", "a3": "street", "b1": "street", "b2": "beach"}
ASKED: list[dict[str, Any]] = [
    {"query_id": f"q{n}", "instance_id": "a", "target_ids": ["a2"], "domain": d, "category": "c"}
    for n, d in enumerate(["x", "x", "x", "y", "y"])
]
FIRST = ["a2", "a3", "a1", "b1", "b2"]
RANKINGS = {f"q{n}": {"candidate_ids": [first, "a2"]} for n, first in enumerate(FIRST)}


class Made(Config):
    by: str = "a test"


def test_each_kind() -> None:
    assert kinds(RANKINGS, ASKED, Truth(INSTANCES, PLACES)) == [
        "target", "both", "instance", "context", "neither"
    ]  # fmt: skip
    blind = Truth(INSTANCES, None)
    found = kinds(RANKINGS, ASKED, blind)
    assert found == ["target", "instance", "instance", "neither", "neither"]
    assert set(found) <= set(blind.words)
    several = [row | {"target_ids": ["a2", "b2"]} for row in ASKED]
    assert kinds(RANKINGS, several, Truth(INSTANCES, PLACES))[4] == "target"


def test_tables_count_every_query_once() -> None:
    found = kinds(RANKINGS, ASKED, Truth(INSTANCES, PLACES))
    rows = table(found, ASKED, lambda row: row["domain"])
    assert rows == [
        {"name": "x", "queries": 3, "target": 1, "both": 1, "instance": 1, "context": 0, "neither": 0},
        {"name": "y", "queries": 2, "target": 0, "both": 0, "instance": 0, "context": 1, "neither": 1},
    ]
    assert crossed(found, ["target"] * 5) == {(kind, "target"): 1 for kind in found}


@pytest.mark.parametrize("unknown", [None, '{"crop": [1, 2, 3, 4]}', "lacking"])
def test_contexts_come_from_the_listing_where_it_knows_them_of_every_image(
    tmp_path: Path, unknown: str | None
) -> None:
    """Neither photos nor the crops of a released benchmark are contexts; one image without one is enough."""

    def dataset(name: str, last: str | None) -> versions.Version:
        draft = versions.start("datasets", name, "key", Made(), root=str(tmp_path))
        texts = {i: json.dumps({"place": p, "kind": "scene"}) for i, p in PLACES.items()} | {"b2": last}
        listing = [
            {
                "image_id": i, "domain": "x", "instance_id": INSTANCES[i], "category": "c", "uri": i,
                "size_bytes": 1, "mark": "m", "context_json": text,
            }
            for i, text in texts.items() if text != "lacking"
        ]  # fmt: skip
        gallery = [
            {
                "gallery_id": "x/test", "split": "test", "image_id": i, "instance_id": owner, "category": "c",
                "is_distractor": False,
            }
            for i, owner in INSTANCES.items()
        ]  # fmt: skip
        files = []
        for which, rows in (("listing", listing), ("gallery", gallery)):
            found = conform(pa.Table.from_pylist(rows), which)
            storage.write_table(draft.path(which, "part-00000.parquet"), found)
            files.append(versions.file_entry(draft.url, f"{which}/part-00000.parquet", len(found)))
        return draft.commit(content_hash=name, files=files)

    assert truth_of(dataset("known", '{"place": "beach"}'), "test") == Truth(INSTANCES, PLACES)
    assert truth_of(dataset("unknown", unknown), "test") == Truth(INSTANCES, None)
