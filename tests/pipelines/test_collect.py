from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.base import storage
from infra.base.errors import OacirError
from pipelines import collect as collecting
from pipelines.collect import CollectStage, expected_parts, part_images, write_listing
from pipelines.images import ImageLimits
from pipelines.records import REASONS, TABLES
from pipelines.sources.image_folder import ImageFolder, ImageFolderConfig
from pipelines.stages import Part, StageResult, part_path


class Rows:
    """A source of given rows, in pieces of three."""

    name = "rows"

    def __init__(self, keys: list[tuple[str, str, str]], refused: list[str] = []) -> None:  # noqa: B006 - read only
        self.keys, self.refused = keys, refused

    def listing(self) -> Iterator[pa.Table]:
        rows = [
            {
                "image_id": image,
                "domain": domain,
                "instance_id": instance,
                "category": "c",
                "uri": image,
                "size_bytes": 7,
                "mark": "",
            }
            for domain, instance, image in self.keys
        ]
        for start in range(0, len(rows), 3):
            yield pa.Table.from_pylist(rows[start : start + 3], TABLES["listing"])

    def rejects(self) -> Iterator[dict[str, Any]]:
        for key in self.refused:
            yield {"stage": "collect", "entity": "images", "key": key, "reason": "not_a_file", "detail": "d"}

    def fingerprint(self) -> str:
        return "f"


def keys(sizes: dict[str, int]) -> list[tuple[str, str, str]]:
    return [("d", f"d/{name}", f"d/{name}/{n}") for name, size in sizes.items() for n in range(size)]


def test_parts_are_runs_of_whole_instances(tmp_path: Path) -> None:
    listed = write_listing(Rows(keys({"a": 2, "b": 5, "c": 1, "d": 4}), ["d/x.jpg"]), str(tmp_path), 4)
    parts = [
        storage.read_table(str(tmp_path / part_path("listing", n)))["instance_id"].to_pylist()
        for n in range(listed.parts)
    ]
    assert parts == [["d/a"] * 2 + ["d/b"] * 5, ["d/c"] + ["d/d"] * 4]
    assert (listed.images, listed.instances, listed.size_bytes) == (12, 4, 84)
    (account,) = listed.accounts()
    assert (account.check().taken_in, account.kept, account.rejected) == (13, 12, {"not_a_file": 1})


def test_parts_grow_with_the_collection(tmp_path: Path) -> None:
    listed = write_listing(Rows(keys({f"{n:03}": 1 for n in range(200)})), str(tmp_path), 2)
    sizes = [
        storage.read_table(str(tmp_path / part_path("listing", n))).num_rows for n in range(listed.parts)
    ]
    # 2 each until 96 are listed, then 96 // 32 = 3 each until 129, then 4 until 161, then 5, then the rest
    assert sizes == [2] * 48 + [3] * 11 + [4] * 8 + [5] * 7 + [4]
    assert expected_parts(200, 2) == len(sizes)


def test_grown_parts_have_a_bound_and_larger_ones_are_not_cut() -> None:
    assert [part_images(256, before) for before in (0, 8191, 16_384, 10**9)] == [256, 256, 512, 1024]
    assert part_images(20_000, 10**9) == 20_000


def test_listing_is_written_once_and_keeps_its_parts(tmp_path: Path) -> None:
    source = Rows(keys({"a": 3, "b": 3, "c": 3}))
    first = write_listing(source, str(tmp_path), 3)
    assert (first.parts, write_listing(source, str(tmp_path), 100)) == (3, first)


def test_a_listing_that_was_begun_keeps_its_cut(tmp_path: Path) -> None:
    source = Rows(keys({"a": 3, "b": 3, "c": 3}))
    first = write_listing(source, str(tmp_path), 3)
    (
        tmp_path / "_work/listed.json"
    ).unlink()  # as where a build was killed, or another one lists at this moment
    again = write_listing(source, str(tmp_path), 100)
    assert (again.parts, again.files) == (3, first.files)


def test_listing_hash_does_not_depend_on_the_parts(tmp_path: Path) -> None:
    source = Rows(keys({"a": 3, "b": 3, "c": 3}))
    few, many = (write_listing(source, str(tmp_path / str(n)), n) for n in (100, 1))
    assert (few.parts, many.parts) == (1, 3)
    assert few.hashes == many.hashes


