"""Ranks of several targets, ranks within a query's own group, and what is computed from them. Pure numpy.

`metrics.py` holds what OACIRR needs; CIRR, CIRCO, GeneCIS and MMLandmarks need these too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

Ints = NDArray[np.int64]


def ranks_of(
    scores: NDArray[np.floating],
    gallery_ids: Sequence[str],
    removed_ids: Sequence[str | None],
    wanted_ids: Sequence[Sequence[str]],
    among_ids: Sequence[Sequence[str]] | None = None,
) -> list[Ints]:
    """Ranks (1 = best) of the wanted images of each query, the removed image left out; ties go to the smaller image id.

    Args:
        scores: higher is better, [Q, G].
        gallery_ids: unique image ids of the columns, [G].
        removed_ids: an image taken out of each query's ranking, or None; one outside the gallery removes nothing, [Q].
        wanted_ids: images of each query, at least one, [Q].
        among_ids: the images that a query is ranked among, in place of the gallery; repeated ones count once, [Q].

    Returns:
        Per query the rank of each wanted image, in their order.

    Raises:
        ValueError: shapes disagree, ids repeat, scores are not finite, or an image is not where it is sought.
    """
    if np.shape(scores) != (len(wanted_ids), len(gallery_ids)):
        raise ValueError(
            f"scores {np.shape(scores)} do not fit {len(wanted_ids)} queries and {len(gallery_ids)} gallery images"
        )
    if len(removed_ids) != len(wanted_ids) or (among_ids is not None and len(among_ids) != len(wanted_ids)):
        raise ValueError("removed_ids, wanted_ids and among_ids differ in length")
    if not np.isfinite(scores).all():
        raise ValueError("scores hold NaN or infinity")
    column_of = {image_id: column for column, image_id in enumerate(gallery_ids)}
    if len(column_of) != len(gallery_ids):
        raise ValueError("gallery_ids repeat")
    order = np.empty(len(gallery_ids), np.int64)
    order[np.argsort(np.asarray(gallery_ids, dtype=object), kind="stable")] = np.arange(len(gallery_ids))
    found = []
    for query, (row, removed, wanted) in enumerate(zip(scores, removed_ids, wanted_ids, strict=True)):
        inside = np.ones(len(gallery_ids), bool)
        if among_ids is not None:
            inside[:] = False
            inside[[_column(column_of, image_id, query) for image_id in among_ids[query]]] = True
        if removed is not None and removed in column_of:
            inside[column_of[removed]] = False
        if not len(wanted):
            raise ValueError(f"query {query}: no image is wanted")
        own = []
        for image_id in wanted:
            column = _column(column_of, image_id, query)
            if not inside[column]:
                raise ValueError(f"query {query}: {image_id!r} is not among its candidates")
            ahead = (row > row[column]) | ((row == row[column]) & (order < order[column]))
            own.append(1 + int(np.count_nonzero(ahead & inside)))
        found.append(np.array(own, np.int64))
    return found


def average_precision_at(ranks: ArrayLike, k: int) -> float:
    """AP@K of one query, percent: Σ over hits in the top K of the precision there, divided by min(K, targets).

    Args:
        ranks: the rank of every target of the query, in any order, [G].
        k: cut-off.
    """
    array = np.sort(np.asarray(ranks, np.int64))
    within = array[array <= k]
    precision = np.arange(1, len(within) + 1) / within
    return 100.0 * float(precision.sum()) / min(k, len(array))


def chance_average_precision(candidates: int, relevant: int, k: int) -> float:
    """Expected AP@K of a random order, percent.

    Args:
        candidates: images that are ranked.
        relevant: how many of them are targets.
        k: cut-off.
    """
    places = np.arange(1, min(k, candidates) + 1)
    others = (relevant - 1) / max(candidates - 1, 1)  # of each place before, given that this one is a hit
    expected = (relevant / candidates) * (1 + (places - 1) * others) / places
    return 100.0 * float(expected.sum()) / min(k, relevant)


def median_rank(ranks: ArrayLike) -> float:
    """The median of the targets' ranks; half-way between the middle two of an even number.

    Raises:
        ValueError: there is none.
    """
    array = np.asarray(ranks, float)
    if not array.size:
        raise ValueError("no rank to take the median of")
    return float(np.median(array))


def _column(column_of: dict[str, int], image_id: str, query: int) -> int:
    if image_id not in column_of:
        raise ValueError(f"query {query}: {image_id!r} is not in the gallery")
    return column_of[image_id]
