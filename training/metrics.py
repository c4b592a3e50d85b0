"""Metrics of object-anchored retrieval (OACIRR): ranks, recalls, intervals. Pure numpy; percentages throughout."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

AVERAGED = ("R_ID@1", "R@1", "R@5")
"""The recalls whose mean over the domains is the benchmark's Avg."""
DRAWS_AT_ONCE = 2**22
"""Numbers a bootstrap draws at once: 32 MiB of indices, however many queries there are."""


def oacir_ranks(
    scores: NDArray[np.floating],
    gallery_ids: Sequence[str],
    gallery_instances: Sequence[str],
    reference_ids: Sequence[str | None],
    target_ids: Sequence[str],
    instance_ids: Sequence[str],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Ranks (1 = best) of the target and of the first image of the target's instance, reference removed.

    Ties go to the smaller image id. A reference that is not in the gallery, or None, removes nothing.

    Args:
        scores: higher is better, [Q, G].
        gallery_ids: unique image ids of the columns, [G].
        gallery_instances: instance ids of the columns, [G].
        reference_ids, target_ids, instance_ids: per query, [Q].

    Raises:
        ValueError: shapes disagree, ids repeat, scores are not finite, or a query has no target (or no image of its
            instance) among its candidates.
    """
    queries, columns = len(target_ids), len(gallery_ids)
    if np.shape(scores) != (queries, columns) or len(gallery_instances) != columns:
        raise ValueError(
            f"scores {np.shape(scores)} do not fit {queries} queries and {columns} gallery images"
        )
    if not len(reference_ids) == len(instance_ids) == queries:
        raise ValueError("reference_ids, target_ids and instance_ids differ in length")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    column_of = {image_id: column for column, image_id in enumerate(gallery_ids)}
    if len(column_of) != columns:
        raise ValueError("gallery_ids repeat")
    order = np.empty(columns, np.int64)
    order[np.argsort(np.asarray(gallery_ids, dtype=object), kind="stable")] = np.arange(columns)
    members: dict[str, list[int]] = {}
    for column, instance in enumerate(gallery_instances):
        members.setdefault(instance, []).append(column)

    target_rank = np.empty(queries, np.int64)
    instance_rank = np.empty(queries, np.int64)
    for query, row in enumerate(scores):
        removed = reference_ids[query]
        reference = -1 if removed is None else column_of.get(removed, -1)
        target = column_of.get(target_ids[query], -1)
        own = [column for column in members.get(instance_ids[query], ()) if column != reference]
        if target < 0 or target == reference:
            raise ValueError(f"query {query}: target {target_ids[query]!r} is not among its candidates")
        if not own:
            raise ValueError(f"query {query}: no candidate of instance {instance_ids[query]!r}")
        best = min(own, key=lambda column: (-row[column], order[column]))
        target_rank[query] = _rank(row, target, reference, order)
        instance_rank[query] = _rank(row, best, reference, order)
    return target_rank, instance_rank


def _rank(row: NDArray[np.floating], column: int, reference: int, order: NDArray[np.int64]) -> int:
    ahead = (row > row[column]) | ((row == row[column]) & (order < order[column]))
    return 1 + int(np.count_nonzero(ahead)) - int(reference >= 0 and ahead[reference])


def recall_at(ranks: ArrayLike, ks: Iterable[int]) -> dict[int, float]:
    """R@K for every K: percentage of queries whose target has rank ≤ K."""
    array = np.asarray(ranks)
    return {k: 100.0 * float(np.mean(array <= k)) for k in ks}


def instance_recall_at(instance_ranks: ArrayLike, ks: Iterable[int]) -> dict[int, float]:
    """R_ID@K for every K: percentage of queries with an image of the target's instance in the top K."""
    return recall_at(instance_ranks, ks)


def macro_average(by_domain: Mapping[str, Mapping[str, float]], metrics: Sequence[str] = AVERAGED) -> float:
    """Avg: mean over the present domains of the mean over `metrics`; every domain counts alike."""
    return float(np.mean([[values[name] for name in metrics] for values in by_domain.values()]))


def cluster_bootstrap(
    values: ArrayLike,
    clusters: Sequence[object] | None,
    n: int = 1000,
    seed: int = 0,
    strata: Sequence[object] | None = None,
) -> tuple[float, float]:
    """95 % percentile interval of the mean of `values`, resampling whole clusters with replacement.

    Args:
        values: one number per query, e.g. 100 for a hit and 0 for a miss, [Q].
        clusters: the cluster (instance) of each query; None resamples single queries.
        n: resamples.
        seed: of the generator.
        strata: the domain of each query; the statistic is then the mean over the strata of their means (a macro
            average) and clusters are drawn within their stratum. Clusters of different strata are different.

    Returns:
        (low, high) in the unit of `values`.
    """
    numbers = np.asarray(values, float)
    labels = np.arange(len(numbers)) if clusters is None else _codes(clusters)
    groups = np.zeros(len(numbers), int) if strata is None else _codes(strata)
    generator = np.random.default_rng(seed)
    means = []
    for group in range(groups.max() + 1):
        inside = groups == group
        _, cluster = np.unique(labels[inside], return_inverse=True)
        sums = np.bincount(cluster, weights=numbers[inside])
        sizes = np.bincount(cluster)
        resampled = []
        block = max(1, DRAWS_AT_ONCE // len(sums))
        for start in range(0, n, block):
            drawn = generator.integers(len(sums), size=(min(block, n - start), len(sums)))
            resampled.append(sums[drawn].sum(1) / sizes[drawn].sum(1))
        means.append(np.concatenate(resampled))
    low, high = np.percentile(np.mean(means, axis=0), (2.5, 97.5))
    return float(low), float(high)


def _codes(labels: Sequence[object]) -> NDArray[np.int64]:
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], np.int64)


def chance_recall(candidates: ArrayLike, k: int, relevant: ArrayLike = 1) -> float:
    """Expected recall at `k` of a random order, percent, averaged over the queries.

    Args:
        candidates: gallery size of each query, its reference already removed, [Q].
        k: cut-off.
        relevant: how many of the candidates count as a hit (1 for R@K, images of the instance for R_ID@K), [Q].
    """
    total, hits = np.broadcast_arrays(np.asarray(candidates, float), np.asarray(relevant, float))
    miss = np.ones(total.shape)
    for drawn in range(k):  # the chance that none of k draws without replacement is a hit
        left = total - drawn
        miss *= np.where(left > 0, np.clip(left - hits, 0, None) / np.maximum(left, 1), 0.0)
    return 100.0 * float(np.mean(1.0 - miss))
