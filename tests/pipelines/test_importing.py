"""Imports from end to end: images opened, boxes turned, masks and parts made, and every record accounted for."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_release import image_bytes, write_images, write_json, write_mask

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import load_recipe
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.gallery import gallery_hash
from pipelines.images import ImageRejected
from pipelines.importing import ImportRecipe, import_release
from pipelines.records import REASONS
from pipelines.retrieval.inputs import load_tasks
from pipelines.sources.released.cor127k import COLUMNS
from pipelines.sources.released.opening import cropped
from pipelines.verify import VerifyRecipe, verify

SHIPPED = sorted((Path(__file__).parents[2] / "pipelines/recipes").glob("import_*.yaml"))


def recipe(**release: Any) -> ImportRecipe:
    options = {"images_per_part": 16, "workers": 1}
    return ImportRecipe.model_validate(options | {"release": release})


def run(chosen: ImportRecipe, root: Path) -> tuple[Outcome, Version]:
    outcome = import_release(chosen, Context(root=str(root)))
    assert outcome.location is not None
    return outcome, open_version(outcome.location)


def rejects(version: Version, entity: str) -> dict[str, str]:
    rows = version.table("rejects").to_pylist()
    assert all(r["reason"] in REASONS and r["stage"] == "import" for r in rows)
    return {r["key"]: r["reason"] for r in rows if r["entity"] == entity}


def whole(version: Version) -> None:
    """Files, accounts, rejects, content hash and galleries are as the manifest states."""
    outcome = verify(VerifyRecipe(dataset=version.url), Context(root="unused"))
    assert outcome.refused is None, outcome.details


@pytest.mark.parametrize("path", SHIPPED, ids=lambda p: p.stem)
def test_shipped_recipes_load(path: Path) -> None:
    assert load_recipe(ImportRecipe, str(path)).release.kind == path.stem.removeprefix("import_")


def test_every_kind_has_a_recipe() -> None:
    kinds = {"oacirr", "cirr", "fashioniq", "circo", "genecis", "lasco", "cor127k"}
    assert {p.stem.removeprefix("import_") for p in SHIPPED} == kinds


@pytest.mark.ray
def test_real_queries_whose_images_are_not_all_there_are_refused(
    shared_dir: Path, tmp_path: Path, ray_session: None
) -> None:
    source = shared_dir / "data/annotations/cirr"
    names = json.loads((source / "image_splits/split.rc2.val.json").read_text())
    records = json.loads((source / "captions/cap.rc2.val.json").read_text())
    # stand-ins for the images of the first forty pairs; of the other 2,000 there is no file
    asked = records[:40]
    there = sorted({i for r in asked for i in (*r["img_set"]["members"], *r["target_soft"])})
    write_images(tmp_path / "images", [names[i] for i in there])
    broken = asked[0]["img_set"]["members"][2]
    (tmp_path / "images" / names[broken]).write_bytes(b"\xff\xd8\xff broken")
    chosen = recipe(kind="cirr", source=str(source), images=str(tmp_path / "images"), splits=["val"])
    outcome, version = run(chosen, tmp_path / "root")
    whole(version)
    usable = set(there) - {broken}

    def needed(r: dict[str, Any]) -> set[str]:
        soft = {i for i, score in r["target_soft"].items() if score > 0}
        return {r["reference"], r["target_hard"], *r["img_set"]["members"], *soft}

    kept = {f"cirr/val/{r['pairid']}" for r in records if needed(r) <= usable}
    assert len(kept) >= 30
    assert {q["query_id"] for q in version.table("quadruples").to_pylist()} == kept
    lost = rejects(version, "quadruples")
    assert set(lost.values()) == {"missing_image"}
    assert len(lost) == 4181 - len(kept)
    refused = rejects(version, "images")
    assert sum(reason == "missing_file" for reason in refused.values()) == 2297 - len(there)
    assert refused[f"cirr/{names[broken][2:]}"] in ("truncated", "corrupt")
    accounts = {a.entity: a for a in version.manifest.accounts["import"]}
    assert (accounts["images"].taken_in, accounts["images"].kept) == (2297, len(usable))
    assert (accounts["quadruples"].taken_in, accounts["quadruples"].kept) == (4181, len(kept))
    gallery = {r["image_id"] for r in version.table("gallery").to_pylist()}
    assert gallery == {f"cirr/{names[i][2:]}" for i in usable}
    figures = version.manifest.figures
    assert figures["galleries"]["cirr/test"]["sha256"] == gallery_hash(gallery)
    assert figures["galleries"]["cirr/test"]["named"] == 2297
    assert any("lacks" in note and "2,297 images" in note for note in figures["notes"])
    assert all(
        r["licence"] is None and "NLVR2" in r["attribution"] for r in version.table("images").to_pylist()
    )
    (task,) = load_tasks(version, "test")
    assert {(anchor.box, anchor.mask) for anchor in task.queries.anchors} == {(None, None)}
    assert not task.queries.reference_kept
    assert "nothing to do" in import_release(chosen, Context(root=str(tmp_path / "root"))).message
    assert outcome.figures["accounts"]["import"][0]["entity"] == "images"


def write_oacirr(root: Path, orientation: int = 6) -> None:
    """One domain. c0 is stored 40 x 20 and turned; d0 is no image; the box of e0 lies outside."""
    folder = "OACIRR-Subset/OACIRR-Car"
    names = {f"{i}{n}": f"val/{i}/{i}{n}.jpg" for i in "cdefz" for n in (0, 1)}
    boxes = {"c0": [4, 2, 14, 8], "e0": [100, 100, 120, 120]}
    records = [
        {"reference": f"{i}0", "target": f"{i}1", "modification_text_mllm": "on a beach", "object_category": "car",
         "reference_bounding_box": boxes.get(f"{i}0", [0, 0, 8, 8])}
        for i in "cdef"
    ]  # fmt: skip
    write_json(root, f"{folder}/oacirr-car/quadruple_captions/caption_full.val.json", records)
    write_json(root, f"{folder}/oacirr-car/image_splits/split.val.json", names)
    write_json(root, f"{folder}/oacirr-car/image_bounding_box/bounding_box.val.json", boxes)
    write_images(root / folder, list(names.values()))
    (root / folder / names["c0"]).write_bytes(image_bytes(500, (40, 20), orientation))
    (root / folder / names["d0"]).write_bytes(b"no image")


@pytest.mark.ray
def test_boxes_are_turned_with_their_image_and_those_outside_refused(
    tmp_path: Path, ray_session: None
) -> None:
    write_oacirr(tmp_path / "in")
    _, version = run(recipe(kind="oacirr", source=str(tmp_path / "in"), train="none"), tmp_path / "root")
    whole(version)
    images = {r["image_id"]: r for r in version.table("images").to_pylist()}
    turned = images["car/val/c/c0.jpg"]
    assert (turned["width"], turned["height"]) == (20, 40)
    queries = {q["query_id"]: q for q in version.table("quadruples").to_pylist()}
    # a quarter turn to the right: x' = 20 - y, y' = x
    assert queries["car/test/000000"]["reference_box"] == [12, 4, 18, 14]
    boxes = {r["image_id"]: r["box"] for r in version.table("instances").to_pylist()}
    assert boxes["car/val/c/c0.jpg"] == [12, 4, 18, 14]
    assert rejects(version, "quadruples") == {"car/test/000001": "missing_image", "car/test/000002": "no_box"}
    assert rejects(version, "images") == {"car/val/d/d0.jpg": "not_an_image"}
    gallery = {r["image_id"]: r for r in version.table("gallery").to_pylist()}
    asked = {i for q in queries.values() for i in (q["reference_id"], *q["target_ids"])}
    # all images of the split that can be read; who is in no query that was taken is a distractor
    assert set(gallery) == {f"car/val/{i}/{i}{n}.jpg" for i in "cdefz" for n in (0, 1)} - {"car/val/d/d0.jpg"}
    assert {i for i, row in gallery.items() if not row["is_distractor"]} == asked
    assert images["car/val/z/z0.jpg"]["split"] == "reserve"
    assert turned["licence"] == "CC BY 4.0"


@pytest.mark.ray
def test_parts_workers_and_an_interruption_change_nothing(tmp_path: Path, ray_session: None) -> None:
    write_oacirr(tmp_path / "in")
    chosen = recipe(kind="oacirr", source=str(tmp_path / "in"), train="none")
    _, first = run(chosen, tmp_path / "a")
    _, small = run(chosen.model_copy(update={"images_per_part": 2, "workers": 2}), tmp_path / "b")
    assert small.manifest.content_hash == first.manifest.content_hash
    assert small.manifest.key == first.manifest.key
    # as if killed after some parts: no manifest, one part's record gone
    url = Path(small.url)
    (url / "manifest.json").unlink()
    (url / "_accounts/open/part-00001.json").unlink()
    before = (url / "_work/images/opened/part-00000.parquet").stat().st_mtime_ns
    _, again = run(chosen, tmp_path / "b")
    assert again.manifest.content_hash == first.manifest.content_hash
    assert (url / "_work/images/opened/part-00000.parquet").stat().st_mtime_ns == before


@pytest.mark.ray
def test_masks_give_boxes_and_what_is_no_mask_is_refused(tmp_path: Path, ray_session: None) -> None:
    rows = []
    size = (32, 24)
    for n in range(4):
        write_images(tmp_path / "dataset/Test_1/image", [f"q{n}.jpg", f"s{n}.jpg"], size)
        write_mask(tmp_path, f"dataset/Test_1/mask/sup/s{n}.png", size, (4, 5, 10, 9))
        write_mask(tmp_path, f"dataset/Test_1/mask/1q0n/q{n}.png", size, (0, 0, 3, 3))
        rows.append(f"{n},0,Test_1,1q0n,q{n}.jpg,q{n}.png,s{n}.jpg,s{n}.png,the red one")
    write_mask(tmp_path, "dataset/Test_1/mask/1q0n/q1.png", size, None)  # nothing of the scene is sought
    write_mask(tmp_path, "dataset/Test_1/mask/sup/s2.png", size, None)
    write_mask(tmp_path, "dataset/Test_1/mask/1q0n/q3.png", (9, 9), (0, 0, 3, 3))
    (tmp_path / "csv_data").mkdir()
    (tmp_path / "csv_data/Test_1.csv").write_text("\n".join([",".join(COLUMNS), *rows]))
    _, version = run(recipe(kind="cor127k", source=str(tmp_path)), tmp_path / "root")
    whole(version)
    queries = {q["query_id"]: q for q in version.table("quadruples").to_pylist()}
    assert sorted(queries) == ["base/Test_1/0", "base/Test_1/1", "base/Test_1/3"]
    query = queries["base/Test_1/0"]
    assert query["reference_box"] == [4, 5, 10, 9]
    data = storage.read_bytes(query["reference_mask_uri"])
    import hashlib

    assert query["reference_mask_sha256"] == hashlib.sha256(data).hexdigest()
    shown = {(r["image_id"], r["instance_id"]): r for r in version.table("instances").to_pylist()}
    sought = shown["base/Test_1/image/q0.jpg", "base/Test_1/0"]
    assert (sought["box"], bool(sought["mask_sha256"])) == ([0, 0, 3, 3], True)
    empty = shown["base/Test_1/image/q1.jpg", "base/Test_1/1"]
    assert (empty["box"], bool(empty["mask_sha256"])) == (None, True)
    assert rejects(version, "quadruples") == {"base/Test_1/2": "bad_mask"}
    assert rejects(version, "instances") == {"base/Test_1/3": "bad_mask"}


def test_a_part_is_widened_and_padded_as_the_authors_do() -> None:
    image = Image.fromarray(np.arange(40 * 60 * 3, dtype=np.uint32).astype(np.uint8).reshape(40, 60, 3))
    # x 20 - 0.7 · 10 = 13 … 13 + 1.7 · 10 = 30; y max(0, 5 - 0.7 · 20) = 0 … 0 + 1.7 · 20 = 34
    part = cropped(image, (20, 5, 10, 20))
    assert part.size == (34, 34)
    left = (34 - 17) // 2
    assert np.array_equal(np.asarray(part)[:, left : left + 17], np.asarray(image)[0:34, 13:30])
    assert not np.asarray(part)[:, :left].any()
    with pytest.raises(ImageRejected, match="nothing of the box"):
        cropped(image, (90, 5, 10, 20))


@pytest.mark.ray
def test_parts_of_images_become_images_of_the_version(tmp_path: Path, ray_session: None) -> None:
    parts = [{"image_id": 7, "instance_bbox": [n, 2, 10, 12]} for n in range(3)]
    record = {"reference": parts[0], "target": parts[1], "gallery": parts[2:], "condition": "red"}
    write_json(tmp_path, "genecis/focus_attribute.json", [record])
    write_images(tmp_path, ["VG_100K/7.jpg"], (60, 40))
    _, version = run(recipe(kind="genecis", source=str(tmp_path)), tmp_path / "root")
    whole(version)
    images = version.table("images").to_pylist()
    assert len(images) == 3
    original = Image.open(tmp_path / "VG_100K/7.jpg")
    for row, part in zip(images, parts, strict=True):
        assert row["uri"].startswith(version.url)
        with Image.open(row["uri"]) as found:
            assert np.array_equal(np.asarray(found), np.asarray(cropped(original, part["instance_bbox"])))
            assert found.size == (row["width"], row["height"])
    assert len(version.table("files")) == 3


@pytest.mark.ray
def test_another_protocol_is_another_benchmark(tmp_path: Path, ray_session: None) -> None:
    pairs = [{"candidate": f"A{n}", "target": f"B{n}", "captions": ["is red", "is long"]} for n in range(4)]
    asins = [a for p in pairs for a in (p["candidate"], p["target"])]
    write_json(tmp_path, "captions/cap.dress.val.json", pairs)
    write_json(tmp_path, "image_splits/split.dress.val.json", asins)
    write_images(tmp_path / "images", [f"{a}.jpg" for a in asins])
    common = {
        "kind": "fashioniq",
        "source": str(tmp_path),
        "categories": ["dress"],
        "licence": "research only",
    }
    kept = run(recipe(**common, protocol="split"), tmp_path / "root")[1]
    removed = run(recipe(**common, protocol="split_without_reference"), tmp_path / "root")[1]
    assert kept.manifest.content_hash != removed.manifest.content_hash
    assert kept.manifest.figures["galleries"] == removed.manifest.figures["galleries"]
    assert [load_tasks(v, "test")[0].queries.reference_kept for v in (kept, removed)] == [True, False]
    for version in (kept, removed):
        whole(version)
    notes = kept.manifest.figures["notes"]
    assert "protocol split:" in notes[0]
    assert any("names no instances" in note for note in notes)
    assert {r["licence"] for r in kept.table("images").to_pylist()} == {"research only"}


@pytest.mark.ray
def test_a_photo_that_is_trained_on_and_ranked_is_said(tmp_path: Path, ray_session: None) -> None:
    for split, letter in (("train", "A"), ("val", "V")):
        pair = {"candidate": f"{letter}0", "target": f"{letter}1", "captions": ["is red", "is long"]}
        write_json(tmp_path, f"captions/cap.dress.{split}.json", [pair])
        write_json(tmp_path, f"image_splits/split.dress.{split}.json", [f"{letter}0", f"{letter}1"])
    write_images(tmp_path / "images", ["A0.jpg", "A1.jpg", "V0.jpg"])
    (tmp_path / "images/V1.jpg").write_bytes((tmp_path / "images/A0.jpg").read_bytes())
    chosen = recipe(kind="fashioniq", source=str(tmp_path), categories=["dress"], protocol="split")
    notes = run(chosen, tmp_path / "root")[1].manifest.figures["notes"]
    assert "1 photos of the test galleries are also trained on (same bytes)" in notes
    # one pair is one group: it stays in training
    assert any(note.startswith("dress has no dev queries") for note in notes)


def test_annotations_without_any_image_are_an_error_in_one_line(tmp_path: Path) -> None:
    write_oacirr(tmp_path / "in")
    chosen = recipe(kind="oacirr", source=str(tmp_path / "in"), images=str(tmp_path), train="none")
    with pytest.raises(
        OacirError, match=r"none of the 10 images .* is there, for example OACIRR-Subset/"
    ) as found:
        import_release(chosen, Context(root=str(tmp_path / "root")))
    assert "set --release.images to their folder" in str(found.value)
    assert "\n" not in str(found.value)
    assert not (tmp_path / "root").exists()


def test_a_dry_run_counts_and_writes_nothing(tmp_path: Path) -> None:
    write_oacirr(tmp_path / "in")
    context = dataclasses.replace(Context(root=str(tmp_path / "root")), dry_run=True)
    outcome = import_release(recipe(kind="oacirr", source=str(tmp_path / "in"), train="none"), context)
    assert outcome.figures == {"queries": {"test": 4}, "images": 10, "present": 10}
    assert not (tmp_path / "root").exists()
