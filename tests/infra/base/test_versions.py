from __future__ import annotations

import json
import logging
import random
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError, VersionError


class Recipe(Config):
    name: str = "toy"


def draft(root: Path, key: str = "k1", out: str | None = None) -> versions.Draft:
    return versions.start("datasets", "toy", key, Recipe(), root=str(root), out=out)


def finish(root: Path, key: str = "k1", out: str | None = None) -> versions.Version:
    new = draft(root, key, out)
    storage.write_table(new.path("rows", "part-00000.parquet"), pa.table({"a": [1]}))
    storage.write_table(new.path("rows", "part-00001.parquet"), pa.table({"a": [2, 3]}))
    files = [versions.file_entry(new.url, f"rows/part-0000{i}.parquet", i + 1) for i in range(2)]
    return new.commit(content_hash="c" * 64, files=files)


def test_a_version_is_invisible_until_its_manifest_is_written(tmp_path: Path) -> None:
    half = draft(tmp_path)
    assert half.finished is None
    assert versions.list_versions(str(tmp_path), "datasets") == []
    with pytest.raises(VersionError, match="unfinished; the same command goes on"):
        versions.open_version(half.url)
    version = finish(tmp_path)
    assert draft(tmp_path).finished == version.manifest
    assert version.manifest.wall_seconds is not None
    assert version.manifest.wall_seconds >= 0
    assert version.table("rows")["a"].to_pylist() == [1, 2, 3]
    assert version.manifest.files[1].sha256 == storage.sha256_of(version.path("rows/part-00001.parquet"))


def test_reference_by_path_by_name_and_by_key(tmp_path: Path) -> None:
    root = str(tmp_path)
    first, second = finish(tmp_path, "k1"), finish(tmp_path, "k2")
    assert versions.resolve(root, "datasets", first.url) == first
    assert versions.resolve(root, "datasets", "toy/k2") == second
    assert versions.resolve(root, "datasets", "toy") == second  # the newest, also within one second
    with pytest.raises(VersionError, match="there are: toy/k1, toy/k2"):
        versions.resolve(root, "datasets", "other")


def test_a_name_means_the_newest_version_that_holds_what_is_asked_for(tmp_path: Path) -> None:
    root = str(tmp_path)
    full = finish(tmp_path, "k1")
    later = draft(tmp_path, "k2").commit(content_hash="d" * 64, files=[])
    stamped = later.manifest.model_copy(update={"created_at": "2999-01-01T00:00:00+00:00"})
    storage.write_bytes(later.path(versions.MANIFEST), stamped.model_dump_json().encode())
    assert versions.resolve(root, "datasets", "toy").manifest.key == "k2"
    assert versions.resolve(root, "datasets", "toy", holding="rows") == full
    assert not later.holds("rows")
    with pytest.raises(VersionError, match=r"no finished datasets 'toy' with row \(neither"):
        versions.resolve(root, "datasets", "toy", holding="row")


def stamp(version: versions.Version, created_at: str) -> None:
    manifest = json.loads(storage.read_bytes(version.path("manifest.json"))) | {"created_at": created_at}
    storage.write_bytes(version.path("manifest.json"), json.dumps(manifest).encode())


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("2026-01-01T00:00:00+00:00", "2026-01-01T00:00:00.000001+00:00"),
        ("2026-01-01T00:00:00.999999+00:00", "2026-01-01T00:00:01+00:00"),
        ("2026-01-01T00:00:00.1+00:00", "2026-01-01T00:00:00.200000+00:00"),
    ],
)
def test_times_of_earlier_code_and_finer_ones_sort_together(tmp_path: Path, first: str, second: str) -> None:
    newer, older = finish(tmp_path, "k1"), finish(tmp_path, "k2")
    stamp(older, first)
    stamp(newer, second)
    assert versions.resolve(str(tmp_path), "datasets", "toy").manifest.key == "k1"


@pytest.mark.parametrize("path", ["../../secret.parquet", "/etc/passwd", "table/../../x.parquet"])
def test_a_manifest_that_names_a_file_outside_is_refused(tmp_path: Path, path: str) -> None:
    version = finish(tmp_path, "k1")
    (tmp_path / "secret.parquet").write_bytes(b"not yours")
    manifest = json.loads(storage.read_bytes(version.path("manifest.json")))
    manifest["files"].append({"path": path, "size_bytes": 9, "sha256": "0" * 64, "rows": 1})
    storage.write_bytes(version.path("manifest.json"), json.dumps(manifest).encode())
    with pytest.raises(VersionError, match=r"damaged manifest .*leads out of the version"):
        versions.open_version(version.url)


