"""Which of the compared models differ on the same queries, and where none is shown: paired tests for a report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.base.versions import Version
from pipelines.retrieval.compared import Compared
from pipelines.retrieval.protocols.base import Floats, Ranks
from pipelines.retrieval.protocols.known import declared_in, stated_in

if TYPE_CHECKING:
    from training.significance import Difference

NO_DIFFERENCE = "no difference shown"


def differences(dataset: Version, compared: Sequence[Compared], seed: int = 0) -> list[dict[str, Any]]:
    """A row for each pair of models and each metric the benchmark is known by.

    Evaluations under one label are seeds of one model: their queries are averaged, and seeds resampled. p-values are
    corrected for all the tests of the report (Holm).

    Returns:
        rows of first, second, seeds (how many evaluations each has), metric, value, low, high (percentage points, the
        first less the second), p (corrected) and verdict.
    """
    models = by_model(compared)
    if len(models) < 2:
        return []
    metrics = stated_in(compared[0].figures)["headline"]
    found = paired(dataset, models, list(combinations(models, 2)), metrics, seed)
    return [
        {
            "first": a,
            "second": b,
            "seeds": (len(models[a]), len(models[b])),
            "metric": metric,
            "value": difference.value,
            "low": difference.low,
            "high": difference.high,
            "p": p,
            "verdict": verdict(a, b, difference, p),
        }
        for a, b, metric, difference, p in found
    ]


def by_model(compared: Sequence[Compared]) -> dict[str, list[Compared]]:
    """Model → its evaluations, more than one where it has several seeds."""
    models: dict[str, list[Compared]] = {}
    for one in compared:
        models.setdefault(one.model, []).append(one)
    return models


def paired(
    dataset: Version,
    models: Mapping[str, Sequence[Compared]],
    pairs: Sequence[tuple[str, str]],
    metrics: Sequence[str],
    seed: int = 0,
) -> list[tuple[str, str, str, Difference, float]]:
    """Paired tests of some models on the same queries.

    Args:
        dataset: the benchmark.
        models: name → its seeds, all of the same queries.
        pairs: of names.
        metrics: of the benchmark.
        seed: of the resampling.

    Returns:
        (first, second, metric, difference, p corrected for all of these tests by Holm's step-down).
    """
    from training.significance import holm, paired_difference

    order, clusters, strata = _queries(dataset, next(iter(models.values()))[0])
    hits = {name: {m: _hits(seeds, order, m) for m in metrics} for name, seeds in models.items()}
    found = [
        (a, b, m, paired_difference(hits[a][m], hits[b][m], clusters, strata, seed=seed))
        for a, b in pairs
        for m in metrics
    ]
    corrected = holm([difference.p for *_, difference in found])
    return [(a, b, m, difference, p) for (a, b, m, difference), p in zip(found, corrected, strict=True)]


def over_seeds(dataset: Version, seeds: Sequence[Compared], metric: str, seed: int = 0) -> Difference:
    """The mean of a metric over several seeds of a model, with the interval over instances and seeds."""
    from training.significance import paired_difference

    order, clusters, strata = _queries(dataset, seeds[0])
    return paired_difference(_hits(seeds, order, metric), np.zeros(len(order)), clusters, strata, seed=seed)


def verdict(first: str, second: str, difference: Difference, p: float) -> str:
    """Who is better, or that no difference is shown."""
    if not difference.shown(p):
        return NO_DIFFERENCE
    return f"{first if difference.value > 0 else second} is better"


def _queries(dataset: Version, one: Compared) -> tuple[list[str], list[str], list[str]]:
    """Ids of the queries in their order, and the instance and domain of each."""
    columns = ["query_id", "instance_id", "domain"]
    asked = {row["query_id"]: row for row in dataset.table("quadruples", columns).to_pylist()}
    order = sorted(one.rankings)
    return order, [asked[q]["instance_id"] for q in order], [asked[q]["domain"] for q in order]


def _hits(seeds: Sequence[Compared], order: Sequence[str], metric: str) -> Floats:
    """What each query contributes, [S, Q]."""
    benchmark = declared_in(seeds[0].figures)
    return np.stack([benchmark.hits(metric, _ranks(one.rankings, order)) for one in seeds])


def _ranks(rankings: Mapping[str, Mapping[str, Any]], order: Sequence[str]) -> Ranks:
    rows = [rankings[query_id] for query_id in order]
    every = [row.get("target_ranks") for row in rows]
    group = [row.get("group_rank") for row in rows]
    return Ranks(
        np.array([row["target_rank"] for row in rows]),
        np.array([row["instance_rank"] for row in rows]),
        # null for a whole domain where none of its queries has a further target
        [np.array(own or [row["target_rank"]]) for own, row in zip(every, rows, strict=True)]
        if any(every)
        else None,
        None if any(rank is None for rank in group) else np.array(group),
    )