@pytest.mark.parametrize(
    "wrong",
    [keys({"b": 1, "a": 1}), [*keys({"a": 1}), *keys({"a": 1})], [("d", "d/a", "2"), ("d", "d/a", "1")]],
)
def test_a_listing_out_of_order_is_refused(tmp_path: Path, wrong: list[tuple[str, str, str]]) -> None:
    with pytest.raises(OacirError, match="twice or out of order"):
        write_listing(Rows(wrong), str(tmp_path), 4)


def test_a_source_without_images_is_refused(tmp_path: Path) -> None:
    with pytest.raises(OacirError, match=r"holds no image; refused: \{'not_a_file': 1\}; check source.root"):
        write_listing(Rows([], ["d/x.jpg"]), str(tmp_path), 4)


def test_many_refused_entries_are_written_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = Rows(keys({"a": 1}), [f"d/{n}.jpg" for n in range(5)])
    whole = write_listing(source, str(tmp_path / "whole"), 4)
    monkeypatch.setattr(collecting, "REJECTS_AT_ONCE", 2)
    pieces = write_listing(source, str(tmp_path / "pieces"), 4)
    assert pieces.hashes == whole.hashes
    assert pieces.refused == whole.refused == {"not_a_file": 5}
    assert storage.read_table(f"{tmp_path}/pieces/rejects/listing/part-00000.parquet").num_rows == 5


def collect(root: Path, limits: ImageLimits | None = None) -> StageResult:
    stage = CollectStage(limits or ImageLimits(), None)
    stage.setup()
    listing = pa.concat_tables(ImageFolder(ImageFolderConfig(root=str(root))).listing())
    return stage(Part(0, {"listing": listing}))


def test_what_is_found_in_an_image(tmp_path: Path, photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=1, images=2)
    result = collect(root)
    path = root / "toys" / "thing-00" / "1.jpg"
    (row,) = [r for r in result.tables["_work/images/collected"].to_pylist() if r["uri"] == str(path)]
    assert row["image_id"] == "toys/thing-00/1.jpg"
    assert (row["width"], row["height"], row["split"]) == (64, 64, None)
    assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert result.tables["instances"]["box"].to_pylist() == [[8, 8, 28, 24], [8, 8, 32, 24]]
    vectors = np.stack(result.tables["descriptors"]["descriptor"].to_numpy())
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert result.tables["measures"]["aspect"].to_pylist() == [1.0, 1.0]
    ids = [t["image_id"].to_pylist() for n, t in result.tables.items() if not n.startswith("rejects")]
    assert all(i == ids[0] for i in ids)


def test_boxes_turn_with_the_image_and_measures_see_them_at_the_decoded_size(tmp_path: Path) -> None:
    # stored 400 x 300 with orientation 6 (turn by 90° clockwise): upright 300 x 400
    folder = tmp_path / "d" / "i"
    folder.mkdir(parents=True)
    stored = Image.new("RGB", (1200, 900), "green")
    stored.paste((255, 0, 0), (0, 0, 1200, 800))  # the box: all but the lowest ninth, which is green
    exif = Image.Exif()
    exif[0x0112] = 6
    stored.save(folder / "a.jpg", exif=exif)
    (tmp_path / "boxes.csv").write_text("image_path,x,y,w,h\nd/i/a.jpg,0,0,1200,800\n")
    tables = collect(tmp_path).tables
    (image,) = tables["_work/images/collected"].to_pylist()
    assert (image["width"], image["height"]) == (900, 1200)
    assert tables["instances"]["box"].to_pylist() == [[100, 0, 900, 1200]]
    assert tables["measures"]["background"].to_pylist() == ["green"]


def test_a_box_outside_its_image_is_counted_with_a_reason_and_the_image_is_kept(photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=1, images=3)
    (root / "boxes.csv").write_text(
        "image_path,x,y,w,h\ntoys/thing-00/0.jpg,8,8,20,16\ntoys/thing-00/1.jpg,64,0,9,9\n"
    )
    result = collect(root)
    images, boxes, _ = (a.check() for a in result.accounts)
    assert (images.taken_in, images.kept, images.rejected) == (3, 3, {})
    assert (boxes.entity, boxes.taken_in, boxes.kept, boxes.rejected) == ("boxes", 2, 1, {"box_outside": 1})
    assert result.tables["instances"]["box"].to_pylist() == [[8, 8, 28, 24], None, None]
    (row,) = result.tables["rejects/collect"].to_pylist()
    assert (row["entity"], row["key"], row["reason"]) == ("boxes", "toys/thing-00/1.jpg", "box_outside")
    assert row["detail"] == "box 64, 0, 73, 9 of an image of 64 x 64 px as stored"
    assert row["reason"] in REASONS


