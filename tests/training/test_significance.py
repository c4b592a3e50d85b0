"""Paired tests: by hand, against every flip there is, at their level where nothing differs, and with several seeds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.significance import holm, paired_difference


def test_the_difference_is_the_macro_mean_by_hand() -> None:
    # stratum x: +100 and 0 of two queries; stratum y: four queries, one lost
    found = paired_difference([100, 0, 0, 0, 0, 0], [0, 0, 0, 0, 0, 100], list("abcdef"), list("xxyyyy"))
    assert found.value == pytest.approx((50 - 25) / 2)
    assert not found.shown()


def test_p_is_that_of_all_flips() -> None:
    draw = np.random.default_rng(3)
    gaps = draw.integers(-2, 5, 9).astype(float)
    clusters = [0, 0, 1, 2, 3, 3, 4, 5, 6]
    sums = np.bincount(clusters, gaps)
    every = [
        abs(sum(s * g for s, g in zip(signs, sums, strict=True)))
        for signs in itertools.product((1, -1), repeat=7)
    ]
    expected = np.mean(np.array(every) >= abs(gaps.sum()) - 1e-9)
    found = paired_difference(gaps, np.zeros(9), clusters, ["x"] * 9, n=20_000)
    assert found.p == pytest.approx(expected, abs=0.012)


@settings(max_examples=25)
@given(st.integers(0, 2**32 - 1))
def test_what_always_holds(seed: int) -> None:
    draw = np.random.default_rng(seed)
    a, b = draw.integers(0, 2, (2, 30)) * 100.0
    clusters, strata = draw.integers(0, 8, 30).tolist(), draw.integers(0, 2, 30).tolist()
    one = paired_difference(a, b, clusters, strata, n=200, seed=1)
    assert one == paired_difference(a, b, clusters, strata, n=200, seed=1)
    assert one.low <= one.high
    assert 1 / 201 <= one.p <= 1
    other = paired_difference(b, a, clusters, strata, n=200, seed=1)
    assert (other.value, other.p) == (pytest.approx(-one.value), one.p)
    same = paired_difference(a, a, clusters, strata, n=200)
    assert same == (0, 0, 0, 1)
    assert not same.shown()


def test_two_equal_models_are_told_apart_no_more_often_than_the_level_says() -> None:
    draw = np.random.default_rng(0)
    clusters, strata = (np.arange(120) // 3).tolist(), (np.arange(120) // 60).tolist()
    wrong = 0
    for trial in range(200):
        a, b = (draw.random((2, 120)) < 0.4) * 100.0
        wrong += paired_difference(a, b, clusters, strata, n=300, seed=trial).shown()
    assert wrong <= 20  # 10 are expected; 20 or more would come of chance once in 500


def test_a_real_difference_is_found_and_pairing_finds_what_two_intervals_do_not() -> None:
    draw = np.random.default_rng(1)
    hard = draw.random(400)  # both fail on the same queries
    a, b = (hard < 0.5) * 100.0, (hard < 0.45) * 100.0
    found = paired_difference(a, b, list(range(400)), ["x"] * 400)
    assert found.shown()
    assert found.low > 0
    half = 1.96 * 100 * (0.25 / 400) ** 0.5  # of each alone: wider than the gap of five points
    assert found.value < 2 * half
    assert found.value == pytest.approx(5, abs=2.5)


def test_queries_of_one_cluster_are_no_independent_evidence() -> None:
    a, b = np.repeat([100.0, 0, 100, 0, 100], 40), np.repeat([0.0, 0, 0, 0, 0], 40)
    clusters = np.repeat(np.arange(5), 40).tolist()
    assert paired_difference(a, b, list(range(200)), ["x"] * 200).shown()
    assert not paired_difference(a, b, clusters, ["x"] * 200).shown()


def test_seeds_that_disagree_leave_no_difference() -> None:
    draw = np.random.default_rng(2)
    hits = (draw.random(300) < 0.5) * 100.0
    better, worse = np.maximum(hits, (draw.random(300) < 0.3) * 100.0), hits
    clusters, strata = list(range(300)), ["x"] * 300
    assert paired_difference(better, worse, clusters, strata).shown()
    # one seed of the first model gains, another loses as much
    found = paired_difference(
        [better, np.minimum(hits, 100 - (better - hits))], [worse, worse], clusters, strata
    )
    assert not found.shown()
    steady = paired_difference([better, better, better], [worse, worse], clusters, strata)
    assert steady.shown()
    once = paired_difference(better, worse, clusters, strata)
    assert (steady.value, steady.p) == (pytest.approx(once.value), pytest.approx(once.p, abs=0.01))


def test_holm() -> None:
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []


def test_other_queries_are_refused() -> None:
    with pytest.raises(ValueError, match="2 and 3 queries"):
        paired_difference([1, 2], [1, 2, 3], ["a", "b"], ["x", "x"])
    with pytest.raises(ValueError, match="give one each"):
        paired_difference([], [], [], [])
