"""CIRCO: the index of COCO as the gallery, many targets, and the figures of the real annotation files."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_release import write_json

from infra.base.errors import OacirError
from pipelines.sources.released.circo import INFO, CircoConfig, read


def write_index(root: Path, ids: list[int]) -> None:
    images = [
        {
            "id": i,
            "file_name": f"{i:012d}.jpg",
            "license": 1 + i % 2,
            "flickr_url": f"http://flickr/{i}",
        }
        for i in ids
    ]
    licences = [
        {"id": 1, "name": "Attribution License"},
        {"id": 2, "name": "No known copyright restrictions"},
    ]
    write_json(root, INFO, {"images": images, "licenses": licences})


def record(**more: Any) -> dict[str, Any]:
    return {
        "reference_img_id": 1, "target_img_id": 3, "gt_img_ids": [3, 2], "relative_caption": "at night",
        "shared_concept": "a bear", "id": 13, "semantic_aspects": ["negation"],
    } | more  # fmt: skip


def test_targets_gallery_and_licences(tmp_path: Path) -> None:
    write_index(tmp_path / "COCO2017_unlabeled", [1, 2, 3, 4])
    write_json(tmp_path, "annotations/val.json", [record(), record(id=14, reference_img_id=99)])
    release = read(CircoConfig(source=str(tmp_path))).check()
    (query,) = release.quadruples
    assert query["target_ids"] == [f"circo/unlabeled2017/{i:012d}.jpg" for i in (3, 2)]
    assert (query["query_id"], query["modification_text"]) == ("circo/val/13", "at night")
    assert json.loads(query["provenance"]["extra_json"])["shared_concept"] == "a bear"
    assert len(release.galleries["circo/test"]) == 4
    assert [(r["key"], r["reason"]) for r in release.refused] == [("circo/val/14", "missing_image")]
    row = release.images["circo/unlabeled2017/000000000003.jpg"]
    assert (row["licence"], row["attribution"]) == ("No known copyright restrictions", "http://flickr/3")
    assert row["uri"] == "unlabeled2017/000000000003.jpg"


def test_a_first_target_that_is_not_the_first_is_an_error(tmp_path: Path) -> None:
    write_index(tmp_path / "COCO2017_unlabeled", [1, 2, 3])
    write_json(tmp_path, "annotations/val.json", [record(target_img_id=2)])
    with pytest.raises(OacirError, match=r"val\.json, record 0: target_img_id 2 is not the first"):
        read(CircoConfig(source=str(tmp_path)))


def test_without_the_index_there_is_no_gallery(tmp_path: Path) -> None:
    write_json(tmp_path, "annotations/val.json", [record()])
    with pytest.raises(OacirError, match=r"image_info_unlabeled2017\.json: cannot be read"):
        read(CircoConfig(source=str(tmp_path)))


def test_the_real_files(shared_dir: Path, tmp_path: Path) -> None:
    source = shared_dir / "data/annotations/circo"
    named: set[int] = set()
    for split in ("val", "test"):
        for entry in json.loads((source / f"annotations/{split}.json").read_text()):
            named |= {entry["reference_img_id"], *entry.get("gt_img_ids", ())}
    write_index(tmp_path, sorted(named))
    release = read(CircoConfig(source=str(source), images=str(tmp_path))).check()
    assert release.records == {"val": 220, "test": 800}
    assert Counter(q["split"] for q in release.quadruples) == {"test": 220, "hidden": 800}
    targets = Counter(len(q["target_ids"]) for q in release.quadruples if q["split"] == "test")
    assert (sum(n * k for n, k in targets.items()), max(targets)) == (916, 14)
    assert not release.refused
    assert release.galleries["circo/test"] == release.galleries["circo/hidden"]
