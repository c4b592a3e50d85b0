from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest

from infra.base.errors import OacirError
from pipelines.sources import scans
from pipelines.sources.scans import LabelOptions, LabelRefused, in_parallel, labels


def said(values: dict[str, Any], **options: Any) -> dict[str, Any]:
    return labels(LabelOptions(instance="who", **options), values.get)


def test_labels_are_texts_with_the_domain_in_front() -> None:
    assert said({"who": " a/b "}) == {
        "domain": "photos",
        "instance_id": "photos/a%2Fb",
        "category": "photos",
        "box": None,
        "licence": None,
        "attribution": None,
    }
    options = {"domain_field": "d", "category": "c", "licence": "l", "attribution": "a"}
    full = said({"who": 7.0, "d": "car", "c": "", "l": "MIT", "a": 5}, **options)
    assert list(full.values()) == ["car", "car/7", "car", None, "MIT", "5"]


@pytest.mark.parametrize("nobody", [None, "", "  ", float("nan")])
def test_a_record_that_names_nobody_has_no_identity(nobody: Any) -> None:
    with pytest.raises(LabelRefused, match="no_identity: no who"):
        said({"who": nobody})


@pytest.mark.parametrize("value", [1.5, [1], {"a": 1}, b"x", "\ud800"])
def test_other_kinds_of_values_are_refused(value: Any) -> None:
    with pytest.raises(LabelRefused, match="bad_label: who: "):
        said({"who": value})


@pytest.mark.parametrize(
    ("form", "value", "box"),
    [
        ("xyxy", [1, 2, 3, 4.5], [1.0, 2.0, 3.0, 4.5]),
        ("xywh", [1, 2, 3, 4], [1.0, 2.0, 4.0, 6.0]),
        ("xywh", [-1, 2, 3, 4], [-1.0, 2.0, 2.0, 6.0]),  # clipped when the image's size is known
        ("xyxy", None, None),
        ("xyxy", [], None),
    ],
)
def test_boxes_in_both_forms(form: Any, value: Any, box: Any) -> None:
    assert said({"who": "x", "b": value}, box="b", box_format=form)["box"] == box


@pytest.mark.parametrize(
    "value",
    [
        "1 2 3 4",
        [1, 2, 3],
        [1, 2, 3, "4"],
        [3, 2, 1, 4],
        [1, 2, 1, 4],
        [0, 0, float("inf"), 1],
        [0, 0, 10**400, 1],
    ],
)
def test_what_is_no_box_is_refused(value: Any) -> None:
    with pytest.raises(LabelRefused, match=r"bad_label: b: .*allowed are four finite numbers"):
        said({"who": "x", "b": value}, box="b")


def work(item: str) -> pa.Table:
    if item == "bad":
        raise OacirError("shard 3: cannot be read; check access")
    if item == "worse":
        raise ZeroDivisionError("nothing")
    return pa.table({"item": [item], "length": [len(item)]})


@pytest.mark.ray
def test_tables_come_back_from_ray_and_a_failure_is_one_line(
    ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scans, "DONE_HERE", 0)
    made = pa.concat_tables(in_parallel(work, [str(n) for n in range(12)], "list", "shards"))
    assert sorted(made["length"].to_pylist()) == [1] * 10 + [2] * 2
    assert made.schema == work("x").schema
    for item, message in (
        ("bad", r"list: shard 3: cannot be read; check access"),
        ("worse", "list: ZeroDivisionError: n"),
    ):
        with pytest.raises(OacirError, match=message) as caught:
            list(in_parallel(work, ["1", item], "list", "shards"))
        assert "\n" not in str(caught.value)
