"""Whether two models differ on the same queries: paired intervals and tests, over one or several seeds. Pure numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

Floats = NDArray[np.float64]
LEVEL = 0.05
"""Of a test; the intervals are those of 95 %."""
DRAWS_AT_ONCE = 2**22
"""Numbers drawn at once: 32 MiB."""


class Difference(NamedTuple):
    """How much better the first of two models is."""

    value: float
    """Mean over the strata of the mean difference, in the unit of the values."""
    low: float
    high: float
    """95 % percentile interval, whole clusters and, where there are several, seeds resampled."""
    p: float
    """Of a two-sided test that flips the sign of whole clusters."""

    def shown(self, p: float | None = None) -> bool:
        """Whether there is a difference: the interval leaves 0 out and the test agrees.

        Args:
            p: the test's value corrected for how many tests were made; None takes it as it is.
        """
        return (self.low > 0 or self.high < 0) and (self.p if p is None else p) < LEVEL


def paired_difference(
    first: ArrayLike,
    second: ArrayLike,
    clusters: Sequence[object],
    strata: Sequence[object],
    n: int = 2000,
    seed: int = 0,
) -> Difference:
    """Compare two models on the same queries.

    Queries of one cluster (instance) hit or miss together, so clusters are resampled and flipped as a whole, within
    their stratum (domain). Seeds of a model are resampled too: what another training would have given is part of the
    doubt. With one seed each that part is not seen.

    Args:
        first, second: what each query contributes, [Q], or [S, Q] for S seeds; numbers of seeds may differ.
        clusters, strata: of each query, [Q].
        n: resamples, and flips.
        seed: of the generator.

    Raises:
        ValueError: the queries are not the same number, or there is none.
    """
    own, other = np.atleast_2d(np.asarray(first, float)), np.atleast_2d(np.asarray(second, float))
    if not own.shape[1] == other.shape[1] == len(clusters) == len(strata) or not own.size:
        raise ValueError(
            f"{own.shape[1]} and {other.shape[1]} queries, {len(clusters)} clusters, {len(strata)} strata:"
            " give one each"
        )
    generator = np.random.default_rng(seed)
    gap = own.mean(0) - other.mean(0)
    groups = _codes(strata)
    labels = _codes(list(zip(groups.tolist(), clusters, strict=True)))
    shares = [generator.multinomial(len(s), np.full(len(s), 1 / len(s)), n) / len(s) for s in (own, other)]
    drawn, flipped, real = np.zeros(n), np.zeros(n), 0.0
    count = int(groups.max()) + 1
    for group in range(count):
        inside = groups == group
        _, cluster = np.unique(labels[inside], return_inverse=True)
        sizes = np.bincount(cluster)
        sums = [np.stack([np.bincount(cluster, row) for row in s[:, inside]]) for s in (own, other)]  # [S, C]
        gaps = np.bincount(cluster, gap[inside])
        real += float(gaps.sum()) / sizes.sum() / count
        block = max(1, DRAWS_AT_ONCE // len(sizes))
        for start in range(0, n, block):
            rows = slice(start, min(n, start + block))
            number = rows.stop - rows.start
            times = generator.multinomial(len(sizes), np.full(len(sizes), 1 / len(sizes)), number)
            total = times @ sizes
            means = [
                np.einsum("nc,sc,ns->n", times, s, share[rows], optimize=True)
                for s, share in zip(sums, shares, strict=True)
            ]
            drawn[rows] += (means[0] - means[1]) / total / count
            signs = generator.integers(0, 2, (number, len(sizes))) * 2 - 1
            flipped[rows] += signs @ gaps / sizes.sum() / count
    low, high = np.percentile(drawn, (2.5, 97.5))
    # The order as it is counts as one of the flips, so that p is never 0; sums differ in their last bits.
    p = (1 + int(np.count_nonzero(np.abs(flipped) >= abs(real) - 1e-9))) / (n + 1)
    return Difference(real, float(low), float(high), p)


def holm(values: Sequence[float]) -> list[float]:
    """p-values corrected for how many tests were made (Holm's step-down), in their order; none exceeds 1."""
    order = sorted(range(len(values)), key=lambda i: values[i])
    corrected = [0.0] * len(values)
    largest = 0.0
    for done, place in enumerate(order):
        largest = max(largest, min(1.0, (len(values) - done) * values[place]))
        corrected[place] = largest
    return corrected


def _codes(labels: Sequence[object]) -> NDArray[np.int64]:
    seen: dict[object, int] = {}
    return np.array([seen.setdefault(label, len(seen)) for label in labels], np.int64)
