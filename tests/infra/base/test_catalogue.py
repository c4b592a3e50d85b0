from __future__ import annotations

import datetime
import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.base import catalogue, storage, versions
from infra.base.config import Config
from infra.base.tables import age, aligned, size
from infra.base.versions import Kind

NOW = datetime.datetime(2030, 1, 11, tzinfo=datetime.UTC)


class Recipe(Config):
    name: str = "toy"
    dataset: str | None = None
    source: dict[str, str] | None = None


def begin(root: Path, kind: Kind, name: str, key: str, recipe: Recipe | None = None) -> versions.Draft:
    return versions.start(kind, name, key, recipe or Recipe(), root=str(root))


def make(
    root: Path, kind: Kind, name: str, key: str, *, day: int, recipe: Recipe | None = None, **parents: str
) -> versions.Version:
    """A version finished on that day of January 2030; its content hash is its key."""
    draft = begin(root, kind, name, key, recipe)
    storage.write_table(draft.path("quadruples", "part-00000.parquet"), pa.table({"a": [1, 2, 3]}))
    files = [versions.file_entry(draft.url, "quadruples/part-00000.parquet", 3)]
    version = draft.commit(content_hash=key, files=files, parents=parents)
    place = Path(version.path("manifest.json"))
    manifest = json.loads(place.read_text()) | {"created_at": f"2030-01-{day:02d}T00:00:00+00:00"}
    place.write_text(json.dumps(manifest))
    return versions.open_version(version.url)


def touch(draft: versions.Draft, day: int) -> None:
    for file in Path(draft.url).rglob("*"):
        moment = datetime.datetime(2030, 1, day, tzinfo=datetime.UTC).timestamp()
        os.utime(file, (moment, moment))


def gone(root: Path, kinds: tuple[Kind, ...] = ("datasets", "features"), days: float = 3.0) -> dict[str, str]:
    everything = catalogue.entries(str(root))
    return {g.entry.key: g.why for g in catalogue.garbage(everything, kinds, days, NOW)}


def test_everything_under_a_root_is_listed_with_its_state(tmp_path: Path) -> None:
    made = make(tmp_path, "datasets", "toy", "k1", day=1)
    begin(tmp_path, "runs", "model", "k2", Recipe(dataset="toy"))
    (tmp_path / "datasets" / "toy" / "mine").mkdir()
    damaged = make(tmp_path, "features", "tower", "k3", day=1)
    Path(damaged.path("manifest.json")).write_text("{")
    found = {e.key: e for e in catalogue.entries(str(tmp_path))}
    assert {k: e.state for k, e in found.items()} == {
        "k1": "finished", "k2": "unfinished", "k3": "damaged"
    }  # fmt: skip
    assert (found["k1"].rows, found["k1"].listed_bytes) == (3, made.manifest.files[0].size_bytes)
    assert found["k1"].age_days(NOW) == 10
    assert found["k2"].recipe["dataset"] == "toy"
    assert "damaged manifest" in found["k3"].problem
    assert [e.key for e in catalogue.entries(str(tmp_path), ["datasets"], "toy")] == ["k1"]
    assert catalogue.entries(str(tmp_path / "nothing")) == []


def test_tables_are_summed_over_their_files() -> None:
    files = [("rejects/filter/part-00000.parquet", 2), ("rejects/filter/part-00001.parquet", 5)]
    files += [("splits.parquet", 7), ("export/model.safetensors", None)]
    manifest: Any = type(
        "M", (), {"files": [versions.FileEntry(path=p, size_bytes=10, sha256="", rows=r) for p, r in files]}
    )
    assert catalogue.table_sizes(manifest) == {"rejects/filter": (2, 7, 20), "splits": (1, 7, 10)}


