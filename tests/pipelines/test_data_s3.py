"""`oacir data …` with everything on object storage."""

from __future__ import annotations

import datetime
import json
from collections.abc import Iterator
from typing import Any

import pytest
from s3_server import s3_bucket
from small_versions import rows_of, write_version

from infra import cli
from infra.base import catalogue, storage, versions
from infra.base.config import Config


@pytest.fixture(scope="module")
def root() -> Iterator[str]:
    with s3_bucket("oacir-data-verbs") as bucket:
        yield f"{bucket}/root"


def oacir(*words: str) -> int:
    return cli.main(["data", *words])


def test_list_verify_diff_and_gc_work_on_object_storage(root: str, capsys: Any) -> None:
    first = write_version(root, rows_of({"toys/a": "train", "toys/b": "test"}))
    second = write_version(root, rows_of({"toys/a": "train", "toys/b": "dev"}), seed=1)
    half = versions.start("features", "tower", "k", Config(), root=root)
    storage.write_bytes(half.path("shards", "0.bin"), b"x" * 1000)
    assert oacir("list", "--root", root, "--json") == 0
    listed = {v["key"]: v for v in json.loads(capsys.readouterr().out)["versions"]}
    assert [listed[k]["state"] for k in (first.manifest.key, "k")] == ["finished", "unfinished"]
    assert 0 <= listed["k"]["age_days"] < 0.1
    assert oacir("diff", "--before", first.url, "--after", second.url, "--json") == 0
    assert json.loads(capsys.readouterr().out)["images"]["moves"] == {"test → dev": 2}

    assert oacir("verify", "--dataset", first.url) == 0
    path = first.path("images", "part-00000.parquet")
    storage.write_bytes(path, storage.read_bytes(path)[:-1] + b"x")
    assert oacir("verify", "--dataset", first.url) == 3
    assert "images/part-00000.parquet" in capsys.readouterr().out

    later = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=8)
    manifest = first.manifest.model_copy(update={"created_at": "2020-01-01T00:00:00+00:00"})
    storage.write_bytes(first.path(versions.MANIFEST), manifest.model_dump_json().encode())
    everything = catalogue.entries(root)
    found = catalogue.garbage(everything, ["datasets", "features"], 7, later)
    assert {g.entry.url for g in found} == {first.url, half.url}
    assert next(g for g in found if g.entry.url == half.url).stored_bytes > 1000
    assert oacir("gc", "--root", root, "--yes") == 0  # today only the superseded one is old enough
    assert {e.url for e in catalogue.entries(root)} == {second.url, half.url}
    assert list(storage.list_files(first.url)) == []
