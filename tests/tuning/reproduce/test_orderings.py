"""When a comparison passes, worked by hand; and which comparisons a matrix makes."""

from __future__ import annotations

import pytest

from training.significance import Difference
from tuning.reproduce.orderings import Gate, Side, gates, judged, verdicts
from tuning.reproduce.rows import BARE, CROP, FULL, matrix

A, B = Side("a"), Side("b")


def gate(kind: str, ordering: str = "a > b") -> Gate:
    return Gate(ordering, "S", A, B, "Avg", kind)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("kind", "found", "passed", "why"),
    [
        ("above", Difference(3, 1, 5, 0.001), True, "significant"),
        ("above", Difference(-1, -3, 1, 0.3), True, "not significantly reversed"),
        ("above", Difference(-2, -3, -1, 0.01), False, "significantly reversed"),
        ("clearly above", Difference(3, 1, 5, 0.001), True, "significant"),
        ("clearly above", Difference(3, -1, 7, 0.2), False, "not significant"),
        ("clearly above", Difference(-4, -5, -3, 0.001), False, "significantly reversed"),
        ("about equal", Difference(1.2, 0.5, 1.9, 0.001), True, "within 2 points"),
        ("about equal", Difference(3, -1, 7, 0.2), True, "no difference shown"),
        ("about equal", Difference(-3, -5, -1, 0.01), False, "differ"),
    ],
)
def test_a_comparison_passes_as_the_gate_says(kind: str, found: Difference, passed: bool, why: str) -> None:
    [one] = judged([gate(kind)], [found])
    assert one.passed is passed
    assert one.why.startswith(why)


def test_significance_is_corrected_for_all_comparisons_and_reversal_is_not() -> None:
    weak = Difference(3, 1, 5, 0.02)
    assert judged([gate("clearly above")], [weak])[0].passed
    both = judged([gate("clearly above"), gate("above")], [weak, Difference(-3, -5, -1, 0.04)])
    assert [one.corrected for one in both] == [0.04, 0.04]
    three = judged([gate("clearly above")] * 3, [weak] * 3)
    assert [one.passed for one in three] == [False] * 3
    assert not judged([gate("above")] * 3, [Difference(-3, -5, -1, 0.04)] * 3)[0].passed


def test_an_ordering_passes_where_all_its_comparisons_do() -> None:
    good, bad = Difference(3, 1, 5, 0.001), Difference(-3, -5, -1, 0.001)
    found = judged([gate("above", "x"), gate("above", "x"), gate("above", "y")], [good, bad, good])
    assert verdicts(found) == {("S", "x"): False, ("S", "y"): True}


def test_the_papers_gap_decides_which_differences_have_to_be_significant() -> None:
    found = {
        (g.first.row, g.second.row, g.metric): g
        for g in gates(matrix((1, 2, 4), False))
        if g.first.variant == "own"
    }
    assert (found[FULL, CROP, "Avg"].kind, found[FULL, CROP, "Avg"].paper) == ("clearly above", 2.53)
    assert (found[CROP, BARE, "Avg"].kind, found[CROP, BARE, "Avg"].paper) == ("above", 1.56)
    assert found["beta_2", BARE, "R_ID@1"].kind == "above"
    assert found["cross_adafocal", "cross_sprc", "Avg"].paper == 5.41
    assert all(g.level == "S" for g in found.values())


def test_all_rows_bring_the_reported_orderings() -> None:
    told = {g.ordering for g in gates(matrix((1, 2, 4), True)) if g.level == "W"}
    assert told == {
        "transformer > MLP > average pool", "learnable ≥ frozen probes", "depth 2 > 1", "then flat",
        "probes flat from 2 to 32", "scalar ≈ vector",
    }  # fmt: skip
