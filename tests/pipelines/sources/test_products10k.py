from __future__ import annotations

from pathlib import Path

import pytest
from photo_sources import picture, reasons, refused, rows, write

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources.products10k import Products10K, Products10KConfig

TRAIN = "name,class,group\n1.jpg,0,4\n2.jpg,0,4\n10.jpg,7,12\n"
TEST = "name,class,Usage\n1.jpg,7,Private\n2.jpg,0,Public\n3.jpg,99,Public\n"


def source(root: str | Path) -> Products10K:
    return Products10K(Products10KConfig(root=str(root)))


def photos(folder: str, *names: str) -> dict[str, bytes]:
    return {f"{folder}/{name}": picture(len(folder) * 100 + n) for n, name in enumerate(names)}


def test_both_sets_are_listed_by_product(place: str) -> None:
    files = photos("train", "1.jpg", "2.jpg", "10.jpg") | photos("test", "1.jpg", "2.jpg", "3.jpg")
    write(place, {**files, "train.csv": TRAIN, "test_kaggletest.csv": TEST, "sample_submission.csv": "x"})
    found = rows(listed := source(place))
    assert [(r["instance_id"], r["category"], r["image_id"]) for r in found] == [
        ("product/0", "group 4", "product/test/2.jpg"),
        ("product/0", "group 4", "product/train/1.jpg"),
        ("product/0", "group 4", "product/train/2.jpg"),
        ("product/7", "group 12", "product/test/1.jpg"),
        ("product/7", "group 12", "product/train/10.jpg"),
        ("product/99", "product", "product/test/3.jpg"),  # no group is known for its product
    ]
    assert all(storage.read_bytes(r["uri"]) == files[r["image_id"].removeprefix("product/")] for r in found)
    assert all(r["size_bytes"] == len(storage.read_bytes(r["uri"])) and r["mark"] for r in found)
    assert {(r["domain"], r["box"], r["licence"], r["mask_uri"]) for r in found} == {
        ("product", None, None, None)
    }
    assert refused(listed) == {}


def test_files_and_labels_that_do_not_meet_are_refused(tmp_path: Path) -> None:
    write(str(tmp_path), photos("train", "1.jpg", "extra.jpg", "notes.txt", "deep/2.jpg"))
    write(str(tmp_path), {**photos("test", "1.jpg"), "train.csv": TRAIN + ",5,5\n11.jpg,,5\n"})
    (tmp_path / "train" / "10.jpg").symlink_to(tmp_path / "nowhere")
    found = source(tmp_path)
    assert [r["image_id"] for r in rows(found)] == ["product/train/1.jpg"]
    assert reasons(found) == {
        "test/1.jpg": "no_identity",
        "train/10.jpg": "not_a_file",
        "train/2.jpg": "not_a_file",
        "train/deep/2.jpg": "no_identity",
        "train/extra.jpg": "no_identity",
        "train/notes.txt": "unsupported_format",
    }
    assert refused(found)["test/1.jpg"][1] == "there is no test_kaggletest.csv"
    assert refused(found)["train/2.jpg"][1] == "train.csv names it, there is no such file"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (
            {},
            r"no train\.csv and no train/; the layout of products10k is <root>/train\.csv \(name,class,group\), tr",
        ),
        ({"train.csv": TRAIN}, r"no train/; the layout"),
        (
            {"train.csv": "name,class\n", "train/1.jpg": b"x"},
            r"train\.csv: no column group; needed are class, group",
        ),
        (
            {"train.csv": "name,class,group\n1.jpg,1\n", "train/1.jpg": b"x"},
            r"train\.csv: not valid CSV \(.*Expected 3",
        ),
        (
            {"train.csv": b"name,class,group\n\xff,1,1\n", "train/1.jpg": b"x"},
            r"train\.csv: not valid CSV \(.*UTF8",
        ),
        (
            {"train.csv": TRAIN + "1.jpg,3,4\n", "train/1.jpg": b"x"},
            r"train\.csv: a second row for train/1\.jpg; keep",
        ),
    ],
)
def test_another_layout_is_one_clear_line(
    tmp_path: Path, files: dict[str, bytes | str], message: str
) -> None:
    write(str(tmp_path / "products"), files)
    with pytest.raises(OacirError, match=message) as caught:
        rows(source(tmp_path / "products"))
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_photos_and_labels(tmp_path: Path) -> None:
    write(str(tmp_path), {**photos("train", "1.jpg", "2.jpg", "10.jpg"), "train.csv": TRAIN})
    seen = [source(tmp_path).fingerprint()]
    write(str(tmp_path), {"README": "no part of it"})
    assert source(tmp_path).fingerprint() == seen[0]
    for change in (
        {"train/4.jpg": b"x"},
        {"train.csv": TRAIN + "4.jpg,0,4\n"},
        {"test_kaggletest.csv": TEST},
    ):
        write(str(tmp_path), change)  # type: ignore[arg-type]
        seen.append(source(tmp_path).fingerprint())
    assert len(set(seen)) == 4
