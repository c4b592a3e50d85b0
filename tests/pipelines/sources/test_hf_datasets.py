from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
from photo_sources import picture, reasons, refused, rows, write

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.ray_session import connect
from pipelines.sources import hf_rows
from pipelines.sources.hf_datasets import HuggingFace
from pipelines.sources.hf_rows import HuggingFaceConfig, scan_arrow

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
FEATURES = {
    "image": {"_type": "Image"},
    "who": {"names": ["mug", "red/blue bear", "cup"], "_type": "ClassLabel"},
    "objects": {"bbox": {"feature": {"dtype": "float32", "_type": "Value"}, "_type": "Sequence"}},
    "credit": {"dtype": "string", "_type": "Value"},
}
SCHEMA = pa.schema(
    [
        ("image", IMAGE),
        ("who", pa.int64()),
        ("objects", pa.struct([("bbox", pa.list_(pa.float32()))])),
        ("credit", pa.string()),
    ],
    metadata={"huggingface": json.dumps({"info": {"features": FEATURES}})},
)
FIELDS: dict[str, Any] = {
    "instance": "who",
    "domain": "things",
    "box": "objects.bbox",
    "box_format": "xywh",
    "attribution": "credit",
}
STATE = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_fingerprint": "0", "_split": "train"}


def row(number: int, who: int | None, **more: Any) -> dict[str, Any]:
    given = {
        "image": {"bytes": picture(number), "path": f"{number}.jpg"},
        "who": who,
        "objects": None,
        "credit": None,
    }
    return given | more


