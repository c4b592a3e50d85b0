"""Which queries are shown, and which of two models does better on them."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from pipelines.retrieval.diagnosis.sides import better, hardest, side_by_side


def model(**ranks: tuple[int, int]) -> Any:
    rankings = {q: {"target_rank": t, "instance_rank": i} for q, (t, i) in ranks.items()}
    return SimpleNamespace(rankings=rankings)


ASKED = [{"query_id": q} for q in "abcde"]
FIRST = model(a=(1, 1), b=(9, 2), c=(4, 1), d=(8, 1), e=(30, 3))
SECOND = model(a=(1, 1), b=(1, 1), c=(40, 1), d=(7, 1), e=(31, 3))
KINDS: list[list[Any]] = [
    ["target", "neither", "instance", "instance", "neither"],
    ["target", "target", "instance", "instance", "neither"],
]


def test_models_differ_by_the_first_five_or_by_the_kind_of_the_first_image() -> None:
    assert better(FIRST, SECOND, ASKED, KINDS) == ["same", "second", "first", "same", "same"]
    other = [KINDS[0], [*KINDS[1][:4], "context"]]
    assert better(FIRST, SECOND, ASKED, other)[4] == "first"


def test_the_largest_difference_comes_first_and_no_difference_last() -> None:
    shown = side_by_side(FIRST, SECOND, ASKED, better(FIRST, SECOND, ASKED, KINDS))
    assert [row["query_id"] for row, _ in shown] == [
        "c",
        "b",
        "d",
        "e",
        "a",
    ]  # 10-fold, 9-fold; 8/7, 31/30, 1


def test_the_hardest_are_hard_for_the_better_model_too() -> None:
    assert [row["query_id"] for row in hardest([FIRST, SECOND], ASKED)] == ["e", "d", "c", "b", "a"]
    assert [row["query_id"] for row in hardest([SECOND], ASKED)][:2] == ["c", "e"]
