"""Builds over photos without boxes: what the detector finds is used, what it is unsure of waits, upright either way."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from chat_server import chat_server
from labeller import annotation, exported
from PIL import Image, ImageOps
from tiny_detector import save_tiny_detector
from without_ray import run_stages_here

from infra.base.command import Context
from infra.base.config import load_recipe
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.annotators.grounder import Grounder
from pipelines.annotators.people.exporting import ReviewExportRecipe, export
from pipelines.annotators.people.importing import ReviewImportRecipe, import_
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.contents import recompute
from pipelines.earlier import open_earlier
from pipelines.grounding import GroundingOptions, GroundStage
from pipelines.stages import read_parts

LOOSE = {"tau_valid": 3, "tau_high": 0.9999, "tau_centric": 0.9999, "tau_count": 3}
TURNED = 0x0112


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four instances of four photos of 96 x 64 px each; every second one is stored turned."""
    root = tmp_path_factory.mktemp("photos")
    for instance in range(4):
        folder = root / "toys" / f"thing-{instance}"
        folder.mkdir(parents=True)
        for n in range(4):
            rng = np.random.default_rng([instance, n])
            coarse = Image.fromarray(rng.integers(0, 255, (4, 6, 3), dtype=np.uint8))
            image = coarse.resize((96, 64), Image.Resampling.BICUBIC)
            exif = Image.Exif()
            if n % 2:
                image, exif[TURNED] = image.transpose(Image.Transpose.ROTATE_90), 6
            image.save(folder / f"{n}.jpg", quality=95, exif=exif)
    return root


@pytest.fixture(scope="module", autouse=True)
def here() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        run_stages_here(patch)
        yield


def made(photos: Path, root: Path, **options: Any) -> Version:
    tree = {
        "name": "boxes",
        "source": {"kind": "image_folder", "root": str(photos)},
        "thresholds": {"default": LOOSE},
        "split": {"test_share": 0.4, "dev_share": 0.0},
        "images_per_part": 8,
    }
    outcome = build(BuildRecipe.model_validate(tree | options), Context(root=str(root)))
    return open_version(str(outcome.location))


def rows(version: Version, table: str) -> list[dict[str, Any]]:
    parts = len(version.table_files("boxes"))
    return [row for t in read_parts(version.url, table, parts) for row in t.to_pylist()]


@pytest.fixture(scope="module")
def sure(photos: Path, detector: str, tmp_path_factory: pytest.TempPathFactory) -> Version:
    return made(photos, tmp_path_factory.mktemp("sure"), grounding={"model": detector, "min_score": 0.0})


def test_boxes_lie_on_the_upright_photo(sure: Version, photos: Path, detector: str) -> None:
    grounder = Grounder(detector, gpu=False)
    boxes = {row["image_id"]: row for row in rows(sure, "boxes")}
    assert len(boxes) == 16
    for name in ("toys/thing-0/0.jpg", "toys/thing-0/1.jpg"):
        upright = ImageOps.exif_transpose(Image.open(photos / name)).convert("RGB")
        assert upright.size == (96, 64)
        (seen,) = grounder.look_for([upright], ["toys"], [(96, 64)])
        assert seen is not None
        assert boxes[name]["box"] == pytest.approx(seen.box, abs=1.0)
        assert boxes[name]["score"] == pytest.approx(seen.score, abs=1e-4)


def test_found_boxes_are_the_anchors_of_the_queries(sure: Version) -> None:
    boxes = {row["image_id"]: row["box"] for row in rows(sure, "boxes")}
    queries = rows(sure, "quadruples")
    assert len(queries) > 20
    assert all(q["reference_box"] == boxes[q["reference_id"]] for q in queries)
    figures = sure.manifest.figures
    assert figures["grounding"]["found"] == 16
    assert figures["domains"]["toys"]["queries"]["test"] > 0
    assert {a.entity: (a.taken_in, a.kept) for a in sure.manifest.accounts["ground"]} == {"boxes": (16, 16)}
    assert recompute(sure) == sure.manifest.content_hash


def test_without_a_detector_no_such_photo_is_a_reference(photos: Path, tmp_path: Path) -> None:
    version = made(photos, tmp_path)
    assert "grounding" not in version.manifest.figures
    (account,) = version.manifest.accounts["annotate"]
    assert (account.kept, set(account.rejected)) == (0, {"no_box"})


