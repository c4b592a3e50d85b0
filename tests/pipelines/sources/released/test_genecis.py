"""GeneCIS: a gallery for each query, object and attribute tasks, and the figures of the real annotation files."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from small_release import write_json

from pipelines.sources.released.genecis import GenecisConfig, read


def test_a_query_is_ranked_among_its_own_group(tmp_path: Path) -> None:
    ids = [{"val_image_id": n} for n in range(5)]
    records = [
        {"reference": ids[0], "target": ids[1], "gallery": ids[2:4], "condition": "wall"},
        # the target is listed among the others, as one of the released records has it
        {"reference": ids[0], "target": ids[4], "gallery": [ids[4], ids[2]], "condition": "door"},
    ]
    write_json(tmp_path, "genecis/change_object.json", records)
    release = read(GenecisConfig(source=str(tmp_path))).check()
    name = "change_object/val2017/{:012d}.jpg"
    groups = [q["group_ids"] for q in release.quadruples]
    assert groups == [[name.format(n) for n in (1, 2, 3)], [name.format(n) for n in (4, 2)]]
    assert [q["modification_text"] for q in release.quadruples] == ["wall", "door"]
    # the task's gallery names every image once; the reference is in none
    assert list(release.galleries["change_object/test"]) == [name.format(n) for n in (1, 2, 3, 4)]
    assert release.protocol["gallery"] == "group_ids"


def test_an_attribute_task_means_parts_of_images(tmp_path: Path) -> None:
    parts = [{"image_id": 7, "instance_bbox": [n, 2, 10, 20.5]} for n in range(3)]
    record = {"reference": parts[0], "target": parts[1], "gallery": parts[2:], "condition": "red"}
    write_json(tmp_path, "genecis/focus_attribute.json", [record])
    (tmp_path / "VG_100K_2").mkdir()
    (tmp_path / "VG_100K_2/7.jpg").write_bytes(b"x")
    release = read(GenecisConfig(source=str(tmp_path))).check()
    assert list(release.images) == [f"focus_attribute/VG_100K/7@{n},2,10,20.5.png" for n in range(3)]
    row = release.images["focus_attribute/VG_100K/7@1,2,10,20.5.png"]
    assert (row["uri"], row["context_json"]) == ("VG_100K_2/7.jpg", '{"crop": [1, 2, 10, 20.5]}')


def test_the_real_files(shared_dir: Path) -> None:
    release = read(GenecisConfig(source=str(shared_dir / "data/annotations/genecis"))).check()
    assert release.records == {"change_object": 1960, "focus_object": 1960}
    assert Counter(q["domain"] for q in release.quadruples) == release.records
    assert Counter(len(q["group_ids"]) for q in release.quadruples) == {15: 3919, 14: 1}
    assert all(q["group_ids"][0] == q["target_ids"][0] for q in release.quadruples)
    assert not any(q["reference_id"] in q["group_ids"] for q in release.quadruples)
    assert {p: len(ids) for p, ids in release.galleries.items()} == {
        "change_object/test": 2734,
        "focus_object/test": 2192,
    }
    assert not release.refused
