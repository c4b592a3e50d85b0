from __future__ import annotations

import json
from pathlib import Path

import pytest

from infra.base.errors import OacirError
from infra.base.spool import RECORDS_PER_FILE, Spool, flattened


def test_records_come_back_in_order_however_many_files_they_fill(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    spool.begin("experiment", "run")
    for start in range(0, 3 * RECORDS_PER_FILE, 70):
        spool.append([{"kind": "metrics", "step": step} for step in range(start, start + 70)])
    assert len(list(tmp_path.glob("records-*.jsonl"))) == 4
    again = Spool(str(tmp_path))
    assert again.records == spool.records
    again.append([{"kind": "metrics", "step": -1}])
    again.begin("another", "name")  # it is somebody's already
    read = Spool(str(tmp_path))
    assert read.records == [*spool.records, {"kind": "metrics", "step": -1}]
    assert (read.run["experiment"], read.run["name"]) == ("experiment", "run")


def test_what_was_sent_is_known_for_each_server(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    assert spool.sent("http://a") == (None, 0)
    spool.note_sent("http://a", "r1", 5)
    spool.note_sent("http://b", "r2", 7)
    again = Spool(str(tmp_path))
    assert again.sent("http://a") == ("r1", 5)
    assert again.sent("http://b") == ("r2", 7)


def test_what_could_not_be_written_is_written_with_the_next(tmp_path: Path) -> None:
    spool = Spool(str(tmp_path))
    in_the_way = tmp_path / "records-00001.jsonl"
    in_the_way.mkdir()
    with pytest.raises(OacirError, match="cannot be written"):
        spool.append([{"kind": "metrics", "step": 1}])
    in_the_way.rmdir()
    spool.append([{"kind": "metrics", "step": 2}])
    assert [r["step"] for r in Spool(str(tmp_path)).records] == [1, 2]


def test_a_damaged_spool_says_so(tmp_path: Path) -> None:
    (tmp_path / "records-00001.jsonl").write_text(json.dumps({"kind": "run"}) + "\n{half")
    with pytest.raises(OacirError, match=r"records-00001\.jsonl: damaged spool"):
        Spool(str(tmp_path))


def test_an_empty_spool_is_nobodys(tmp_path: Path) -> None:
    with pytest.raises(OacirError, match=r"set"):
        _ = Spool(str(tmp_path)).run


def test_trees_are_flattened_to_dotted_names() -> None:
    assert flattened({"a": {"b": 1, "c": {"d.e": [1, 2]}}, "f": None}) == {
        "a.b": 1,
        "a.c.d.e": [1, 2],
        "f": None,
    }
