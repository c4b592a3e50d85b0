"""Exports of Label Studio, good and bad: each thing that is wrong is one line, the others are read."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from labeller import annotation, exported

from pipelines.annotators.people.label_studio import CONFIGURATION, task, task_id
from pipelines.annotators.people.reading import Read, read_export

# 400 x 200 pixels
ROW: dict[str, Any] = {
    "task": task_id("pair", ("a" * 64, "b" * 64), "make it dark", [40.0, 20.0, 140.0, 120.0]),
    "pair_id": "pair",
    "width": 400,
    "height": 200,
    "text": "make it dark",
    "box": [40.0, 20.0, 140.0, 120.0],
}
TASK = task(ROW, "shoes", ("r.jpg", "t.jpg"), "chat", "shoes")


def read(entry: Any, **names: str) -> Read:
    return read_export([entry], {ROW["task"]: ROW}, names)


def minimal(said: dict[str, Any]) -> dict[str, Any]:
    """The record of JSON-MIN that Label Studio's converter makes of an annotation."""
    record = {**TASK["data"], "id": 1}
    for item in said["result"]:
        value = item["value"]
        if item["type"] == "rectanglelabels":
            shape = {k: item[k] for k in ("original_width", "original_height")}
            record[item["from_name"]] = [value | shape]
        else:
            [record[item["from_name"]]] = next(iter(value.values()))
    record |= {k: said[k] for k in ("created_at", "updated_at", "lead_time")}
    return record | {"annotator": said["completed_by"], "annotation_id": said["id"]}


def test_a_prediction_shows_percentages_of_the_upright_photo() -> None:
    [rectangle, text] = TASK["predictions"][0]["result"]
    assert rectangle["value"] == {
        "x": 10.0, "y": 10.0, "width": 25.0, "height": 50.0, "rotation": 0, "rectanglelabels": ["anchor"],
    }  # fmt: skip
    assert (rectangle["original_width"], rectangle["original_height"]) == (400, 200)
    assert text["value"] == {"text": ["make it dark"]}
    for item in (rectangle, text):
        assert f'name="{item["from_name"]}" toName="{item["to_name"]}"' in CONFIGURATION


@pytest.mark.parametrize("layout", ["json", "json-min"])
def test_both_layouts_say_the_same(layout: str) -> None:
    box = {"x": 50.0, "y": 50.0, "width": 25.0, "height": 50.0}
    said = annotation(TASK, "edit", person=4, text="make it\n bright", box=box, words="too dark")
    found = read(exported(TASK, said) if layout == "json" else minimal(said))
    assert found.faults == []
    [row] = found.decisions
    assert row == {
        "task": ROW["task"], "pair_id": "pair", "person": "4", "decided_at": "2026-03-01T10:00:00.000+00:00",
        "seconds": 12.5, "verdict": "edit", "words": "too dark", "text_before": "make it dark",
        "text_after": "make it bright", "box_before": [40.0, 20.0, 140.0, 120.0],
        "box_after": [200.0, 100.0, 300.0, 200.0], "state": None,
    }  # fmt: skip


def test_verdicts_that_the_contents_contradict_are_read_by_the_contents_and_counted() -> None:
    changed = read(exported(TASK, annotation(TASK, "accept", text="make it bright")))
    assert (changed.decisions[0]["verdict"], changed.counts["accepted but changed"]) == ("edit", 1)
    same = read(exported(TASK, annotation(TASK, "edit", box={"x": 10.1})))  # 0.4 pixels
    assert (same.decisions[0]["verdict"], same.counts["edited but unchanged"]) == ("accept", 1)
    assert same.decisions[0]["box_after"] == ROW["box"]
    refused = read(exported(TASK, annotation(TASK, "reject", text="whatever")))
    assert (refused.decisions[0]["text_after"], refused.decisions[0]["box_after"]) == (None, None)


def test_what_is_open_skipped_drafted_or_said_again_is_counted() -> None:
    skipped = annotation(TASK, None) | {"was_cancelled": True, "result": []}
    first = annotation(TASK, "accept", at="2026-03-01T10:00:00Z")
    second = annotation(TASK, "reject", at="2026-03-01T12:30:00+02:00", number=2)
    third = annotation(TASK, "reject", person=2, at="2026-03-01T09:00:00")
    entry = exported(TASK, second, first, skipped, third) | {"drafts": [{}, {}]}
    found = read(entry)
    assert [(r["person"], r["verdict"]) for r in found.decisions] == [("1", "reject"), ("2", "reject")]
    assert found.decisions[1]["decided_at"] == "2026-03-01T09:00:00.000+00:00"
    counts = {"tasks": 1, "annotations": 3, "skipped": 1, "drafts": 2, "superseded": 1, "open": 0}
    assert {k: found.counts[k] for k in counts} == counts
    assert read(exported(TASK)).counts["open"] == 1
    empty = {**TASK["data"], "id": 1} | dict.fromkeys(("annotator", "annotation_id", "created_at"))
    assert read(empty).counts["open"] == 1