def test_unsure_boxes_wait_for_people_and_the_build_ends_without_them(
    sure: Version, photos: Path, detector: str, tmp_path: Path
) -> None:
    scores = sorted(row["score"] for row in rows(sure, "boxes"))
    between = (scores[7] + scores[8]) / 2
    version = made(photos, tmp_path, grounding={"model": detector, "min_score": between})
    boxes = {row["image_id"]: row for row in rows(version, "boxes")}
    states = {name: row["state"] for name, row in boxes.items()}
    assert sorted(states.values()) == ["found"] * 8 + ["review"] * 8
    assert all((row["score"] >= between) == (row["state"] == "found") for row in boxes.values())
    assert all(states[q["reference_id"]] == "found" for q in rows(version, "quadruples"))
    (account,) = version.manifest.accounts["ground"]
    assert account.rejected == {"box_unsure": 8}
    (asked,) = version.manifest.accounts["annotate"]
    assert asked.rejected["box_unsure"] == sum(
        states[p["reference_id"]] == "review" for p in rows(version, "pairs")
    )
    told = {r["key"]: r["detail"] for r in rows(version, "rejects/ground")}
    assert set(told) == {name for name, state in states.items() if state == "review"}
    assert all("'toys' at" in detail for detail in told.values())


def test_people_write_for_an_unsure_box_on_the_upright_photo(
    sure: Version, photos: Path, detector: str, tmp_path: Path
) -> None:
    scores = sorted(row["score"] for row in rows(sure, "boxes"))
    grounding = {"model": detector, "min_score": (scores[7] + scores[8]) / 2}
    context = Context(root=str(tmp_path))
    boxes = {row["image_id"]: row for row in rows(made(photos, tmp_path, grounding=grounding), "boxes")}
    recipe = ReviewExportRecipe(dataset="boxes", what="refused", reasons=("box_unsure",))
    tasks = json.loads((Path(str(export(recipe, context).location)) / "tasks.json").read_text())
    turned = {n for n in boxes if n.endswith(("1.jpg", "3.jpg"))}
    pairs = {p["pair_id"]: p["reference_id"] for p in rows(sure, "pairs")}
    task = next(t for t in tasks if pairs[t["data"]["pair"]] in turned)
    picture = Image.open(io.BytesIO(base64.b64decode(task["data"]["reference"].split(",")[1])))
    assert picture.size == (96, 64)
    [shown] = task["predictions"][0]["result"]
    x1, y1, x2, y2 = boxes[pairs[task["data"]["pair"]]]["box"]
    value = shown["value"]
    assert (value["x"] * 0.96, value["y"] * 0.64) == pytest.approx((x1, y1))
    assert (value["width"] * 0.96, value["height"] * 0.64) == pytest.approx((x2 - x1, y2 - y1))
    said = annotation(task, "edit", box={"x": 25.0, "y": 50.0, "width": 50.0, "height": 25.0})
    text = {"text": ["Show it in the rain"]}
    said["result"].append({"type": "textarea", "from_name": "text", "to_name": "reference", "value": text})
    (tmp_path / "said.json").write_text(json.dumps([exported(task, said)]))
    import_(ReviewImportRecipe(file=str(tmp_path / "said.json")), context)
    version = made(photos, tmp_path, grounding=grounding, people={})
    [query] = [q for q in rows(version, "quadruples") if q["query_id"] == task["data"]["pair"]]
    assert query["reference_box"] == [24.0, 32.0, 72.0, 48.0]
    assert query["provenance"]["annotator"] == "people"
    assert version.manifest.figures["people"]["pending"] == len(tasks) - 1


def test_boxes_of_the_source_are_never_replaced(photos: Path, detector: str, tmp_path: Path) -> None:
    copied = tmp_path / "photos"
    shutil.copytree(photos, copied)
    lines = [f"toys/thing-0/{n}.jpg,1,2,30,40,hand" for n in range(4)]
    (copied / "boxes.csv").write_text("\n".join(["image_path,x,y,w,h,box_source", *lines]))
    version = made(copied, tmp_path, grounding={"model": detector, "min_score": 0.0})
    assert {row["image_id"] for row in rows(version, "boxes")}.isdisjoint(
        f"toys/thing-0/{n}.jpg" for n in range(4)
    )
    own = [
        q["reference_box"] for q in rows(version, "quadruples") if q["reference_id"] == "toys/thing-0/0.jpg"
    ]
    assert own
    assert own == [[1.0, 2.0, 31.0, 42.0]] * len(own)
    # as long as only some photos have boxes, all pairs count for the split: each photo gets one
    splits = {row["split"] for row in version.table("splits").to_pylist()}
    assert splits == {"train", "test"}


