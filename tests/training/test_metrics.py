from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training import metrics
from training.metrics import (
    chance_recall,
    cluster_bootstrap,
    instance_recall_at,
    macro_average,
    oacir_ranks,
    recall_at,
)

IDS = ["d", "a", "c", "b", "e"]
INSTANCES = ["dog", "cat", "cat", "dog", "owl"]


def ranks(scores, reference="e", target="c", instance="cat"):
    target_rank, instance_rank = oacir_ranks(
        np.array([scores]), IDS, INSTANCES, [reference], [target], [instance]
    )
    return int(target_rank[0]), int(instance_rank[0])


def test_ranks_by_hand():
    assert ranks([0.9, 0.1, 0.5, 0.3, 0.2]) == (2, 2)
    assert ranks([0.9, 0.6, 0.5, 0.3, 0.2]) == (3, 2)  # another image of the instance is better
    assert ranks([0.9, 0.1, 0.5, 0.3, 1.0]) == (2, 2)  # the reference is better, and is removed


def test_the_reference_never_counts_as_the_instance():
    assert ranks([0.1, 0.9, 0.5, 0.3, 0.2], reference="a") == (1, 1)
    assert ranks([0.6, 0.9, 0.5, 0.3, 0.2], reference="a") == (2, 2)


def test_ties_go_to_the_smaller_image_id():
    # a and b come before c, d behind it; the reference e ties as well and is removed.
    assert ranks([0.5] * 5) == (3, 1)
    assert ranks([0.5] * 5, target="d", instance="dog") == (4, 2)
    assert ranks([0.5] * 5, reference="a") == (2, 2)


def test_a_reference_outside_the_gallery_removes_nothing():
    assert ranks([0.9, 0.1, 0.5, 0.3, 1.0], reference="elsewhere") == (3, 3)


@given(st.integers(0, 2**32 - 1))
def test_ranks_equal_those_of_a_sorted_list(seed):
    generator = np.random.default_rng(seed)
    gallery = [f"i{n}" for n in generator.permutation(15)]
    instances = [f"t{n}" for n in generator.integers(0, 4, 15)]
    scores = generator.integers(0, 4, (6, 15)) / 4  # many ties
    picks = [generator.choice(15, 2, replace=False) for _ in range(6)]
    references, targets = ([gallery[p[i]] for p in picks] for i in (0, 1))
    wanted = [instances[p[1]] for p in picks]
    target_rank, instance_rank = oacir_ranks(scores, gallery, instances, references, targets, wanted)
    for query in range(6):
        order = sorted(zip(-scores[query], gallery, instances, strict=True))
        order = [(name, instance) for _, name, instance in order if name != references[query]]
        assert target_rank[query] == [name for name, _ in order].index(targets[query]) + 1
        assert instance_rank[query] == [instance for _, instance in order].index(wanted[query]) + 1
    assert np.all(instance_rank <= target_rank)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_ids": ["z"]}, "target 'z' is not among its candidates"),
        ({"target_ids": ["e"]}, "target 'e' is not among"),  # the reference itself
        ({"instance_ids": ["owl"]}, "no candidate of instance 'owl'"),
        ({"gallery_ids": ["d", "a", "c", "b", "b"]}, "repeat"),
        ({"scores": np.array([[0.1, np.nan, 0.2, 0.3, 0.4]])}, "NaN"),
        ({"scores": np.ones((1, 4))}, "do not fit"),
        ({"reference_ids": []}, "differ in length"),
    ],
)
def test_wrong_input_is_refused(change, message):
    arguments = {
        "scores": np.ones((1, 5)),
        "gallery_ids": IDS,
        "gallery_instances": INSTANCES,
        "reference_ids": ["e"],
        "target_ids": ["c"],
        "instance_ids": ["cat"],
    }
    with pytest.raises(ValueError, match=message):
        oacir_ranks(**{**arguments, **change})


def test_recalls_in_percent():
    assert recall_at([1, 2, 5, 11], (1, 5, 10)) == {1: 25.0, 5: 75.0, 10: 75.0}
    assert instance_recall_at([1, 1, 2, 11], [1]) == {1: 50.0}


def test_macro_average_counts_domains_alike():
    by_domain = {
        "car": {"R_ID@1": 90.0, "R@1": 60.0, "R@5": 90.0, "R@10": 1.0},
        "fashion": {"R_ID@1": 60.0, "R@1": 30.0, "R@5": 60.0},
    }
    assert macro_average(by_domain) == pytest.approx((80 + 50) / 2)


def test_bootstrap_of_independent_queries_is_the_binomial_interval():
    values = np.array([100.0] * 300 + [0.0] * 700)
    low, high = cluster_bootstrap(values, None, n=2000, seed=1)
    half = 1.96 * 100 * (0.3 * 0.7 / 1000) ** 0.5
    assert (low, high) == (pytest.approx(30 - half, abs=0.4), pytest.approx(30 + half, abs=0.4))
    assert cluster_bootstrap(values, None, n=2000, seed=1) == (low, high)


def test_bootstrap_is_the_same_however_few_draws_are_held_at_once(monkeypatch):
    values, clusters = np.random.default_rng(3).random(50), np.arange(50) // 3
    whole = cluster_bootstrap(values, clusters, n=200, seed=4)
    monkeypatch.setattr(metrics, "DRAWS_AT_ONCE", 40)
    assert cluster_bootstrap(values, clusters, n=200, seed=4) == whole


def test_bootstrap_by_cluster_is_wider_when_clusters_agree():
    values = np.repeat(np.array([100.0, 0.0] * 20), 25)  # 40 clusters of 25 equal queries
    clusters = np.repeat(np.arange(40), 25)
    low, high = cluster_bootstrap(values, [f"instance{c}" for c in clusters], seed=0)
    half = 1.96 * 50 / 40**0.5
    assert high - low == pytest.approx(2 * half, rel=0.15)
    narrow = cluster_bootstrap(values, None, seed=0)
    assert high - low > 4 * (narrow[1] - narrow[0])


def test_bootstrap_of_a_macro_average():
    """Domains of 1000 and 10 queries count alike; a constant domain adds nothing to the spread."""
    values = np.concatenate([np.full(1000, 100.0), np.zeros(10)])
    strata = ["car"] * 1000 + ["fashion"] * 10
    assert cluster_bootstrap(values, None, strata=strata) == (50.0, 50.0)
    assert cluster_bootstrap(values, None)[1] > 98.0


@pytest.mark.parametrize(
    ("candidates", "k", "relevant"), [(20, 1, 1), (20, 5, 1), (20, 5, 4), (6, 5, 3), (3, 5, 1)]
)
def test_chance_equals_random_orders(candidates, k, relevant):
    generator = np.random.default_rng(0)
    orders = generator.permuted(np.tile(np.arange(candidates), (20000, 1)), axis=1)
    simulated = 100 * np.mean((orders[:, :k] < relevant).any(axis=1))
    assert chance_recall([candidates], k, relevant) == pytest.approx(simulated, abs=1.2)


def test_chance_is_averaged_over_queries():
    assert chance_recall([10, 20], 1) == pytest.approx((10 + 5) / 2)
