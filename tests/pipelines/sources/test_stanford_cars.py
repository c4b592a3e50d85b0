from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from photo_sources import picture, reasons, refused, rows, write
from scipy.io import savemat

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources.stanford_cars import StanfordCars, StanfordCarsConfig

CLASSES = ["AM General Hummer SUV 2000", "Acura RL Sedan 2012", "Ram C/V Cargo Van Minivan 2012"]
CORNERS = ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2")


def source(root: str | Path) -> StanfordCars:
    return StanfordCars(StanfordCarsConfig(root=str(root)))


def mat(**variables: Any) -> bytes:
    stream = io.BytesIO()
    savemat(stream, variables)
    return stream.getvalue()


def cells(names: list[str]) -> Any:
    """A MATLAB cell array of texts."""
    array = np.empty((1, len(names)), object)
    array[0, :] = names
    return array


def annotations(fields: tuple[str, ...], *entries: tuple[Any, ...]) -> Any:
    """A MATLAB struct array [1, n], numbers as the devkit stores them."""
    array = np.empty((1, len(entries)), [(f, object) for f in fields])
    for i, entry in enumerate(entries):
        array[0, i] = tuple(np.uint16(v) if isinstance(v, int) else v for v in entry)
    return array


TRAIN = annotations(
    (*CORNERS, "class", "fname"),
    (39, 116, 569, 375, 2, "00001.jpg"),
    (1, 1, 24, 20, 3, "00002.jpg"),
    (5, 6, 7, 8, 2, "00003.jpg"),
)
TEST = annotations((*CORNERS, "class", "fname"), (30, 52, 246, 147, 1, "00001.jpg"))
DEVKIT: dict[str, bytes | str] = {
    "cars_train/00001.jpg": picture(1),
    "cars_train/00002.jpg": picture(2),
    "cars_train/00003.jpg": picture(3),
    "cars_test/00001.jpg": picture(4),
    "devkit/cars_meta.mat": mat(class_names=cells(CLASSES)),
    "devkit/cars_train_annos.mat": mat(annotations=TRAIN),
    "devkit/cars_test_annos.mat": mat(
        annotations=annotations((*CORNERS, "fname"), (1, 2, 3, 4, "00001.jpg"))
    ),
    "cars_test_annos_withlabels.mat": mat(annotations=TEST),
}
EXPECTED = [
    ("car/AM General Hummer SUV 2000", "car/cars_test/00001.jpg", [29.0, 51.0, 246.0, 147.0]),
    ("car/Acura RL Sedan 2012", "car/cars_train/00001.jpg", [38.0, 115.0, 569.0, 375.0]),
    ("car/Acura RL Sedan 2012", "car/cars_train/00003.jpg", [4.0, 5.0, 7.0, 8.0]),
    ("car/Ram C%2FV Cargo Van Minivan 2012", "car/cars_train/00002.jpg", [0.0, 0.0, 24.0, 20.0]),
]


def listed(found: StanfordCars) -> list[tuple[Any, ...]]:
    return [(r["instance_id"], r["image_id"], r["box"]) for r in rows(found)]


def test_the_form_with_a_devkit(place: str) -> None:
    write(place, DEVKIT)
    found = source(place)
    assert listed(found) == EXPECTED
    assert {(r["domain"], r["category"], r["licence"]) for r in rows(found)} == {("car", "car", None)}
    for row in rows(found):
        assert storage.read_bytes(row["uri"]) == DEVKIT[row["image_id"].removeprefix("car/")]
    assert refused(found) == {}


def test_folders_may_be_nested_as_mirrors_pack_them(tmp_path: Path) -> None:
    nested = {
        "cars_train/": "cars_train/cars_train/",
        "cars_test/": "cars_test/cars_test/",
        "devkit/": "car_devkit/devkit/",
    }
    files = {
        next((p.replace(a, b, 1) for a, b in nested.items() if p.startswith(a)), p): d
        for p, d in DEVKIT.items()
    }
    write(str(tmp_path), files)
    assert [(i, b) for i, _, b in listed(source(tmp_path))] == [(i, b) for i, _, b in EXPECTED]
    assert rows(source(tmp_path))[1]["image_id"] == "car/cars_train/cars_train/00001.jpg"


def test_test_photos_without_labels_are_refused(tmp_path: Path) -> None:
    write(str(tmp_path), {p: d for p, d in DEVKIT.items() if "withlabels" not in p})
    assert listed(source(tmp_path)) == EXPECTED[1:]
    assert refused(source(tmp_path)) == {
        "cars_test/00001.jpg": ("no_identity", "there is no cars_test_annos_withlabels.mat")
    }


def test_the_form_with_one_folder_and_entries_that_cannot_be_used(tmp_path: Path) -> None:
    said = annotations(
        ("relative_im_path", *CORNERS, "class", "test"),
        ("car_ims/000001.jpg", 112, 7, 853, 717, 1, 0),
        ("car_ims/000002.jpg", 9, 9, 8, 20, 1, 0),
        ("car_ims/000003.jpg", 1, 1, 9, 9, 4, 1),
        ("car_ims/000004.jpg", 1, 1, 9, 9, 2, 1),
    )
    photos = {f"car_ims/{n:06d}.jpg": picture(n) for n in (1, 2, 3, 5)}
    write(str(tmp_path), {**photos, "cars_annos.mat": mat(annotations=said, class_names=cells(CLASSES))})
    found = source(tmp_path)
    assert listed(found) == [
        ("car/AM General Hummer SUV 2000", "car/car_ims/000001.jpg", [111.0, 6.0, 853.0, 717.0])
    ]
    assert reasons(found) == {
        "car_ims/000002.jpg": "bad_label",
        "car_ims/000003.jpg": "bad_label",
        "car_ims/000004.jpg": "not_a_file",
        "car_ims/000005.jpg": "no_identity",
    }
    assert "class" in refused(found)["car_ims/000003.jpg"][1]
    assert "area" in refused(found)["car_ims/000002.jpg"][1]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            dict.fromkeys(DEVKIT, None),
            r"no photos; the layout of stanford_cars is <root>/car_ims/000001\.jpg and cars_annos",
        ),
        ({"devkit/cars_meta.mat": None}, r"no cars_annos\.mat and no cars_meta\.mat; the layout"),
        ({"devkit/cars_meta.mat": b"x" * 200}, r"cars_meta\.mat: not a \.mat file"),
        ({"devkit/cars_meta.mat": mat(other=1)}, r"cars_meta\.mat: holds no class_names"),
        (
            {"devkit/cars_train_annos.mat": DEVKIT["devkit/cars_test_annos.mat"]},
            r"cars_train_annos\.mat: annotations have no class",
        ),
    ],
)
def test_another_layout_is_one_clear_line(
    tmp_path: Path, change: dict[str, bytes | None], message: str
) -> None:
    write(str(tmp_path), {p: d for p, d in {**DEVKIT, **change}.items() if d is not None})
    with pytest.raises(OacirError, match=message) as caught:
        rows(source(tmp_path))
    assert "\n" not in str(caught.value)
