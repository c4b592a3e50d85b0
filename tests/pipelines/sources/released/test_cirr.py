"""CIRR: hand-made records, and the figures of the real annotation files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_release import write_json

from infra.base.errors import OacirError
from pipelines.sources.released.cirr import CirrConfig, read

MEMBERS = [f"dev-{n}-img0" for n in range(6)]


def write(root: Path, records: list[dict[str, Any]], split: str = "val") -> None:
    names = {name: f"./dev/{name}.png" for name in [*MEMBERS, "dev-9-img1"]}
    write_json(root, f"image_splits/split.rc2.{split}.json", names)
    write_json(root, f"captions/cap.rc2.{split}.json", records)


def record(**more: Any) -> dict[str, Any]:
    return {
        "pairid": 12060,
        "reference": MEMBERS[0],
        "target_hard": MEMBERS[1],
        "target_soft": {MEMBERS[1]: 1.0},
        "caption": "show three bottles",
        "img_set": {"id": 36, "members": MEMBERS, "reference_rank": 2},
    } | more


def test_the_hard_target_comes_first_then_the_soft_ones_above_zero(tmp_path: Path) -> None:
    soft = {MEMBERS[3]: 0.5, MEMBERS[4]: -1.0, MEMBERS[2]: 1.0, MEMBERS[0]: 1.0, MEMBERS[5]: 0.2}
    write(tmp_path, [record(target_soft=soft)])
    (query,) = read(CirrConfig(source=str(tmp_path))).check().quadruples
    # by falling score; without the reference, and without what is below zero
    assert query["target_ids"] == [f"cirr/dev/{MEMBERS[n]}.png" for n in (1, 2, 3, 5)]
    assert json.loads(query["provenance"]["extra_json"])["target_soft"] == soft
    assert (query["query_id"], query["split"], query["reference_box"]) == ("cirr/val/12060", "test", None)
    assert query["group_ids"] == [f"cirr/dev/{name}.png" for name in MEMBERS]


def test_an_image_of_no_split_refuses_the_query(tmp_path: Path) -> None:
    write(tmp_path, [record(), record(pairid=1, reference="dev-elsewhere")])
    release = read(CirrConfig(source=str(tmp_path)))
    assert [q["query_id"] for q in release.quadruples] == ["cirr/val/12060"]
    assert [(r["key"], r["reason"], r["detail"]) for r in release.refused] == [
        ("cirr/val/1", "missing_image", "dev-elsewhere is in no split file")
    ]
    assert release.records == {"val": 2}


def test_a_file_of_another_layout_is_named_with_its_record(tmp_path: Path) -> None:
    write(tmp_path, [record(), {"pairid": 2}])
    with pytest.raises(OacirError, match=r"cap\.rc2\.val\.json, record 1: no reference, caption, img_set"):
        read(CirrConfig(source=str(tmp_path)))


def test_images_lie_in_img_raw_or_in_the_source(tmp_path: Path) -> None:
    write(tmp_path, [record()])
    assert read(CirrConfig(source=str(tmp_path))).files.images == str(tmp_path)
    (tmp_path / "img_raw").mkdir()
    assert read(CirrConfig(source=str(tmp_path))).files.images == str(tmp_path / "img_raw")


def test_the_real_files(shared_dir: Path) -> None:
    release = read(CirrConfig(source=str(shared_dir / "data/annotations/cirr"))).check()
    splits = Counter(q["split"] for q in release.quadruples)
    assert splits == {"test": 4181, "hidden": 4148}  # the training captions are not among the shared files
    assert {place: len(ids) for place, ids in release.galleries.items()} == {
        "cirr/test": 2297,
        "cirr/hidden": 2315,
    }
    assert not release.refused
    by_split = {s: [q for q in release.quadruples if q["split"] == s] for s in splits}
    assert Counter(len(q["target_ids"]) for q in by_split["test"]) == {1: 4085, 2: 87, 3: 8, 4: 1}
    assert {len(q["target_ids"]) for q in by_split["hidden"]} == {0}
    for query in release.quadruples:
        assert len(query["group_ids"]) == 6
        assert query["reference_id"] in query["group_ids"]
        assert query["reference_id"] not in query["target_ids"]
    assert all(q["target_ids"][0] in q["group_ids"] for q in by_split["test"])
    soft = [json.loads(q["provenance"]["extra_json"])["target_soft"] for q in by_split["test"]]
    assert sum(len(s) > 1 for s in soft) == 645
    empty = [q["query_id"] for q in release.quadruples if not q["modification_text"].strip()]
    assert empty == ["cirr/test1/27098"]  # hidden: the server wants an answer to it too


def test_asked_for_training_without_its_captions(shared_dir: Path) -> None:
    source = str(shared_dir / "data/annotations/cirr")
    with pytest.raises(OacirError, match=r"cap\.rc2\.train\.json is missing"):
        read(CirrConfig(source=source, splits=["train"]))
