"""Whole small builds from collections as they are published."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from photo_sources import picture, tar, write
from scipy.io import savemat

from infra.base import storage
from infra.base.command import Context
from infra.base.versions import Version, open_version
from pipelines.build import build
from pipelines.config import BuildRecipe

INSTANCES, IMAGES, SIDE = 6, 5, 48
DRIVER = """
import json, sys
from infra.base.command import Context
from infra.base.versions import open_version
from pipelines.build import build
from pipelines.config import BuildRecipe

made = []
for asked in json.loads(sys.argv[1]):
    outcome = build(BuildRecipe.model_validate(asked["recipe"]), Context(root=asked["root"]))
    version = open_version(outcome.location)
    uris = version.table("images")["uri"].to_pylist()
    assert all(uri.startswith(asked["root"].removesuffix("/root")) for uri in uris)
    made.append({"content": version.manifest.content_hash, "queries": len(version.table("quadruples"))})
print(json.dumps(made))
"""
LOOSE = {"tau_valid": 4, "tau_high": 0.99, "tau_centric": 0.98, "tau_count": 2}


def photos() -> list[tuple[int, int, bytes, list[float]]]:
    """Instance, number, bytes and box of each photo."""
    return [
        (i, n, picture(100 * i + n, SIDE), [4.0, 4.0, 14.0 + 4 * n, 30.0])
        for i in range(INSTANCES)
        for n in range(IMAGES)
    ]


def recipe(source: dict[str, Any]) -> BuildRecipe:
    tree = {"source": source, "thresholds": {"default": LOOSE}, "workers": 2, "images_per_part": 10}
    return BuildRecipe.model_validate(tree)


def made(source: dict[str, Any], root: str) -> Version:
    outcome = build(recipe(source), Context(root=root))
    assert outcome.location is not None
    return open_version(outcome.location)


def shards(place: str) -> dict[str, Any]:
    members = [
        member
        for i, n, data, box in photos()
        for member in (
            (f"{i}-{n}.jpg", data),
            (f"{i}-{n}.json", json.dumps({"who": f"thing {i}", "box": box, "licence": "CC BY 4.0"}).encode()),
        )
    ]
    half = len(members) // 4 * 2
    write(place, {"0.tar": tar(members[:half]), "1.tar": tar(members[half:])})
    fields = {"instance": "json.who", "box": "json.box", "licence": "json.licence", "domain": "toys"}
    return {"kind": "webdataset", "root": place, **fields}


def parquet_folder(place: str) -> dict[str, Any]:
    rows = [
        {"image": {"bytes": data, "path": None}, "who": f"thing {i}", "box": box}
        for i, _, data, box in photos()
    ]
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=7)
    card = "---\nlicense: CC BY 4.0\n---\n"
    write(place, {"data/train-00000-of-00001.parquet": sink.getvalue().to_pybytes(), "README.md": card})
    return {"kind": "hf_datasets", "root": place, "instance": "who", "box": "box", "domain": "toys"}


def cars(place: str) -> dict[str, Any]:
    fields = ("relative_im_path", "bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class", "test")
    said = np.empty((1, INSTANCES * IMAGES), [(f, object) for f in fields])
    names = np.empty((1, INSTANCES), object)
    names[0, :] = [f"Make Model Sedan {2000 + i}" for i in range(INSTANCES)]
    for at, (i, _, data, box) in enumerate(photos()):
        path = f"car_ims/{at + 1:06d}.jpg"
        write(place, {path: data})
        said[0, at] = (
            path,
            *(np.uint16(v + first) for v, first in zip(box, (1, 1, 0, 0), strict=True)),
            i + 1,
            0,
        )
    stream = io.BytesIO()
    savemat(stream, {"annotations": said, "class_names": names})
    write(place, {"cars_annos.mat": stream.getvalue()})
    return {"kind": "stanford_cars", "root": place}


def products(place: str) -> dict[str, Any]:
    write(place, {f"train/{i}{n}.jpg": data for i, n, data, _ in photos()})
    said = "".join(f"{i}{n}.jpg,{i},{i // 2}\n" for i, n, _, _ in photos())
    write(place, {"train.csv": "name,class,group\n" + said, "train/broken.jpg": b"\xff\xd8\xff broken"})
    return {"kind": "products10k", "root": place}


@pytest.mark.ray
def test_shards_parquet_and_cars_of_the_same_photos_make_the_same_pairs(
    tmp_path: Path, ray_session: None
) -> None:
    versions = [
        made(collection(str(tmp_path / collection.__name__)), str(tmp_path / "root"))
        for collection in (shards, parquet_folder, cars)
    ]
    counts = []
    for version in versions:
        queries = version.table("quadruples").to_pylist()
        assert {q["split"] for q in queries} == {"train", "dev", "test"}
        images = {r["image_id"]: r for r in version.table("images").to_pylist()}
        assert all(q["reference_id"] in images and set(q["target_ids"]) <= images.keys() for q in queries)
        data = {storage.read_bytes(r["uri"]) for r in images.values()}
        assert data <= {photo for _, _, photo, _ in photos()}
        assert len(data) == len(images)
        counts.append((len(version.table("pairs")), version.manifest.accounts["collect"][0].kept))
    assert counts == [(INSTANCES * IMAGES * (IMAGES - 1), INSTANCES * IMAGES)] * 3
    boxes = [
        sorted(
            (r["instance_id"].split("/")[1][-1], tuple(r["box"])) for r in v.table("instances").to_pylist()
        )
        for v in versions
    ]
    assert boxes[0] == boxes[1] == boxes[2]
    licences = [{r["licence"] for r in v.table("images").to_pylist()} for v in versions]
    assert licences == [{"CC BY 4.0"}, {"CC BY 4.0"}, {None}]
    assert len(versions[1].manifest.parents["hf_datasets"]) == 64
    assert [v.manifest.parents for v in (versions[0], versions[2])] == [{}, {}]


@pytest.mark.ray
def test_products_without_boxes_go_as_far_as_pairs_and_say_why(tmp_path: Path, ray_session: None) -> None:
    version = made(products(str(tmp_path / "products")), str(tmp_path / "root"))
    assert len(version.table("pairs")) == INSTANCES * IMAGES * (IMAGES - 1)
    assert len(version.table("quadruples")) == 0
    assert {r["reason"] for r in version.table("rejects").to_pylist()} == {"no_identity", "no_box"}
    assert version.manifest.accounts["listing"][0].rejected == {"no_identity": 1}


@pytest.mark.slow
@pytest.mark.ray
def test_shards_and_parquet_files_on_s3_make_what_local_ones_make(tmp_path: Path, s3_bucket: str) -> None:
    """In a process of its own, so that its workers know the endpoint."""
    asked = []
    for place in (str(tmp_path), f"{s3_bucket}/{tmp_path.name}"):
        for collection in (shards, parquet_folder):
            chosen = recipe(collection(f"{place}/{collection.__name__}"))
            asked.append({"recipe": chosen.model_dump(mode="json"), "root": f"{place}/root"})
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, json.dumps(asked)],
        env=os.environ | {"RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    local, local_parquet, remote, remote_parquet = json.loads(done.stdout)
    assert remote == local
    assert remote_parquet == local_parquet
    assert local["queries"] == local_parquet["queries"] > 0


@pytest.mark.ray
def test_a_plan_of_a_parquet_folder_unpacks_nothing(tmp_path: Path, ray_session: None) -> None:
    source = parquet_folder(str(tmp_path / "in"))
    outcome = build(recipe(source), Context(root=str(tmp_path / "root"), dry_run=True))
    assert outcome.figures["images"] == {"toys": INSTANCES * IMAGES}
    assert not (tmp_path / "root").exists()