def mask_file(path: Path, inside: tuple[int, int, int, int] | None, size: tuple[int, int] = (64, 64)) -> None:
    """A PNG of (width, height), 255 in the box x1, y1, x2, y2."""
    path.parent.mkdir(parents=True, exist_ok=True)
    mask = Image.new("L", size)
    if inside:
        mask.paste(255, inside)
    mask.save(path)


def test_a_mask_is_kept_gives_a_box_where_there_is_none_and_is_refused_where_it_is_broken(
    photo_folder: Any,
) -> None:
    root = photo_folder(domains=("toys",), instances=1, images=6)
    boxes = (root / "boxes.csv").read_text().splitlines()
    (root / "boxes.csv").write_text("\n".join([boxes[0], boxes[1], boxes[6]]) + "\n")  # of 0.jpg and 5.jpg
    folder = root / "masks/toys/thing-00"
    mask_file(folder / "0.png", (30, 40, 50, 60))
    mask_file(folder / "1.png", (30, 40, 50, 60))
    mask_file(folder / "2.png", None)
    mask_file(folder / "3.png", (1, 1, 2, 2), size=(32, 64))
    (folder / "4.png").write_bytes(b"\x89PNG\r\n\x1a\nand no more")
    result = collect(root)
    rows = {Path(r["image_id"]).name: r for r in result.tables["instances"].to_pylist()}
    assert {name: r["box"] for name, r in rows.items()} == {
        "0.jpg": [8, 8, 28, 24],  # its own
        "1.jpg": [30, 40, 50, 60],  # of its mask
        "2.jpg": None,
        "5.jpg": [8, 8, 48, 24],
    }
    assert rows["0.jpg"]["mask_uri"] == str(folder / "0.png")
    assert rows["0.jpg"]["mask_sha256"] == hashlib.sha256((folder / "0.png").read_bytes()).hexdigest()
    assert [rows[n]["mask_uri"] for n in ("2.jpg", "5.jpg")] == [None, None]
    assert [rows[n]["mask_sha256"] for n in ("2.jpg", "5.jpg")] == [None, None]
    refused = {Path(r["key"]).name: r for r in result.tables["rejects/collect"].to_pylist()}
    assert {name: r["reason"] for name, r in refused.items()} == {"3.jpg": "bad_mask", "4.jpg": "bad_mask"}
    assert refused["3.jpg"]["detail"].endswith("3.png: the mask has 32 x 64 px, its upright image 64 x 64")
    assert "cannot be decoded" in refused["4.jpg"]["detail"]
    assert all("\n" not in r["detail"] for r in refused.values())
    images = next(a.check() for a in result.accounts if a.entity == "images")
    assert (images.taken_in, images.kept, images.rejected) == (6, 4, {"bad_mask": 2})
    assert (result.counts["toys"]["masks kept"], result.counts["toys"]["masks empty"]) == (2, 1)


def test_a_mask_that_is_gone_is_refused(photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=1, images=1)
    mask_file(root / "masks/toys/thing-00/0.png", (0, 0, 9, 9))
    listing = pa.concat_tables(ImageFolder(ImageFolderConfig(root=str(root))).listing())
    (root / "masks/toys/thing-00/0.png").unlink()
    stage = CollectStage(ImageLimits(), None)
    stage.setup()
    (reject, _) = stage(Part(0, {"listing": listing})).tables["rejects/collect"].to_pylist()
    assert (reject["reason"], reject["key"]) == ("bad_mask", "toys/thing-00/0.jpg")


def test_a_mask_has_the_size_of_the_upright_image(tmp_path: Path) -> None:
    folder = tmp_path / "d" / "i"
    folder.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (1200, 900)).save(folder / "a.jpg", exif=exif)
    mask_file(tmp_path / "masks/d/i/a.png", (100, 200, 300, 400), size=(900, 1200))
    assert collect(tmp_path).tables["instances"]["box"].to_pylist() == [[100, 200, 300, 400]]


