"""The OACIRR release read without a sidecar, on files of the layout that METHODS section 1 states."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from small_release import write_images, write_json

from infra.base.errors import OacirError
from pipelines.sources.released.oacirr import OacirrConfig, read

Named = dict[str, str]


def record(reference: str, target: str, **more: Any) -> dict[str, Any]:
    return {
        "reference": reference,
        "target": target,
        "modification_text_mllm": "on a beach",
        "object_category": "mug",
        "reference_bounding_box": [1, 2, 10, 12],
    } | more


def write_set(root: Path, annotations: str, split: str, names: Named, records: list[dict[str, Any]]) -> None:
    write_json(root, f"{annotations}/quadruple_captions/caption_full.{split}.json", records)
    write_json(root, f"{annotations}/image_splits/split.{split}.json", names)
    boxes = {name: [0, 0, 5, 5 + n] for n, name in enumerate(names)}
    write_json(root, f"{annotations}/image_bounding_box/bounding_box.{split}.json", boxes)


def names(split: str, instances: str, each: int = 2) -> Named:
    """Image `<instance><n>` lies in `<split>/<instance>/`."""
    return {f"{i}{n}": f"{split}/{i}/{i}{n}.jpg" for i in instances for n in range(each)}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Two domains; car has a distractor (z) in val, and the training images lie in Union only."""
    car, mug = "OACIRR-Subset/OACIRR-Car", "OACIRR-Subset/OACIRR-Mug"
    write_set(
        tmp_path, f"{car}/oacirr-car", "train", names("train", "ab"), [record("a0", "a1"), record("b1", "b0")]
    )
    write_set(
        tmp_path,
        f"{car}/oacirr-car",
        "val",
        names("val", "cdz"),
        [record("c0", "c1", target_subset_vitG=["c1", "d0", "z0"]), record("d0", "d1", object_category=None)],
    )
    write_set(
        tmp_path, f"{mug}/oacirr-mug", "train", names("train", "ef"), [record("e0", "e1"), record("f0", "f1")]
    )
    write_set(tmp_path, f"{mug}/oacirr-mug", "val", names("val", "g"), [record("g0", "g1")])
    union = names("train", "abef")
    records = [record("a0", "a1"), record("b1", "b0"), record("e0", "e1"), record("f0", "f1")]
    write_set(tmp_path, "OACIRR-Union/oacirr-union", "train", union, records)
    write_set(tmp_path, "OACIRR-CrossDomain/WO-Car/oacirr-wo-car", "train", names("train", "ef"), records[2:])
    write_images(tmp_path, [f"{car}/{path}" for path in names("val", "cdz").values()])
    write_images(tmp_path, [f"{mug}/{path}" for path in names("val", "g").values()])
    write_images(tmp_path, [f"OACIRR-Union/{path}" for path in union.values()])
    return tmp_path


def test_instances_galleries_and_boxes(root: Path) -> None:
    release = read(OacirrConfig(source=str(root), dev_share=0.0)).check()
    asked = {q["query_id"]: q for q in release.quadruples}
    query = asked["car/test/000000"]
    assert query["reference_id"] == "car/val/c/c0.jpg"
    assert query["instance_id"] == "car/c"
    assert query["reference_box"] == [1, 2, 10, 12]
    assert query["category"] == "mug"
    assert query["group_ids"] == [f"car/val/{p}.jpg" for p in ("c/c1", "d/d0", "z/z0")]
    # references, targets and the distractor that the split names
    assert sorted(release.galleries["car/test"]) == [f"car/val/{i}/{i}{n}.jpg" for i in "cdz" for n in (0, 1)]
    assert len(release.galleries["mug/test"]) == 2
    shown = {row["image_id"]: row for row in release.instances}
    assert shown["car/val/d/d1.jpg"]["box"] == [0, 0, 5, 8]
    # a class that the release leaves out, and a distractor's, is the domain
    assert asked["car/test/000001"]["category"] == "car"
    assert shown["car/val/z/z0.jpg"]["category"] == "car"
    assert shown["car/val/c/c1.jpg"]["category"] == "mug"
    assert all(release.images[i]["uri"] in release.files.listed for i in release.images)


@pytest.mark.parametrize(
    ("train", "expected"),
    [
        ("union", {"car": 2, "mug": 2}),
        ("subset", {"car": 2, "mug": 2}),
        ("wo-car", {"mug": 2}),
        ("none", {}),
    ],
)
def test_training_sets(root: Path, train: str, expected: dict[str, int]) -> None:
    release = read(OacirrConfig(source=str(root), train=train, dev_share=0.0)).check()
    assert Counter(q["domain"] for q in release.quadruples if q["split"] == "train") == expected
    assert Counter(q["domain"] for q in release.quadruples if q["split"] == "test") == {"car": 2, "mug": 1}
    trained = [release.images[q["reference_id"]] for q in release.quadruples if q["split"] == "train"]
    # wherever they were unzipped: the subsets' own folders have none
    assert all(row["uri"].startswith("OACIRR-Union/train/") for row in trained)


def test_union_alone_has_no_domains_and_nothing_to_evaluate(root: Path, tmp_path: Path) -> None:
    (root / "OACIRR-Union").rename(tmp_path / "alone")
    lonely = tmp_path / "only"
    lonely.mkdir()
    (tmp_path / "alone").rename(lonely / "OACIRR-Union")
    release = read(OacirrConfig(source=str(lonely), dev_share=0.0)).check()
    assert Counter((q["domain"], q["split"]) for q in release.quadruples) == {("union", "train"): 4}


def test_dev_is_held_out_by_instance(root: Path) -> None:
    release = read(OacirrConfig(source=str(root), dev_share=0.5)).check()
    splits = {(q["instance_id"], q["split"]) for q in release.quadruples if q["split"] in ("train", "dev")}
    assert Counter(split for _, split in splits) == {"train": 2, "dev": 2}
    assert len(release.galleries["car/dev"]) == len(release.galleries["mug/dev"]) == 2


def test_a_record_without_a_box_or_with_an_unknown_image_is_refused(root: Path) -> None:
    records = [
        record("g0", "g1", reference_bounding_box=[3, 3, 3, 9]),
        record("g0", "nowhere"),
        record("g1", "g0"),
    ]
    write_set(root, "OACIRR-Subset/OACIRR-Mug/oacirr-mug", "val", names("val", "g"), records)
    release = read(OacirrConfig(source=str(root), train="none"))
    assert [(r["key"], r["reason"]) for r in release.refused] == [
        ("mug/test/000000", "no_box"),
        ("mug/test/000001", "missing_image"),
    ]
    assert release.records["oacirr-mug val"] == 3


def test_what_is_not_there_is_said_with_what_is(root: Path, tmp_path: Path) -> None:
    with pytest.raises(OacirError, match=r"no subset of bike; there are: car, mug"):
        read(OacirrConfig(source=str(root), domains=["bike"]))
    with pytest.raises(
        OacirError, match=r"no OACIRR-CrossDomain/WO-Mug/.*set release\.train to a set that is there"
    ):
        read(OacirrConfig(source=str(root), train="wo-mug"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        OacirError, match="neither OACIRR-Subset nor OACIRR-Union nor OACIRR-CrossDomain is there"
    ):
        read(OacirrConfig(source=str(tmp_path / "empty"), train="none"))