def test_a_chat_model_is_asked_with_the_boxes_that_were_found(
    sure: Version, photos: Path, detector: str, tmp_path: Path
) -> None:
    with chat_server() as server:
        chat = {"base_url": server.url, "model": "m"}
        grounding = {"model": detector, "min_score": 0.0}
        version = made(photos, tmp_path, grounding=grounding, annotator="chat", chat=chat)
    boxes = {row["image_id"]: row["box"] for row in rows(sure, "boxes")}
    queries = rows(version, "quadruples")
    assert len(queries) == len(server.pairs) > 20
    assert all(q["reference_box"] == boxes[q["reference_id"]] for q in queries)
    assert {p.size for r in server.pairs for p in r.pictures} == {(96, 64)}  # upright, too


def test_an_update_looks_at_new_and_changed_photos_alone(
    photos: Path, detector: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[int] = []
    look_for = Grounder.look_for

    def counted(self: Grounder, images: Any, labels: Any, sizes: Any) -> Any:
        looked.append(len(images))
        return look_for(self, images, labels, sizes)

    monkeypatch.setattr(Grounder, "look_for", counted)
    copied = tmp_path / "photos"
    shutil.copytree(photos, copied)
    asked = {"model": detector, "min_score": 0.0, "images_at_once": 1}
    first = made(copied, tmp_path, grounding=asked)
    assert sum(looked) == 16
    (copied / "toys/thing-4").mkdir()
    for n in range(4):
        shutil.copy(copied / f"toys/thing-0/{n}.jpg", copied / f"toys/thing-4/{n}.jpg")
        with Image.open(copied / f"toys/thing-4/{n}.jpg") as image:
            ImageOps.mirror(image).save(copied / f"toys/thing-4/{n}.jpg")
    with Image.open(copied / "toys/thing-0/0.jpg") as image:
        ImageOps.flip(image).save(copied / "toys/thing-0/0.jpg")

    looked.clear()
    second = made(copied, tmp_path, update=first.url, grounding=asked)
    assert sum(looked) == 5
    assert second.manifest.figures["grounding"]["taken_over"] == 15
    whole = made(copied, tmp_path / "whole", grounding=asked)
    assert whole.manifest.figures["grounding"]["taken_over"] == 0
    assert sorted(rows(second, "boxes"), key=str) == sorted(rows(whole, "boxes"), key=str)
    assert second.manifest.figures["taken_over"]["pairs"] == 42  # of 48: six show the photo that changed

    looked.clear()  # another threshold judges the same boxes anew
    scores = sorted(row["score"] for row in rows(first, "boxes"))
    third = made(copied, tmp_path, update=second.url, grounding=asked | {"min_score": scores[8]})
    assert looked == []
    assert third.manifest.figures["grounding"]["review"] >= 8
    # another label is another question, and other bytes are another photo
    recipe = BuildRecipe.model_validate(second.manifest.recipe)
    earlier = open_earlier(str(tmp_path), second.url, recipe)
    photo, listing = rows(second, "images")[0] | {"category": "toys"}, second.table("listing")
    known = [
        GroundStage(GroundingOptions(model=detector, labels=labels), 0.0, earlier)._known(listing, [row])
        for labels, row in (({}, photo), ({"toys": "cup"}, photo), ({}, photo | {"sha256": "0" * 64}))
    ]
    assert [len(found) for found in known] == [1, 0, 0]


def test_a_detector_that_cannot_be_loaded_ends_the_build(photos: Path, tmp_path: Path) -> None:
    with pytest.raises(OacirError, match="cannot be loaded"):
        made(photos, tmp_path, grounding={"model": str(tmp_path / "absent")})


def test_the_key_hangs_on_the_detector_and_its_threshold() -> None:
    def key(*more: tuple[str, str]) -> str:
        return load_recipe(BuildRecipe, "photos", list(more)).key("f")

    plain, grounded = key(), key(("grounding.model", "a"))
    assert plain != grounded
    assert (
        key(("grounding.model", "a"), ("grounding.images_at_once", "1"), ("grounding.gpus", "1")) == grounded
    )
    assert key(("grounding.model", "a"), ("grounding.min_score", "0.4")) != grounded