def test_what_something_refers_to_or_is_the_newest_of_its_name_stays(tmp_path: Path) -> None:
    for name in ("parent", "named", "inside", "loose"):
        make(tmp_path, "datasets", name, f"old-{name}", day=2)
        make(tmp_path, "datasets", name, f"new-{name}", day=5)
    make(tmp_path, "runs", "model", "run", day=6, dataset="old-parent")
    inside = tmp_path / "datasets" / "inside" / "old-inside" / "images"
    make(tmp_path, "datasets", "photos", "built", day=6, recipe=Recipe(source={"root": str(inside)}))
    begin(tmp_path, "runs", "other", "half", Recipe(dataset="named/old-named"))
    assert gone(tmp_path) == {
        "old-loose": "nothing refers to it, a newer loose exists, 9.0 days old"
    }  # fmt: skip
    assert gone(tmp_path, days=9.5) == {}
    assert gone(tmp_path, kinds=("features",)) == {}


def test_a_parent_stays_though_its_child_may_go_in_the_same_sweep(tmp_path: Path) -> None:
    """Only a manifest that is gone stops to protect: two sweeps, never a child without its parent."""
    make(tmp_path, "datasets", "toy", "old", day=1)
    make(tmp_path, "datasets", "toy", "new", day=2)
    make(tmp_path, "features", "tower", "stale", day=1, dataset="old")
    make(tmp_path, "features", "tower", "fresh", day=2, dataset="new")
    assert set(gone(tmp_path)) == {"stale"}
    for entry in catalogue.entries(str(tmp_path), ["features"]):
        if entry.key == "stale":
            catalogue.delete(entry)
    assert not (tmp_path / "features" / "tower" / "stale").exists()
    assert set(gone(tmp_path)) == {"old"}


def test_a_half_finished_version_goes_only_when_nothing_in_it_changed(tmp_path: Path) -> None:
    draft = begin(tmp_path, "datasets", "toy", "half")
    storage.write_bytes(draft.path("_work", "x"), b"x" * 100)
    touch(draft, 2)
    (found,) = catalogue.garbage(catalogue.entries(str(tmp_path)), ["datasets"], 3, NOW)
    assert found.why == "unfinished, untouched for 9.0 days"
    assert (found.files, found.stored_bytes > 100) == (2, True)
    late = datetime.datetime(2030, 1, 10, tzinfo=datetime.UTC).timestamp()
    os.utime(Path(draft.path("_work", "x")), (late, late))
    assert gone(tmp_path) == {}


def test_a_version_that_is_worked_on_stays_whatever_the_age(tmp_path: Path) -> None:
    draft = begin(tmp_path, "datasets", "toy", "half")
    (marker,) = Path(draft.url).iterdir()
    for minutes, stays in ((59, True), (61, False)):
        moment = (NOW - datetime.timedelta(minutes=minutes)).timestamp()
        os.utime(marker, (moment, moment))
        assert (gone(tmp_path, days=0.0) == {}) is stays


def test_what_an_unfinished_version_is_made_from_stays(tmp_path: Path) -> None:
    make(tmp_path, "datasets", "packs", "old", day=1)
    make(tmp_path, "datasets", "packs", "new", day=2)
    draft = begin(tmp_path, "datasets", "toy", "half")
    assert set(gone(tmp_path)) == {"old", "half"}
    draft.uses({"packs": "old"})
    assert set(gone(tmp_path)) == {"half"}
    assert (
        begin(tmp_path, "datasets", "toy", "half").url == draft.url
    )  # its marker says as before whose it is


def test_a_damaged_version_is_left_to_a_person(tmp_path: Path) -> None:
    make(tmp_path, "datasets", "toy", "new", day=5)
    damaged = make(tmp_path, "datasets", "toy", "old", day=1)
    Path(damaged.path("manifest.json")).write_text("{")
    assert gone(tmp_path) == {}


@pytest.mark.parametrize(
    ("count", "says"), [(None, ""), (0, "0 B"), (999, "999 B"), (3400, "3.4 kB"), (2.5e12, "2.5 TB")]
)
def test_sizes_are_written_for_people(count: int | None, says: str) -> None:
    assert size(count) == says


def test_ages_are_written_for_people() -> None:
    assert [age(d) for d in (None, 0.5 / 24, 1.5, 12.2)] == ["", "30 min", "36 h", "12 days"]


def test_columns_stand_under_each_other() -> None:
    assert aligned([["a", "n"], ["bbb", "10"]], right=[1]) == ["a     n", "bbb  10"]
    assert aligned([]) == []
