"""Agreement and settling, worked out by hand."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.annotators.people.agreement import agreement, cohen_kappa, iou, krippendorff_alpha, lines
from pipelines.annotators.people.settle import counting, settle


def said(
    person: str, verdict: str, text: str | None = "dark", box: Any = (0, 0, 10, 10), at: int = 1
) -> dict[str, Any]:
    kept = verdict != "reject"
    return {
        "person": person, "verdict": verdict, "decided_at": f"2026-03-{at:02d}",
        "text_after": text if kept else None, "box_after": list(box) if kept else None,
    }  # fmt: skip


def test_cohens_kappa_of_a_table_worked_out_by_hand() -> None:
    # 20 keep both, 5 and 10 apart, 15 reject both: observed 0.7, expected 0.5 x 0.6 + 0.5 x 0.4 = 0.5
    pairs = [("keep", "keep")] * 20 + [("keep", "reject")] * 5 + [("reject", "keep")] * 10
    assert cohen_kappa(pairs + [("reject", "reject")] * 15) == pytest.approx(0.4)
    assert cohen_kappa([("keep", "keep")] * 9) is None
    assert cohen_kappa([]) is None
    assert cohen_kappa([("keep", "reject"), ("reject", "keep")]) == -1.0


def test_krippendorffs_alpha_of_the_published_example() -> None:
    # Krippendorff (2011), section C: four observers, twelve units, values missing; nominal alpha 0.743
    table = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3],
        [None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None],
    ]
    units = [[str(v) for v in unit if v is not None] for unit in zip(*table, strict=True)]
    assert krippendorff_alpha(units) == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha([["a", "a"], ["a", "a"]]) is None


def test_overlap() -> None:
    assert iou((0, 0, 10, 10), (5, 0, 15, 10)) == pytest.approx(1 / 3)
    assert iou((0, 0, 10, 10), (20, 20, 30, 30)) == 0.0


def test_agreement_counts_every_two_people_of_a_task() -> None:
    found = agreement(
        {
            "one": [said("a", "accept"), said("b", "edit", "bright", (5, 0, 15, 10)), said("c", "reject")],
            "two": [said("a", "accept"), said("b", "accept")],
            "three": [said("a", "accept")],
        }
    )
    assert (found["tasks"], found["pairs"]) == (2, 4)
    assert (found["verdict"], found["kept"]) == (0.25, 0.5)
    assert found["text_equal"] == 0.5
    assert found["box_iou"] == pytest.approx((1 / 3 + 1) / 2)
    assert found["kappa"] == {"a, b": None, "a, c": 0.0, "b, c": 0.0}
    # 4 keep and 1 reject: expected 25 - 17 = 8, observed (9 - 5) / 2 = 2
    assert found["alpha"] == pytest.approx(1 - 4 * 2 / 8)
    assert "agreement over 2 tasks" in lines(found)[0]
    assert lines(agreement({"three": [said("a", "accept")]})) == []


@pytest.mark.parametrize(
    ("decisions", "conflict", "outcome", "text"),
    [
        ([], "pending", "pending", None),
        ([said("a", "accept")], "pending", "keep", "dark"),
        ([said("a", "accept"), said("b", "reject")], "pending", "disagree", None),
        ([said("a", "accept"), said("b", "reject")], "reject", "disagree", None),
        ([said("a", "accept", at=2), said("b", "reject", at=1)], "first", "reject", None),
        ([said("a", "accept", at=2), said("b", "reject", at=1)], "latest", "keep", "dark"),
        ([said("a", "accept"), said("b", "reject"), said("c", "reject")], "latest", "reject", None),
        ([said("a", "accept"), said("b", "edit", "bright")], "pending", "disagree", None),
        ([said("a", "accept"), said("b", "edit", "bright"), said("c", "edit", "bright")], "pending", "keep", "bright"),
        ([said("a", "edit", "x"), said("b", "edit", "y"), said("c", "reject")], "pending", "disagree", None),
    ],
)  # fmt: skip
def test_several_people_come_to_one_answer(
    decisions: list[Any], conflict: Any, outcome: str, text: str | None
) -> None:
    found = settle(decisions, conflict)
    assert (found.outcome, found.text) == (outcome, text)


def test_boxes_that_nearly_cover_each_other_are_one_answer() -> None:
    near = [said("b", "edit", box=(0, 0, 10, 9), at=2), said("a", "edit", at=1)]
    assert settle(near, "pending").box == [0, 0, 10, 10]
    assert settle([near[0], said("a", "edit", box=(0, 0, 10, 5))], "pending").outcome == "disagree"


def test_what_was_shown_must_be_what_is_there_but_an_edit_stands_by_itself() -> None:
    photos = ("r", "t")
    tasks = [
        {"task": n, "reference_sha256": "r", "target_sha256": t, "text": text, "box": [1.0]}
        for n, t, text in (("old", "t", "dark"), ("now", "t", "light"), ("photo", "u", "light"))
    ]
    reject, edit, other = said("a", "reject"), said("b", "edit", "new"), said("c", "edit", "other")
    by_task = {"old": [reject, edit], "photo": [other]}
    assert counting(tasks, by_task, photos, "light", [1.0]) == ([edit], [reject, other])
    assert counting(tasks, by_task, photos, "dark", [1.0]) == ([reject, edit], [other])
    assert counting(tasks, by_task | {"now": [said("d", "accept")]}, photos, "light", [1.0])[0] == [
        said("d", "accept")
    ]
    assert counting(tasks, by_task, ("x", "y"), "light", [1.0]) == ([], [reject, edit, other])
