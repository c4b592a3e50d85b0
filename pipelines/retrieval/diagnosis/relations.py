"""What goes along with what over queries: rank correlations with intervals by instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
FEW = 30
SAMPLES = 300


@dataclass(frozen=True)
class Relation:
    """Spearman's rank correlation of two measures over queries."""

    first: str
    second: str
    where: str
    queries: int
    value: float | None
    """None where one of the two is the same for all queries."""
    low: float | None
    high: float | None
    """95 % interval, bootstrapped by instance."""

    @property
    def verdict(self) -> str:
        """What may be said of it."""
        if self.value is None:
            return "one of the two does not vary"
        if self.queries < FEW:
            return f"too few queries (fewer than {FEW})"
        if self.low is None or self.high is None or self.low <= 0 <= self.high:
            return "none shown"
        return "rises" if self.value > 0 else "falls"


def relate(
    first: tuple[str, Sequence[float | None]],
    second: tuple[str, Sequence[float | None]],
    domains: Sequence[str],
    instances: Sequence[str],
    seed: int,
) -> list[Relation]:
    """The correlation in each domain and over all, of the queries that have both measures.

    Args:
        first, second: name of a measure and its value for each query, None where there is none.
        domains, instances: of each query.
        seed: of the bootstrap.
    """
    rows = [
        i
        for i, pair in enumerate(zip(first[1], second[1], strict=True))
        if pair[0] is not None and pair[1] is not None
    ]
    names = sorted({domains[i] for i in rows})
    parts: Mapping[str, list[int]] = {name: [i for i in rows if domains[i] == name] for name in names}
    if len(parts) > 1:
        parts = {**parts, "all": rows}
    found = []
    for where, own in parts.items():
        x, y = (np.array([measure[1][i] for i in own], np.float64) for measure in (first, second))
        value = spearman(x, y)
        low, high = (None, None) if value is None else _interval(x, y, [instances[i] for i in own], seed)
        found.append(Relation(first[0], second[0], where, len(own), value, low, high))
    return found


def spearman(x: Floats, y: Floats) -> float | None:
    """Spearman's ρ of two measures [n], ties at their mean rank; None where one does not vary."""
    a, b = _ranks(x), _ranks(y)
    a, b = a - a.mean(), b - b.mean()
    spread = float(np.sqrt((a * a).sum() * (b * b).sum()))
    return float((a * b).sum()) / spread if spread > 0 else None


def _ranks(values: Floats) -> Floats:
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    mean: Floats = (last - (counts - 1) / 2)[where]
    return mean


def _interval(x: Floats, y: Floats, instances: Sequence[str], seed: int) -> tuple[float | None, float | None]:
    names, owner = np.unique(instances, return_inverse=True)
    if len(names) < 2:
        return None, None
    order = np.argsort(owner, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(owner))[:-1])
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(SAMPLES):
        drawn = np.concatenate([members[i] for i in generator.integers(len(names), size=len(names))])
        if (value := spearman(x[drawn], y[drawn])) is not None:
            values.append(value)
    if not values:
        return None, None
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)
