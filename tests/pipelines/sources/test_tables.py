from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from photo_sources import write

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources.tables import FILES, boxes, component, files_below, match, read_csv


def test_every_file_is_found_folder_by_folder(place: str) -> None:
    names = ("a.txt", "one/1.jpg", "one/deep/er/2.jpg", "two/ü 名.jpg")
    write(place, dict.fromkeys(names, b"xy"))
    found = files_below(place)
    assert found.schema == FILES
    assert sorted(found["path"].to_pylist()) == sorted(names)
    assert set(found["size_bytes"].to_pylist()) == {2}
    by_path = {f.path: f.mark for f in storage.list_files(place)}
    assert dict(zip(found["path"].to_pylist(), found["mark"].to_pylist(), strict=True)) == by_path
    assert sorted(files_below(place, "one")["path"].to_pylist()) == ["one/1.jpg", "one/deep/er/2.jpg"]
    assert len(files_below(place, "absent")) == 0


def test_links_to_nothing_and_names_that_are_no_utf8_have_no_size(tmp_path: Path) -> None:
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.jpg")).write_bytes(b"x")
    found = files_below(str(tmp_path)).to_pylist()
    assert sorted((f["path"], f["size_bytes"]) for f in found) == [("\\udcff.jpg", -1), ("gone.jpg", -1)]


def test_csv_columns_are_text_and_quoted_values_may_span_lines(place: str) -> None:
    text = 'id,unused,title\n007,x,"a, ""b""\nc"\n8,y,\n'
    write(place, {"t.csv": b"\xef\xbb\xbf" + text.encode()})
    table = read_csv(storage.join(place, "t.csv"), ("id",), ("title", "author"))
    assert table.to_pylist() == [
        {"id": "007", "title": 'a, "b"\nc', "author": None},
        {"id": "8", "title": None, "author": None},
    ]
    with pytest.raises(OacirError, match=r"none\.csv: cannot be read"):
        read_csv(storage.join(place, "none.csv"), ("id",))


def test_matching_accounts_for_every_claim_and_every_file() -> None:
    files = pa.table(
        {
            "path": ["in/a.jpg", "in/b.JPEG", "in/c.jpg", "in/d.txt", "in/e.jpg", "in/f.jpg"],
            "size_bytes": [1, 2, 3, 4, -1, 6],
            "mark": list("abcdef"),
            "key": list("abcdef"),
        }
    )
    claims = pa.table(
        {
            "key": ["f", "b", "d", "e", "gone"],
            "instance": ["i", "j", "k", "l", "m"],
            "reason": ["bad_label", None, None, None, None],
            "detail": ["why", None, None, None, None],
        }
    )
    found, refused = match(claims, files, "labels.csv")
    assert [(r["key"], r["instance"], r["path"], r["mark"]) for r in found.to_pylist()] == [
        ("b", "j", "in/b.JPEG", "b")
    ]
    assert sorted((r["key"], r["reason"]) for r in refused.to_pylist()) == [
        ("gone", "not_a_file"),
        ("in/a.jpg", "no_identity"),
        ("in/c.jpg", "no_identity"),
        ("in/d.txt", "unsupported_format"),
        ("in/e.jpg", "not_a_file"),
        ("in/f.jpg", "bad_label"),
    ]
    twice = pa.concat_tables([claims, claims.slice(1, 1)])
    with pytest.raises(OacirError, match=r"labels\.csv: a second row for b; keep one"):
        match(twice, files, "labels.csv")


def test_boxes_without_an_area_are_found() -> None:
    corners = np.array(
        [[0, 0, 1, 1], [1, 0, 1, 5], [3, 4, 5, 3], [0, 0, np.nan, 1], [0, 0, np.inf, 1]], float
    )
    column, none = boxes(corners)
    assert column[0].as_py() == [0, 0, 1, 1]
    assert none.to_pylist() == [False, True, True, True, True]
    assert [len(part) for part in boxes(np.zeros((0, 4)))] == [0, 0]


def test_different_names_stay_different_as_components() -> None:
    names = pa.chunked_array([["a/b", "a%2Fb", "a%b", "plain ü"]])
    assert component(names).to_pylist() == ["a%2Fb", "a%252Fb", "a%25b", "plain ü"]
