from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from photo_sources import picture, reasons, refused, rows, write

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources import deepfashion2
from pipelines.sources.deepfashion2 import DeepFashion2, DeepFashion2Config

NAMES = {1: "short sleeve top", 7: "shorts", 8: "trousers"}


def source(root: str | Path) -> DeepFashion2:
    return DeepFashion2(DeepFashion2Config(root=str(root)))


def garment(category: int, style: int, box: list[float], **more: Any) -> dict[str, Any]:
    """An entry with every field that the data set has."""
    return {
        "segmentation": [[1.0, 2.0, 3.0, 4.0, 5.0, 6.0]],
        "scale": 3,
        "viewpoint": 2,
        "zoom_in": 1,
        "landmarks": [0, 0, 0, 12, 13, 2],
        "style": style,
        "bounding_box": box,
        "category_id": category,
        "occlusion": 2,
        "category_name": NAMES[category],
    } | more


def annotation(pair: int, *garments: dict[str, Any], by: str = "user") -> str:
    return json.dumps({"source": by, "pair_id": pair} | {f"item{n}": g for n, g in enumerate(garments, 1)})


def photos(part: str, *numbers: int) -> dict[str, bytes | str]:
    return {f"{part}/image/{n:06d}.jpg": picture(n) for n in numbers}


def collection() -> dict[str, bytes | str]:
    """Pair 1: a top on three photos and trousers on two of them; another top of the same pair, another style."""
    top, trousers = garment(1, 1, [10, 20, 110, 220]), garment(8, 1, [30, 40, 50, 60])
    said = {
        "train/annos/000001.json": annotation(1, top, trousers),
        "train/annos/000002.json": annotation(1, trousers, top, garment(7, 0, [1, 1, 2, 2]), by="shop"),
        "train/annos/000003.json": annotation(1, garment(1, 1, [0, 0, 5, 5]), top, by="shop"),
        "train/annos/000004.json": annotation(1, garment(1, 2, [7, 7, 9, 9])),
        "train/annos/000005.json": annotation(2, garment(1, 1, [7, 7, 9, 10])),
        "validation/annos/000001.json": annotation(1, garment(1, 1, [3, 4, 5, 6])),
    }
    return {**photos("train", 1, 2, 3, 4, 5), **photos("validation", 1), **said}


def test_each_photo_goes_to_the_article_with_the_most_photos(place: str) -> None:
    write(place, {**collection(), "test/image/000001.jpg": b"x", "train/readme.txt": "x"})
    found = rows(listed := source(place))
    assert [(r["instance_id"], r["image_id"], r["box"]) for r in found] == [
        ("fashion/train-000001-01-1", "fashion/train/image/000001.jpg", [10.0, 20.0, 110.0, 220.0]),
        ("fashion/train-000001-01-1", "fashion/train/image/000002.jpg", [10.0, 20.0, 110.0, 220.0]),
        (
            "fashion/train-000001-01-1",
            "fashion/train/image/000003.jpg",
            [10.0, 20.0, 110.0, 220.0],
        ),  # larger one
        ("fashion/train-000001-01-2", "fashion/train/image/000004.jpg", [7.0, 7.0, 9.0, 9.0]),
        ("fashion/train-000002-01-1", "fashion/train/image/000005.jpg", [7.0, 7.0, 9.0, 10.0]),
        ("fashion/validation-000001-01-1", "fashion/validation/image/000001.jpg", [3.0, 4.0, 5.0, 6.0]),
    ]
    assert {(r["domain"], r["category"]) for r in found} == {("fashion", "short sleeve top")}
    assert storage.read_bytes(found[1]["uri"]) == picture(2)
    assert refused(listed) == {}


def test_a_tie_goes_to_the_lower_article(tmp_path: Path) -> None:
    both = annotation(9, garment(8, 1, [1, 1, 90, 90]), garment(1, 3, [1, 1, 3, 3]))
    write(str(tmp_path), {**photos("train", 1), "train/annos/000001.json": both})
    assert [(r["instance_id"], r["category"]) for r in rows(source(tmp_path))] == [
        ("fashion/train-000009-01-3", "short sleeve top")
    ]


def test_photos_without_an_article_are_refused_with_the_reason(tmp_path: Path) -> None:
    fine = garment(1, 1, [1, 1, 9, 9])
    said: dict[str, bytes | str] = {
        "1": annotation(1, garment(1, 0, [1, 1, 9, 9])),
        "2": annotation(1),
        "3": b'{"source": "user", ',
        "4": annotation(1, {k: v for k, v in fine.items() if k != "category_id"}),
        "5": annotation(1, garment(1, 1, [9, 1, 1, 9])),
        "6": annotation(1, garment(1, 1, [1, 1, 9])),
        "7": annotation(1, garment(1, 1, [1, 1, float("nan"), 9])),
        "8": "[]",
        "10": annotation(1, garment(1, 1, [9, 1, 1, 9]), garment(8, 1, [1, 1, 9, 9])),
        "11": annotation(1, fine),
    }
    write(str(tmp_path), {f"train/annos/{int(n):06d}.json": text for n, text in said.items()})
    write(str(tmp_path), {**photos("train", *range(1, 11)), "train/image/._000001.jpg.txt": b"x"})
    found = source(tmp_path)
    assert [r["image_id"][-10:] for r in rows(found)] == ["000010.jpg"]
    verdicts = {key.removeprefix("train/image/"): reason for key, reason in reasons(found).items()}
    assert verdicts == {
        "000001.jpg": "no_identity",
        "000002.jpg": "no_identity",
        **{f"{n:06d}.jpg": "bad_label" for n in (3, 4, 5, 6, 7, 8)},
        "000009.jpg": "no_identity",
        "000011.jpg": "not_a_file",
        "._000001.jpg.txt": "unsupported_format",
    }
    assert refused(found)["train/image/000009.jpg"][1] == "annos/ does not name it"


@pytest.mark.ray
def test_annotations_in_many_batches_give_the_same(
    tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = {
        f"train/annos/{n:06d}.json": annotation(n // 3, garment(1, 1, [1, 1, 9, n + 2])) for n in range(20)
    }
    write(str(tmp_path), {**photos("train", *range(20)), **said})
    once = rows(source(tmp_path))
    monkeypatch.setattr(deepfashion2, "PER_SCAN", 2)
    assert rows(source(tmp_path)) == once
    assert len(once) == 20


@pytest.mark.parametrize("files", [{}, {"train/image.zip": b"x"}, {"test/image/000001.jpg": b"x"}])
def test_another_layout_is_one_clear_line(tmp_path: Path, files: dict[str, bytes | str]) -> None:
    write(str(tmp_path), files)
    message = (
        r"no train/image/ and no train/annos/ .*the layout of deepfashion2 is <root>/train/image/000001\.jpg"
    )
    with pytest.raises(OacirError, match=message) as caught:
        source(tmp_path).fingerprint()
    assert "\n" not in str(caught.value)


def test_the_fingerprint_follows_photos_and_annotations(tmp_path: Path) -> None:
    write(str(tmp_path), collection())
    seen = {source(tmp_path).fingerprint()}
    write(str(tmp_path), {"train/annos/000004.json": annotation(77, garment(1, 2, [7, 7, 9, 9]))})
    seen.add(source(tmp_path).fingerprint())
    write(str(tmp_path), photos("validation", 2))
    seen.add(source(tmp_path).fingerprint())
    assert len(seen) == 3
