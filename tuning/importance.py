"""How much each searched field matters for an objective, as far as the trials can tell."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import stats

from tuning.records import TrialRecord
from tuning.space import Choice, Dimension, Grid, token

FEWEST = 5
"""Finished trials below which nothing is said."""


class Importance(NamedTuple):
    """Of one field."""

    name: str
    share: float
    """η²: share of the variance of the objective's ranks that groups of trials with like values explain, 0 to 1."""
    chance: float
    """What random values would reach on average with as many groups and trials."""
    correlation: float | None
    """Spearman's, for numbers; None for others and where a value never changes."""


def importances(
    records: Sequence[TrialRecord], space: Mapping[str, Dimension], objective: str
) -> list[Importance]:
    """Every field's importance, largest first; empty with fewer than `FEWEST` finished trials.

    η² on ranks (Kruskal-Wallis: H / (n - 1)), one field at a time: it sees no interaction of fields, and fields that
    a search moves together share their effect. Numbers from a range are put into up to four groups of equal size.
    """
    finished = [r for r in records if r.state == "finished"]
    count = len(finished)
    if count < FEWEST:
        return []
    ranks = stats.rankdata([r.figures[objective] for r in finished])
    found = []
    for name, dimension in space.items():
        values = [r.values[name] for r in finished]
        groups = _groups(values, dimension)
        sizes = len(set(groups))
        share = _eta_squared(ranks, groups) if sizes > 1 else 0.0
        found.append(Importance(name, share, (sizes - 1) / (count - 1), _spearman(values, ranks)))
    return sorted(found, key=lambda one: -one.share)


def _groups(values: Sequence[Any], dimension: Dimension) -> list[Any]:
    distinct = {token({"": v}) for v in values}
    if isinstance(dimension, (Choice, Grid)) or len(distinct) <= 4:
        return [token({"": v}) for v in values]
    edges = np.quantile(np.array(values, float), [0.25, 0.5, 0.75])
    return [int(np.searchsorted(edges, v, side="right")) for v in values]


def _eta_squared(ranks: np.ndarray[Any, Any], groups: Sequence[Any]) -> float:
    total = float(((ranks - ranks.mean()) ** 2).sum())
    if not total:
        return 0.0
    between = 0.0
    for group in set(groups):
        own = ranks[[g == group for g in groups]]
        between += len(own) * float((own.mean() - ranks.mean()) ** 2)
    return between / total


def _spearman(values: Sequence[Any], ranks: np.ndarray[Any, Any]) -> float | None:
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values)
    if not numbers or len(set(values)) < 2 or len(set(ranks.tolist())) < 2:
        return None
    return float(stats.spearmanr(values, ranks).statistic)
