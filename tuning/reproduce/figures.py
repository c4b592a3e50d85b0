"""From the ranks of all trials to what the report holds: means over the seeds, paired differences, what β follows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from training.significance import Difference, paired_difference
from tuning.reproduce.measure import OWN
from tuning.reproduce.orderings import AVG, ON_THE_BEST, Judged, Side, gates, judged, peaks
from tuning.reproduce.rows import BARE, FULL, Row, Trial

Floats = NDArray[np.float64]
RANKS = {"R_ID@1": ("instance_rank", 1), "R@1": ("target_rank", 1), "R@5": ("target_rank", 5)}
METRICS = (*RANKS, AVG)


class Results:
    """The ranks of the trials that are there.

    Args:
        rows: of the matrix.
        tables: trial → its rows of `measure.SCHEMA`. Where domains are left out in turn, the trials of one seed make up
            all queries together; a seed that lacks one is left out.
        seeds: how many seeds are asked for.
        domains: of the benchmark.
    """

    def __init__(
        self, rows: Sequence[Row], tables: Mapping[Trial, pa.Table], seeds: int, domains: Sequence[str]
    ) -> None:
        self.rows = list(rows)
        self.parts: dict[Side, list[pa.Table]] = {}
        self.seeds: dict[str, int] = {}
        for row in rows:
            whole = []
            for seed in range(seeds):
                wanted = [Trial(row, seed, d) for d in (sorted(domains) if row.crossed else [None])]
                if all(trial in tables for trial in wanted):
                    whole.append(pa.concat_tables([tables[trial] for trial in wanted]))
            self.seeds[row.name] = len(whole)
            for table in whole:
                for variant in pc.unique(table["variant"]).to_pylist():
                    part = table.filter(pc.equal(table["variant"], variant)).sort_by("query_id")
                    self.parts.setdefault(Side(row.name, variant), []).append(part)
        self.hits = cache(self._hits)

    def _hits(self, side: Side, metric: str) -> Floats:
        """What each query contributes, percent, [S, Q]."""
        if metric == AVG:
            return np.mean([self.hits(side, name) for name in RANKS], axis=0)
        column, k = RANKS[metric]
        return np.stack([np.where(part[column].to_numpy() <= k, 100.0, 0.0) for part in self.parts[side]])

    def mean(self, side: Side, metric: str) -> float:
        """Mean over domains and seeds, percent."""
        return float(np.mean(self.of_seeds(side, metric)))

    def of_seeds(self, side: Side, metric: str) -> Floats:
        """Mean over the domains for each seed, percent, [S]."""
        domains = np.array(self.parts[side][0]["domain"].to_pylist())
        hits = self.hits(side, metric)
        return np.mean([hits[:, domains == domain].mean(axis=1) for domain in np.unique(domains)], axis=0)

    def difference(self, first: Side, second: Side, metric: str) -> Difference:
        """Paired by query; whole instances, and seeds where there are several, are resampled."""
        part = self.parts[first][0]
        return paired_difference(
            self.hits(first, metric),
            self.hits(second, metric),
            part["instance_id"].to_pylist(),
            part["domain"].to_pylist(),
        )

    def judged(self) -> list[Judged]:
        """Every gate whose two sides are there."""
        found = [g for g in gates(self.rows) if g.first in self.parts and g.second in self.parts]
        found += peaks(self.rows, self.mean) if self._swept() else []
        return judged(found, [self.difference(g.first, g.second, g.metric) for g in found])

    def open(self) -> set[tuple[str, str]]:
        """(level, ordering) of those that lack a comparison, since trials are missing."""
        lacking = [g for g in gates(self.rows) if g.first not in self.parts or g.second not in self.parts]
        wanted = {} if self._swept() else {("S", name): None for name in ON_THE_BEST}
        return {(g.level, g.ordering) for g in lacking} | wanted.keys()

    def _swept(self) -> bool:
        """Whether the fixed-β sweep and what it is compared with are there."""
        needed = [row.name for row in self.rows if row.beta] + [BARE, FULL]
        return all(self.seeds.get(name) for name in needed)

    def beta(self) -> dict[str, Any] | None:
        """What the learned β of AdaFocal does over the test queries, a list of one figure a seed each; None without it.

        `follows` holds Spearman's correlation with the box's share of the image, the words of the text and the rank of
        the target, and the share of the variance of β that lies between the domains.
        """
        parts = self.parts.get(Side(FULL), [])
        if not parts:
            return None
        told: dict[str, list[float]] = {}
        for part in parts:
            part = part.filter(pc.is_valid(part["beta"]))
            beta = part["beta"].to_numpy()
            told.setdefault("mean", []).append(float(beta.mean()))
            told.setdefault("std", []).append(float(beta.std()))
            told.setdefault("least", []).append(float(beta.min()))
            for name in ("box_share", "words", "target_rank"):
                told.setdefault(name, []).append(spearman(beta, part[name].to_numpy().astype(float)))
            told.setdefault("domain", []).append(between(beta, part["domain"].to_pylist()))
        return told


def spearman(first: Floats, second: Floats) -> float:
    """Rank correlation, ties sharing their mean rank; 0 where one side does not vary."""
    x, y = _mean_ranks(first), _mean_ranks(second)
    if x.std() == 0 or y.std() == 0:
        return 0.0
    return float(np.corrcoef(x, y)[0, 1])


def between(values: Floats, groups: Sequence[str]) -> float:
    """Share of the variance that lies between groups; 0 where nothing varies."""
    if values.var() == 0:
        return 0.0
    labels = np.array(groups)
    means = np.zeros_like(values)
    for group in np.unique(labels):
        means[labels == group] = values[labels == group].mean()
    return float(means.var() / values.var())


def _mean_ranks(values: Floats) -> Floats:
    _, codes, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    ranks: Floats = (ends - (counts - 1) / 2)[codes]
    return ranks


__all__ = ["METRICS", "OWN", "Results", "between", "spearman"]
