"""LaSCo, on files made up after the authors' README and other people's loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from small_release import write_json

from infra.base.errors import OacirError
from pipelines.sources.released.lasco import LascoConfig, read


def image(number: int, folder: str = "val2014") -> list[Any]:
    return [number, f"{folder}/COCO_{folder}_{number:012d}.jpg"]


def record(reference: list[Any], target: list[Any], qid: int = 28714000) -> dict[str, Any]:
    return {"qid": qid, "query-image": reference, "query-text": "riding the bike", "target-image": target}


def test_queries_and_the_corpus_as_gallery(tmp_path: Path) -> None:
    corpus = [{"id": n, "path": f"val/{image(n)[1]}"} for n in (1, 2, 3)]
    write_json(tmp_path, "lasco_val_corpus.json", corpus)
    # the same qid twice, and a target that the corpus lacks
    records = [record(image(1), image(2)), record(image(2), image(3)), record(image(1), image(9))]
    write_json(tmp_path, "lasco_val.json", records)
    write_json(tmp_path, "lasco_train.json", [record(image(5, "train2014"), image(6, "train2014"))])
    release = read(LascoConfig(source=str(tmp_path), dev_share=0.0)).check()
    assert [(q["query_id"], q["split"]) for q in release.quadruples] == [
        ("lasco/train/000000", "train"),
        ("lasco/val/000000", "test"),
        ("lasco/val/000001", "test"),
    ]
    name = "lasco/val2014/COCO_val2014_{:012d}.jpg"
    assert list(release.galleries["lasco/test"]) == [name.format(n) for n in (1, 2, 3)]
    assert release.images[name.format(1)]["uri"] == image(1)[1]
    assert [(r["key"], r["reason"]) for r in release.refused] == [("lasco/val/000002", "missing_image")]
    assert release.records == {"train": 1, "val": 3}


def test_another_form_of_image_is_an_error(tmp_path: Path) -> None:
    write_json(tmp_path, "lasco_train.json", [record(["a"], image(2))])
    with pytest.raises(
        OacirError, match=r"lasco_train\.json, record 0: an image is \[id, path\], found \['a'\]"
    ):
        read(LascoConfig(source=str(tmp_path)))