def test_the_masks_of_the_video_frames_are_as_their_boxes_say(shared_dir: Path) -> None:
    photos = ImageFolder(ImageFolderConfig(root=str(shared_dir / "data" / "photos"), domains=["video"]))
    table = pa.concat_tables(photos.listing())
    place = table.schema.get_field_index("box")
    unboxed = table.set_column(
        place, table.schema.field("box"), pa.nulls(len(table), table.schema.types[place])
    )
    stage = CollectStage(ImageLimits(), None)
    stage.setup()
    found = stage(Part(0, {"listing": unboxed})).tables["instances"].to_pylist()
    stated = {r["image_id"]: r["box"] for r in table.to_pylist()}
    assert len(found) == 140
    # the boxes were measured on larger originals, of which a thin strand may be lost in the smaller mask
    error = np.array([r["box"] for r in found]) - np.array([stated[r["image_id"]] for r in found])
    assert np.mean(np.abs(error) < 1) > 0.95
    assert np.abs(error).max() < 5
    assert all(r["mask_sha256"] for r in found)


def test_second_copy_within_an_instance_is_rejected_in_another_instance_kept(photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=2, images=2)
    data = (root / "toys/thing-00/0.jpg").read_bytes()
    (root / "toys/thing-00/copy.jpg").write_bytes(data)
    (root / "toys/thing-01/copy.jpg").write_bytes(data)
    result = collect(root)
    (reject,) = result.tables["rejects/collect"].to_pylist()
    assert (reject["key"], reject["reason"]) == ("toys/thing-00/copy.jpg", "duplicate_content")
    assert reject["detail"] == "same bytes as toys/thing-00/0.jpg"
    assert "toys/thing-01/copy.jpg" in result.tables["instances"]["image_id"].to_pylist()


def test_an_instance_without_a_readable_image_is_rejected_too(photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=1, images=2)
    (root / "toys/broken").mkdir()
    (root / "toys/broken/a.jpg").write_bytes(b"no image")
    (root / "toys/gone").mkdir()
    (root / "toys/gone/a.jpg").write_bytes(b"gone before it is read")
    listing = pa.concat_tables(ImageFolder(ImageFolderConfig(root=str(root))).listing())
    (root / "toys/gone/a.jpg").unlink()
    stage = CollectStage(ImageLimits(), None)
    stage.setup()
    result = stage(Part(0, {"listing": listing}))
    rejects = {r["key"]: r["reason"] for r in result.tables["rejects/collect"].to_pylist()}
    assert rejects == {
        "toys/broken/a.jpg": "not_an_image",
        "toys/gone/a.jpg": "unreadable",
        "toys/broken": "too_few_images",
        "toys/gone": "too_few_images",
    }
    images, _, instances = (a.check() for a in result.accounts)
    assert (images.taken_in, images.kept) == (4, 2)
    assert (instances.taken_in, instances.kept, instances.rejected) == (3, 1, {"too_few_images": 2})


def test_a_part_without_one_readable_image_gives_empty_tables(tmp_path: Path) -> None:
    (tmp_path / "d/i").mkdir(parents=True)
    (tmp_path / "d/i/a.jpg").write_bytes(b"")
    result = collect(tmp_path)
    assert [len(result.tables[n]) for n in ("_work/images/collected", "descriptors", "measures")] == [0, 0, 0]


def test_every_nasty_file_is_taken_or_refused_with_a_reason(shared_dir: Path, tmp_path: Path) -> None:
    nasty = shared_dir / "data" / "nasty"
    expected = json.loads((nasty / "expected.json").read_text())["files"]
    shutil.copytree(nasty, tmp_path / "d" / "nasty")
    source = ImageFolder(ImageFolderConfig(root=str(tmp_path)))
    result = collect(tmp_path)
    kept = {
        Path(r["image_id"]).name: (r["width"], r["height"])
        for r in result.tables["_work/images/collected"].to_pylist()
    }
    refused = {
        Path(r["key"]).name: r["reason"]
        for r in [*source.rejects(), *result.tables["rejects/collect"].to_pylist()]
        if r["entity"] == "images"
    }
    assert refused.pop("expected.json") == "unsupported_format"
    assert kept.keys() | refused.keys() == expected.keys()
    assert not kept.keys() & refused.keys()
    assert set(refused.values()) <= REASONS
    for name, what in expected.items():
        if what["action"] == "load" and name in kept:
            assert kept[name] == (what["width"], what["height"]), name
        elif what["action"] == "load":
            assert refused[name] == what.get("may_reject", "duplicate_content"), name
        elif what["action"] == "reject":
            assert refused[name] == what["reason"], name