def test_a_damaged_manifest_stands_in_nobody_elses_way(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root, good, bad = str(tmp_path), finish(tmp_path, "k1"), finish(tmp_path, "k2")
    storage.write_bytes(bad.path("manifest.json"), b"{")
    with caplog.at_level(logging.WARNING):
        assert versions.resolve(root, "datasets", "toy") == good
        assert versions.list_versions(root, "datasets") == [good]
    (message,) = caplog.messages
    assert message.startswith(f"left out: {bad.url}/manifest.json: damaged manifest")
    for reference in (bad.url, "toy/k2"):
        with pytest.raises(VersionError, match="damaged manifest"):
            versions.resolve(root, "datasets", reference)


def test_what_is_unfinished_is_said_to_be(tmp_path: Path) -> None:
    half, root = draft(tmp_path), str(tmp_path)
    for reference in (half.url, "toy/k1"):
        with pytest.raises(VersionError, match=r"toy/k1: is unfinished; the same command goes on"):
            versions.resolve(root, "datasets", reference)
    with pytest.raises(VersionError, match=r"there are: none; unfinished, the same command goes on: toy/k1$"):
        versions.resolve(root, "datasets", "toy")
    with pytest.raises(VersionError, match=r"there are: none$"):
        versions.resolve(root, "datasets", "other")


def test_another_recipe_never_writes_into_a_place_that_is_taken(tmp_path: Path) -> None:
    place = str(tmp_path / "out")
    draft(tmp_path, "k1", out=place)
    assert draft(tmp_path, "k1", out=place).finished is None
    with pytest.raises(OacirError, match="half-finished version of another recipe"):
        draft(tmp_path, "k2", out=place)
    finish(tmp_path, "k1", out=place)
    with pytest.raises(OacirError, match="finished version of another recipe"):
        draft(tmp_path, "k2", out=place)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("x")
    with pytest.raises(OacirError, match="no version of oacir"):
        draft(tmp_path, "k1", out=str(tmp_path / "mine"))


def test_two_writers_of_one_version_agree_or_the_second_is_told(tmp_path: Path) -> None:
    first, second = draft(tmp_path), draft(tmp_path)
    first.commit(content_hash="a" * 64, files=[])
    assert second.commit(content_hash="a" * 64, files=[]).manifest.content_hash == "a" * 64
    with pytest.raises(OacirError, match="other content"):
        second.commit(content_hash="b" * 64, files=[])


def test_an_unknown_schema_is_refused_with_the_way_on(tmp_path: Path) -> None:
    version = finish(tmp_path)
    manifest = json.loads(storage.read_bytes(version.path("manifest.json"))) | {"schema_version": 99}
    storage.write_bytes(version.path("manifest.json"), json.dumps(manifest).encode())
    with pytest.raises(VersionError, match="schema version 99 is not known"):
        versions.open_version(version.url)
    storage.write_bytes(version.path("manifest.json"), b"{")
    with pytest.raises(VersionError, match="damaged manifest"):
        versions.open_version(version.url)


def test_accounts_that_do_not_add_up_stop_the_commit(tmp_path: Path) -> None:
    bad = Account(entity="images", taken_in=3, kept=1, rejected={"corrupt": 1})
    with pytest.raises(OacirError, match="3 came in but 2"):
        draft(tmp_path).commit(content_hash="c" * 64, files=[], accounts={"collect": [bad]})
    assert versions.list_versions(str(tmp_path), "datasets") == []


ROWS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.one_of(st.integers(), st.text(), st.none())), max_size=6
)


@given(ROWS, st.randoms(use_true_random=False), st.integers(0, 6))
def test_row_hash_ignores_order_and_partition_but_not_repetition(
    rows: list[dict[str, object]], random: random.Random, cut: int
) -> None:
    shuffled = rows.copy()
    random.shuffle(shuffled)
    whole = versions.rows_hash(rows)
    assert versions.combine([versions.rows_hash(shuffled[:cut]), versions.rows_hash(shuffled[cut:])]) == whole
    if rows:
        assert versions.rows_hash([*rows, rows[0]]) != whole