def arrow(table: list[dict[str, Any]], batch: int = 2, schema: pa.Schema = SCHEMA, **options: Any) -> bytes:
    """An Arrow stream as `datasets` writes it: record batches of some rows."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(pa.Table.from_pylist(table, schema), max_chunksize=batch)
    return sink.getvalue().to_pybytes()


def parquet(table: list[dict[str, Any]], schema: pa.Schema = SCHEMA) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist(table, schema), sink, row_group_size=2)
    return sink.getvalue().to_pybytes()


def saved(table: list[dict[str, Any]], folder: str = "", **info: Any) -> dict[str, bytes | str]:
    """What `Dataset.save_to_disk` leaves."""
    return {
        f"{folder}data-00000-of-00001.arrow": arrow(table),
        f"{folder}state.json": json.dumps(STATE),
        f"{folder}dataset_info.json": json.dumps({"features": FEATURES} | info),
    }


def source(root: str | Path, store: Path, **options: Any) -> HuggingFace:
    config = HuggingFaceConfig(root=str(root), **(FIELDS | options))
    return HuggingFace(config, str(store), workers=1)


ROWS = [
    row(1, 0, objects={"bbox": [1.0, 2.0, 30.0, 40.0]}, credit=" Zoë "),
    row(2, 1),
    row(3, 0, image={"bytes": picture(3), "path": None}),
    row(4, 2, objects={"bbox": None}),
    row(5, 1),
]
LISTED = [
    ("things/cup", 4, None),
    ("things/mug", 1, [1.0, 2.0, 31.0, 42.0]),
    ("things/mug", 3, None),
    ("things/red%2Fblue bear", 2, None),
    ("things/red%2Fblue bear", 5, None),
]


def seen(found: list[dict[str, Any]]) -> list[tuple[Any, ...]]:
    """Instance, box, and which picture its bytes are."""
    numbers = {picture(n): n for n in range(30)}
    return [(r["instance_id"], numbers[storage.read_bytes(r["uri"])], r["box"]) for r in found]


def test_a_saved_data_set_is_read_in_place(place: str, tmp_path: Path) -> None:
    write(place, saved(ROWS, license="cc-by-4.0"))
    found = rows(listed := source(place, tmp_path / "store"))
    assert seen(found) == LISTED
    assert [r["image_id"] for r in found][:2] == [
        "things/data-00000-of-00001/00000003",
        "things/data-00000-of-00001/00000000",
    ]
    assert all(r["uri"].startswith(f"{place}/data-00000-of-00001.arrow#bytes=") for r in found)
    assert {(r["licence"], r["category"], r["domain"]) for r in found} == {("cc-by-4.0", "things", "things")}
    assert [r["attribution"] for r in found] == [None, "Zoë", None, None, None]
    assert refused(listed) == {}
    assert not (tmp_path / "store").exists()


def test_the_splits_of_a_saved_dict(tmp_path: Path) -> None:
    write(str(tmp_path), {"dataset_dict.json": '{"splits": ["train", "test"]}'})
    write(str(tmp_path), saved(ROWS[:2], "train/") | saved(ROWS[2:], "test/"))
    found = rows(source(tmp_path, tmp_path))
    assert sorted(map(str, seen(found))) == sorted(map(str, LISTED))
    assert found[1]["image_id"] == "things/test/data-00000-of-00001/00000000"
    assert seen(rows(source(tmp_path, tmp_path, splits=["test"]))) == [LISTED[0], LISTED[2], LISTED[4]]
    with pytest.raises(OacirError, match=r"source\.splits val: .* has no such split; there are train, test"):
        source(tmp_path, tmp_path, splits=["val"]).fingerprint()


def test_plain_binary_columns_names_of_images_and_fields_of_every_kind(tmp_path: Path) -> None:
    schema = pa.schema(
        [("jpeg", pa.large_binary()), ("sku", pa.int32()), ("kind", pa.string()), ("name", pa.string())]
    )
    table = [
        {"jpeg": picture(1), "sku": 9, "kind": "cup", "name": "a/b"},
        {"jpeg": None, "sku": 9, "kind": "cup", "name": "none"},
        {"jpeg": b"", "sku": 10, "kind": None, "name": "empty"},
        {"jpeg": picture(2), "sku": None, "kind": "cup", "name": "nobody"},
        {"jpeg": picture(3), "sku": 1, "kind": "x/y", "name": "climbing"},
        {"jpeg": picture(4), "sku": 1, "kind": "cup", "name": ".."},
        {"jpeg": picture(5), "sku": 1, "kind": "cup", "name": "a/b"},
    ]
    write(
        str(tmp_path),
        {"data-00000-of-00001.arrow": arrow(table, schema=schema), "state.json": json.dumps(STATE)},
    )
    config = HuggingFaceConfig(
        root=str(tmp_path), image="jpeg", id="name", instance="sku", domain_field="kind", category="kind"
    )
    found = rows(listed := HuggingFace(config, str(tmp_path), workers=1))
    assert [(r["instance_id"], r["image_id"], r["category"], r["size_bytes"]) for r in found] == [
        ("cup/1", "cup/a%2Fb", "cup", len(picture(5))),  # of two images of one name always the same
        ("photos/10", "photos/empty", "photos", 0),
    ]
    assert reasons(listed) == {
        "cup/none": "not_a_file",
        "cup/a%2Fb": "duplicate_name",
        "cup/..": "bad_label",
        "data-00000-of-00001/00000003": "no_identity",
        "data-00000-of-00001/00000004": "bad_label",
    }


@pytest.mark.parametrize("form", ["arrow", pytest.param("parquet", marks=pytest.mark.ray)])
def test_images_in_files_of_their_own(form: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if form == "parquet":
        request.getfixturevalue("ray_session")
    root = tmp_path / "in"
    paths = [
        "images/7.jpg",
        f"{root}/images/8.jpg",
        "images/gone.jpg",
        "/etc/passwd",
        "images/../../x.jpg",
        "s3://b/x",
        "",
    ]
    table = [row(n, 0, image={"bytes": None, "path": path}) for n, path in enumerate(paths)]
    table.append(row(9, 0, image=None))
    table.append(row(10, 0))
    write(str(root), {"images/7.jpg": picture(7), "images/8.jpg": picture(8)})
    write(str(root), saved(table) if form == "arrow" else {"train.parquet": parquet(table)})
    found = source(root, tmp_path / "store")
    assert seen(rows(found)) == [("things/mug", 7, None), ("things/mug", 8, None), ("things/mug", 10, None)]
    assert all(r["size_bytes"] == len(storage.read_bytes(r["uri"])) for r in rows(found))
    assert list(reasons(found).values()) == ["not_a_file"] * 6
    assert "outside" in next(d for k, (_, d) in refused(found).items() if k.endswith("00000003"))


@pytest.mark.ray
def test_a_parquet_folder_is_unpacked_once(
    place: str, tmp_path: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    if storage.is_s3(
        place
    ):  # workers have the environment in which their session began: before there was a server
        ray.shutdown()
        connect(cpus=2, address="local")
    card = "---\nlicense:\n- mit\n- other\n---\n# A data set\n"
    files = {
        "data/train-00000-of-00002-ab12.parquet": parquet(ROWS[:3]),
        "data/train-00001-of-00002.parquet": parquet(ROWS[3:]),
    }
    write(
        place,
        {
            **files,
            "README.md": card,
            ".cache/huggingface/x.parquet": b"x",
            "test/0.parquet": parquet([row(9, 2)]),
        },
    )
    store = tmp_path / "store"
    assert source(place, store).expected_images() == {"things": 6}
    assert not store.exists()
    found = rows(source(place, store, splits=["train"]))
    assert seen(found) == LISTED
    assert {r["licence"] for r in found} == {"mit, other"}
    assert found[0]["image_id"] == "things/data/train-00001-of-00002/00000000"
    version = source(place, store, splits=["train"]).version
    assert version is not None
    assert all(r["uri"].startswith(f"{version.url}/packs/part-0000") for r in found)
    listed = version.table("files").to_pylist()
    assert [storage.sha256_of(version.path(f["path"])) for f in listed] == [f["sha256"] for f in listed]
    assert version.manifest.accounts["pack"][0].kept == 5
    monkeypatch.setattr(hf_rows, "PackStage", None)  # whoever unpacks again fails
    assert rows(source(place, store, splits=["train"])) == found
    assert source(place, store, splits=["test"]).fingerprint() == source(place, store).fingerprint()


def test_packs_are_cut_and_a_damaged_parquet_file_is_accounted_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.stages import Part

    monkeypatch.setattr(hf_rows, "PACK_BYTES", len(picture(1)) + 10)
    whole = parquet([row(n, 0) for n in range(4)])
    write(
        str(tmp_path),
        {"a.parquet": whole, "b.parquet": whole[:-20], "c.parquet": b"PAR1" + bytes(600) + whole[604:]},
    )
    config = HuggingFaceConfig(root=str(tmp_path), **FIELDS)
    names = ("a.parquet", "b.parquet", "c.parquet")
    stage = hf_rows.PackStage(config, str(tmp_path), names, None, str(tmp_path / "store"))
    made = stage(Part(0, {}))
    assert [f["path"] for f in made.tables["files"].to_pylist()] == [
        f"packs/part-00000-0000{n}.bin" for n in range(4)
    ]
    places = made.tables["listing"]["uri"].to_pylist()
    assert [storage.read_bytes(f"{tmp_path}/store/{p}") for p in places] == [picture(n) for n in range(4)]
    for part, name in ((1, "b.parquet"), (2, "c.parquet")):
        cut = stage(Part(part, {}))
        assert [(r["key"], r["reason"]) for r in cut.tables["rejects/pack"].to_pylist()] == [
            (name, "corrupt")
        ]
        assert cut.accounts[0].check().rejected == {"corrupt": 1}


@pytest.mark.parametrize(
    ("cut", "kept", "reason"),
    [
        (lambda whole: whole[:-8], 4, "truncated"),
        (lambda whole: whole[: len(whole) * 2 // 3], 2, "truncated"),
        (lambda whole: whole[:100], 0, "truncated"),
        (lambda whole: b"", 0, "truncated"),
        (lambda whole: b"\xff\xff\xff\xff\x10\0\0\0" + b"garbage!" * 9, 0, "corrupt"),
    ],
)
def test_a_damaged_arrow_file_is_accounted_for(tmp_path: Path, cut: Any, kept: int, reason: str) -> None:
    files = saved([row(n, 0) for n in range(4)])
    files["data-00000-of-00001.arrow"] = cut(files["data-00000-of-00001.arrow"])
    write(str(tmp_path), files)
    found = source(tmp_path, tmp_path)
    assert len(rows(found)) == kept
    assert reasons(found) == {"data-00000-of-00001.arrow": reason}
    assert f"{kept} rows before it were read" in refused(found)["data-00000-of-00001.arrow"][1]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        (
            {},
            {},
            r"neither a saved data set nor a parquet file; the layout of hf_datasets is <root>/state\.json with",
        ),
        (
            {"state.json": json.dumps(STATE)},
            {},
            r"state\.json names data-00000-of-00001\.arrow, which is not there",
        ),
        ({"state.json": "{}"}, {}, r"state\.json: no JSON with _data_files"),
        (
            saved([]) | {"state.json": json.dumps(STATE | {"_indices_data_files": [1]})},
            {},
            r"flatten_indices",
        ),
        (
            saved(ROWS),
            {"image": "picture"},
            r"no column picture; there are image, who, objects, credit: name them",
        ),
        (
            saved(ROWS),
            {"image": "who"},
            r"column who is int64; allowed are an Image feature, binary, and paths",
        ),
        (
            saved([]) | {"data-00000-of-00001.arrow": arrow(ROWS, compression="zstd")},
            {},
            r"its buffers are compressed; save the data set again without compression",
        ),
    ],
)
def test_another_layout_is_one_clear_line(
    tmp_path: Path, files: dict[str, bytes | str], options: dict[str, str], message: str
) -> None:
    write(str(tmp_path / "in"), files)
    with pytest.raises(OacirError, match=message) as caught:
        rows(source(tmp_path / "in", tmp_path, **options))
    assert "\n" not in str(caught.value)


def test_a_class_that_has_no_name_and_one_that_is_none(tmp_path: Path) -> None:
    write(str(tmp_path), saved([row(1, -1), row(2, 3), row(3, None), row(4, 2)]))
    found = source(tmp_path, tmp_path)
    assert seen(rows(found)) == [("things/cup", 4, None)]
    assert list(refused(found).values()) == [
        ("no_identity", "no who"),
        ("bad_label", "who: class 3; there are 3"),
        ("no_identity", "no who"),
    ]


def test_pixels_stay_out_of_memory_while_listing(tmp_path: Path) -> None:
    """A stream of 64 MB lists within a few: its pixels are mapped and never looked at."""
    import tracemalloc

    schema = pa.schema([("image", pa.binary()), ("who", pa.string())])
    table = [{"image": bytes(1 << 20), "who": "a"} for _ in range(64)]
    write(str(tmp_path), {"d.arrow": arrow(table, batch=16, schema=schema)})
    del table
    file = {"path": "d.arrow", "size_bytes": (tmp_path / "d.arrow").stat().st_size, "mark": ""}
    before = pa.total_allocated_bytes()
    tracemalloc.start()
    config = HuggingFaceConfig(root=str(tmp_path), instance="who")
    found = scan_arrow(json.dumps(file), str(tmp_path), config, None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(found) == 64
    assert peak < 4 << 20
    assert pa.total_allocated_bytes() - before < 4 << 20
