"""Rank correlations against a slow version, and what may be said of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.retrieval.diagnosis.relations import Relation, relate, spearman


def slow_ranks(values: list[float]) -> list[float]:
    """One more than the smaller values, and half of the other equal ones."""
    return [1 + sum(w < v for w in values) + (sum(w == v for w in values) - 1) / 2 for v in values]


@settings(max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=30))
def test_spearman_is_pearson_of_ranks(pairs: list[tuple[int, int]]) -> None:
    x, y = (np.array(side, np.float64) for side in zip(*pairs, strict=True))
    found = spearman(x, y)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert found is None
    else:
        expected = np.corrcoef(slow_ranks(list(x)), slow_ranks(list(y)))[0, 1]
        assert found == pytest.approx(expected)


def test_what_is_said() -> None:
    """β rises with the first measure and has nothing to do with the second."""
    generator = np.random.default_rng(0)
    area, noise = generator.normal(size=(2, 200))
    beta = [float(a + 0.5 * n) for a, n in zip(area, generator.normal(size=200), strict=True)]
    domains = ["x"] * 120 + ["y"] * 80
    instances = [f"i{n // 4}" for n in range(200)]
    rows = relate(("β", beta), ("area", [float(a) for a in area]), domains, instances, 0)
    assert [(r.where, r.queries, r.verdict) for r in rows] == [
        ("x", 120, "rises"), ("y", 80, "rises"), ("all", 200, "rises")
    ]  # fmt: skip
    for row in rows:
        assert row.value is not None
        assert row.low is not None
        assert row.high is not None
        assert 0.5 < row.low < row.value < row.high < 1
    nothing = relate(("β", beta), ("noise", [float(a) for a in noise]), ["x"] * 200, instances, 0)
    assert [r.verdict for r in nothing] == ["none shown"]


def test_queries_without_a_measure_are_not_counted_and_few_are_said_to_be_few() -> None:
    beta: list[float | None] = [float(n) for n in range(20)]
    area: list[float | None] = [float(n) if n % 2 else None for n in range(20)]
    (row,) = relate(("β", beta), ("area", area), ["x"] * 20, [str(n) for n in range(20)], 0)
    assert (row.queries, row.value) == (10, pytest.approx(1.0))
    assert row.verdict == "too few queries (fewer than 30)"
    (one,) = relate(("β", beta), ("area", area), ["x"] * 20, ["i"] * 20, 0)
    assert (one.low, one.high) == (None, None)  # one instance resampled is always itself
    assert Relation("β", "area", "all", 500, None, None, None).verdict == "one of the two does not vary"
    assert Relation("β", "area", "all", 500, -0.4, -0.5, -0.3).verdict == "falls"