def test_people_are_named_as_wished_and_never_by_their_address() -> None:
    whole = {"id": 3, "email": "ana@example.org", "first_name": "Ana"}
    for person, names, kept in (
        (3, {}, "3"),
        (whole, {}, "3"),
        (whole, {"ana@example.org": "Ana"}, "Ana"),
        (whole, {"3": "A."}, "A."),
    ):
        [row] = read(exported(TASK, annotation(TASK, "accept", person=person)), **names).decisions
        assert row["person"] == kept
    said = annotation(TASK, "accept", person="ana@example.org")
    assert read(minimal(said)).decisions[0]["person"].startswith("person-")


def _broken(change: str) -> dict[str, Any]:
    said = annotation(TASK, None if change == "no verdict" else "edit", text="make it bright")
    rectangle, text = said["result"][:2]
    entry = exported(TASK, said)
    if change == "two verdicts":
        said["result"][2]["value"]["choices"] = ["accept", "reject"]
    elif change == "another verdict":
        said["result"][2]["value"]["choices"] = ["perhaps"]
    elif change == "empty":
        text["value"]["text"] = ["  "]
    elif change == "two texts":
        text["value"]["text"] = ["one", "two"]
    elif change == "no box":
        said["result"] = said["result"][1:]
    elif change == "two boxes":
        said["result"].append(copy.deepcopy(rectangle))
    elif change == "rotated":
        rectangle["value"]["rotation"] = 12
    elif change == "turned":
        rectangle["image_rotation"] = 90
    elif change == "outside":
        rectangle["value"] |= {"x": 80.0, "width": 21.0}
    elif change == "no area":
        rectangle["value"]["width"] = 0
    elif change == "less than a pixel":
        rectangle["value"]["width"] = 0.01
    elif change == "another picture":
        rectangle |= {"original_width": 200, "original_height": 400}
    elif change == "polygon":
        rectangle["value"] = {"points": [[1, 2]]}
    elif change == "unknown control":
        text["from_name"] = "caption"
    elif change == "nobody":
        said["completed_by"] = None
    elif change == "no date":
        said["updated_at"] = "yesterday"
    elif change == "not ours":
        entry["data"] = {"image": "x.jpg"}
    elif change == "unknown task":
        entry["data"] = TASK["data"] | {"task": "0" * 24}
    return entry


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ("no verdict", "task 1, annotation 1: no verdict; allowed are accept, edit, reject"),
        ("two verdicts", r"2 verdicts \(accept, reject\)"),
        ("another verdict", "verdict 'perhaps'; allowed are"),
        ("empty", "edit without a text"),
        ("two texts", "2 texts in text; one is allowed"),
        ("no box", "edit without a box"),
        ("two boxes", "2 boxes; one is allowed"),
        ("rotated", "rotated; boxes stand upright"),
        ("turned", "rotated; boxes stand upright"),
        ("outside", r"its box leaves the photo \(80, 10 to 101, 60 of 100 %\)"),
        ("no area", "no area"),
        ("less than a pixel", "less than a pixel"),
        ("another picture", "drawn on a picture of 200 x 400, the reference has 400 x 200"),
        ("polygon", "no rectangle"),
        ("unknown control", "speaks of caption, which is not in our labelling configuration"),
        ("nobody", "nobody is named"),
        ("no date", "its time 'yesterday' is no date"),
        ("not ours", "task 1: names no task of an export of ours"),
        ("unknown task", "pair: was not exported from this benchmark"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_nothing_else(change: str, line: str) -> None:
    import re

    good = exported(TASK, annotation(TASK, "accept", person=9), number=2)
    found = read_export([_broken(change), good], {ROW["task"]: ROW}, {})
    [fault] = found.faults
    assert re.search(line, fault)
    assert [r["person"] for r in found.decisions] == ["9"]


@pytest.mark.parametrize("data", [{"tasks": []}, ["x"], None])
def test_files_of_another_kind_are_refused(data: Any) -> None:
    assert len(read_export(data, {}, {}).faults) == 1
