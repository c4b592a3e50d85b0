"""COR127K, on files made up after the authors' README and loader."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from infra.base.errors import OacirError
from pipelines.sources.released.cor127k import COLUMNS, Cor127kConfig, read

Row = dict[str, str]


def row(number: int, **more: str) -> Row:
    return {
        "Id": str(number), "Compose": "0", "Dataset": "Test_2", "Target": "1q1n", "Query_img": f"q{number}.jpg",
        "Query_mask": f"q{number}.png", "Support_img": f"s{number}.jpg", "Support_mask": f"s{number}.png",
        "Text": "the red one", "query_cat": "mug",
    } | more  # fmt: skip


def write(root: Path, name: str, rows: list[Row]) -> None:
    (root / "csv_data").mkdir(exist_ok=True)
    with (root / f"csv_data/{name}.csv").open("w", newline="") as stream:
        table = csv.DictWriter(stream, [*COLUMNS, "query_cat"])
        table.writeheader()
        table.writerows(rows)


def test_a_scene_is_sought_by_a_masked_reference(tmp_path: Path) -> None:
    write(tmp_path, "Test_2", [row(0), row(1, Compose="1"), row(2, Support_img="q2.jpg"), row(3, Text="")])
    release = read(Cor127kConfig(source=str(tmp_path))).check()
    (query,) = release.quadruples
    place = f"{tmp_path}/dataset/Test_2"
    assert (query["query_id"], query["domain"], query["split"]) == ("novel/Test_2/0", "novel", "test")
    assert query["reference_id"] == "novel/Test_2/image/s0.jpg"
    assert query["target_ids"] == ["novel/Test_2/image/q0.jpg"]
    assert query["reference_mask_uri"] == f"{place}/mask/sup/s0.png"
    assert {r["key"].rsplit("/", 1)[1]: r["reason"] for r in release.refused} == {
        "1": "outside_protocol",
        "2": "target_is_reference",
        "3": "no_text",
    }
    masks = {
        (i["image_id"], i["mask_uri"]) for i in release.instances if i["instance_id"] == query["query_id"]
    }
    assert masks == {
        ("novel/Test_2/image/s0.jpg", f"{place}/mask/sup/s0.png"),
        ("novel/Test_2/image/q0.jpg", f"{place}/mask/1q1n/q0.png"),
    }
    assert release.records == {"Test_2": 4}


def test_base_and_novel_categories_are_two_domains(tmp_path: Path) -> None:
    for name in ("Train", "Test_1", "Test_2"):
        write(tmp_path, name, [row(0, Dataset=name)])
    release = read(Cor127kConfig(source=str(tmp_path), dev_share=0.0)).check()
    assert [(q["domain"], q["split"]) for q in release.quadruples] == [
        ("base", "train"),
        ("base", "test"),
        ("novel", "test"),
    ]
    assert set(release.galleries) == {"base/test", "novel/test"}


def test_a_table_without_a_column_or_a_field_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "csv_data").mkdir()
    (tmp_path / "csv_data/Train.csv").write_text("Id,Text\n1,x\n")
    with pytest.raises(OacirError, match=r"Train\.csv: no column Compose, Dataset"):
        read(Cor127kConfig(source=str(tmp_path)))
    (tmp_path / "csv_data/Train.csv").write_text(",".join(COLUMNS) + "\n1,0\n")
    with pytest.raises(OacirError, match=r"Train\.csv, line 2: 9 columns expected"):
        read(Cor127kConfig(source=str(tmp_path)))
