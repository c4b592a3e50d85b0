"""Ranks and average precision: by hand, against a slow version and the authors' arithmetic, and what always holds."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.metrics import oacir_ranks
from training.rank_metrics import average_precision_at, chance_average_precision, median_rank, ranks_of

IDS = ["d", "a", "c", "b", "e"]
SEEDS = st.integers(0, 2**32 - 1)


def test_ranks_by_hand() -> None:
    scores = np.array([[0.9, 0.1, 0.5, 0.3, 0.95]])
    assert [r.tolist() for r in ranks_of(scores, IDS, ["e"], [["c", "a", "d"]])] == [[2, 4, 1]]
    # kept: e is ahead of all
    assert ranks_of(scores, IDS, [None], [["c"]])[0].tolist() == [3]
    # among c, a and e, where e is the reference; a repeated member counts once
    assert ranks_of(scores, IDS, ["e"], [["a"]], [["c", "a", "e", "c"]])[0].tolist() == [2]
    assert ranks_of(scores, IDS, [None], [["a"]], [["c", "a", "e"]])[0].tolist() == [3]


def test_ties_go_to_the_smaller_image_id() -> None:
    assert ranks_of(np.full((1, 5), 0.5), IDS, ["a"], [["d", "b"]])[0].tolist() == [3, 1]
    assert ranks_of(np.full((1, 5), 0.5), IDS, [None], [["d"]], [["e", "d", "c"]])[0].tolist() == [2]


@given(SEEDS)
def test_ranks_are_those_of_a_sorted_list(seed: int) -> None:
    draw = np.random.default_rng(seed)
    ids = [f"i{n}" for n in draw.permutation(14)]
    scores = draw.integers(0, 4, (5, 14)) / 4  # many ties
    removed = [ids[n] if n < 14 else None for n in draw.integers(0, 16, 5)]
    among = [[ids[n] for n in draw.choice(14, 7, replace=False)] for _ in range(5)]
    wanted = [[i for i in group if i != gone][:3] for group, gone in zip(among, removed, strict=True)]
    for groups in (None, among):
        found = ranks_of(scores, ids, removed, wanted, groups)
        for q in range(5):
            inside = [i for i in (ids if groups is None else groups[q]) if i != removed[q]]
            order = sorted(inside, key=lambda i: (-scores[q][ids.index(i)], i))
            assert found[q].tolist() == [order.index(i) + 1 for i in wanted[q]]
    target_rank, _ = oacir_ranks(scores, ids, ids, removed, [w[0] for w in wanted], [w[0] for w in wanted])
    whole = ranks_of(scores, ids, removed, [w[:1] for w in wanted])
    assert [r[0] for r in whole] == target_rank.tolist()
    within = ranks_of(scores, ids, removed, wanted, among)
    assert all((a <= b).all() for a, b in zip(within, ranks_of(scores, ids, removed, wanted), strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"wanted_ids": [["z"]]}, "'z' is not in the gallery"),
        ({"wanted_ids": [["e"]]}, "'e' is not among its candidates"),
        ({"wanted_ids": [["a"]]}, "'a' is not among its candidates"),
        ({"wanted_ids": [[]]}, "no image is wanted"),
        ({"among_ids": [["c", "y"]]}, "'y' is not in the gallery"),
        ({"among_ids": []}, "differ in length"),
        ({"removed_ids": []}, "differ in length"),
        ({"gallery_ids": ["d", "a", "c", "b", "b"]}, "repeat"),
        ({"scores": np.array([[0.1, np.inf, 0.2, 0.3, 0.4]])}, "infinity"),
        ({"scores": np.ones((2, 5))}, "do not fit"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {
        "scores": np.ones((1, 5)), "gallery_ids": IDS, "removed_ids": ["e"], "wanted_ids": [["c"]],
        "among_ids": [["c", "d"]],
    }  # fmt: skip
    with pytest.raises(ValueError, match=message):
        ranks_of(**{**arguments, **change})


def test_average_precision_by_hand() -> None:
    # three targets at 1, 3 and 7: precisions 1, 2/3, 3/7
    assert average_precision_at([3, 1, 7], 5) == pytest.approx(100 * (1 + 2 / 3) / 3)
    assert average_precision_at([3, 1, 7], 10) == pytest.approx(100 * (1 + 2 / 3 + 3 / 7) / 3)
    # two places, three targets: at most two can be hit
    assert average_precision_at([1, 2, 9], 2) == 100
    assert average_precision_at([6], 5) == 0
    assert average_precision_at([4], 5) == 25


def authors_average_precision(hits: list[bool], relevant: int, k: int) -> float:
    """As CIRCO's server counts: precision at every place, where there is a hit, over min(K, targets)."""
    precisions = np.cumsum(hits) * np.array(hits) / np.arange(1, len(hits) + 1)
    return 100 * float(precisions[:k].sum()) / min(relevant, k)


@given(SEEDS, st.integers(1, 12), st.integers(1, 60))
def test_average_precision_is_the_servers(seed: int, relevant: int, k: int) -> None:
    ranks = np.random.default_rng(seed).choice(np.arange(1, 80), relevant, replace=False)
    found = average_precision_at(ranks, k)
    assert found == pytest.approx(authors_average_precision([r in ranks for r in range(1, 80)], relevant, k))
    assert 0 <= found <= 100 + 1e-9
    better = np.where(ranks == ranks.max(), min(set(range(1, 81)) - set(ranks.tolist())), ranks)
    if better.max() <= ranks.max():
        assert average_precision_at(better, k) >= found - 1e-9


@pytest.mark.parametrize(
    ("candidates", "relevant", "k"), [(5, 2, 3), (6, 3, 2), (4, 4, 9), (5, 1, 5), (1, 1, 1)]
)
def test_chance_is_the_mean_over_all_orders(candidates: int, relevant: int, k: int) -> None:
    orders = itertools.combinations(range(1, candidates + 1), relevant)  # every set of ranks is as likely
    expected = np.mean([average_precision_at(ranks, k) for ranks in orders])
    assert chance_average_precision(candidates, relevant, k) == pytest.approx(float(expected))


def test_median_rank() -> None:
    assert median_rank([9, 1, 4]) == 4
    assert median_rank([1, 2, 10, 100]) == 6
    with pytest.raises(ValueError, match="no rank"):
        median_rank([])
