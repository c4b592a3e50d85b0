"""What a benchmark is here: a declared object that says which data, how it is ranked, and what counts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from training.rank_metrics import average_precision_at, chance_average_precision

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

COMMON = ("R_ID@1", "R_ID@5", "R_ID@10", "R@1", "R@5", "R@10", "R@50")
"""Measured of every benchmark."""
AVERAGE = "Avg"


class Ranks(NamedTuple):
    """Where the right answers of the queries of one domain stand; 1 = best."""

    target: Ints
    """Of the primary target, [Q]."""
    instance: Ints
    """Of the first image of its instance, [Q]."""
    targets: list[Ints] | None = None
    """Of every target, the primary one first; None where no query has a second one."""
    group: Ints | None = None
    """Of the primary target among the query's own group, [Q]; None where groups do not count."""


@dataclass(frozen=True)
class Candidates:
    """How many images the queries of one domain are ranked among, and how many of them are right; [Q] each."""

    images: Ints
    instance: Ints
    """Images of the query's instance."""
    targets: Ints
    group: Ints | None = None
    """Images in the query's group."""


class Found(NamedTuple):
    """A domain as it was found."""

    gallery_id: str
    gallery_hash: str
    """`pipelines.gallery.gallery_hash` of its images."""
    images: int
    queries: int


@dataclass(frozen=True)
class DeclaredGallery:
    """A gallery as the benchmark's files name it."""

    images: int
    sha256: frozenset[str] = frozenset()
    """`gallery_hash` of it; several where its images are in use in several file formats, none where its files were not
    at hand and only its size is known."""


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A benchmark.

    Metric names: R@K (the primary target is in the top K), R_ID@K (an image of its instance is), R_subset@K (the
    primary target is in the top K of the query's own group), mAP@K (over all targets), and Avg, the mean of
    `averaged`. Over all = macro mean over the domains.
    """

    name: str
    title: str
    revision: str
    """Of the annotation files that what is declared here was read from, or why none is pinned."""
    rules: str
    """How it is ranked, in one sentence; goes with every score."""
    main: str
    """The metric that a leaderboard sorts by."""
    metrics: tuple[str, ...] = COMMON
    averaged: tuple[str, ...] = ("R_ID@1", "R@1", "R@5")
    headline: tuple[str, ...] = ("R_ID@1", "R@1", "R@5", AVERAGE)
    """Shown first."""
    reference_kept: bool = False
    """Whether the query's reference stays in its ranking."""
    groups: bool = False
    """Whether a query is also ranked within its own group."""
    galleries: Mapping[str, DeclaredGallery] = field(default_factory=dict)
    """By gallery id; none for benchmarks that everyone builds for himself."""
    queries: Mapping[str, int] = field(default_factory=dict)
    """By gallery id."""

    def __post_init__(self) -> None:
        unknown = {self.main, *self.headline, *self.averaged} - {*self.metrics, AVERAGE}
        if unknown:
            raise ValueError(f"benchmark {self.name}: {sorted(unknown)} is not among its metrics")

    @property
    def all_targets(self) -> bool:
        """Whether a metric looks at further targets than the primary one."""
        return any(name.startswith("mAP@") for name in self.metrics)

    def hits(self, metric: str, ranks: Ranks) -> Floats:
        """What each query contributes to a metric, percent, [Q].

        Raises:
            ValueError: the benchmark has no such metric, or these ranks do not hold what it needs.
        """
        if metric == AVERAGE:
            return np.mean([self.hits(name, ranks) for name in self.averaged], axis=0)
        kind, k = _parts(metric)
        if kind == "mAP":
            every = ranks.targets if ranks.targets is not None else [np.array([r]) for r in ranks.target]
            return np.array([average_precision_at(own, k) for own in every])
        found = {"R": ranks.target, "R_ID": ranks.instance, "R_subset": ranks.group}[kind]
        if found is None:
            raise ValueError(f"{metric}: the queries were not ranked within their groups")
        return np.where(found <= k, 100.0, 0.0)

    def chance(self, metric: str, candidates: Candidates) -> float:
        """What a random order would score on a domain, percent."""
        from training.metrics import chance_recall

        if metric == AVERAGE:
            return float(np.mean([self.chance(name, candidates) for name in self.averaged]))
        kind, k = _parts(metric)
        if kind == "mAP":
            pairs = zip(candidates.images, candidates.targets, strict=True)
            return float(np.mean([chance_average_precision(int(n), int(r), k) for n, r in pairs]))
        if kind == "R_subset":
            if candidates.group is None:
                raise ValueError(f"{metric}: the queries were not ranked within their groups")
            return chance_recall(candidates.group, k)
        return chance_recall(candidates.images, k, candidates.instance if kind == "R_ID" else 1)

    def departures(self, found: Sequence[Found]) -> list[str]:
        """What makes scores on these domains incomparable with published ones, as sentences."""
        said = []
        for one in found:
            declared, asked = self.galleries.get(one.gallery_id), self.queries.get(one.gallery_id)
            if declared is not None and one.images != declared.images:
                said.append(
                    f"{one.gallery_id} holds {one.images:,} images, {self.title} has {declared.images:,}"
                )
            elif declared is not None and declared.sha256 and one.gallery_hash not in declared.sha256:
                said.append(f"{one.gallery_id} holds other images than {self.title} has")
            if asked is not None and one.queries != asked:
                said.append(f"{one.gallery_id} has {one.queries:,} queries, {self.title} has {asked:,}")
        missing = sorted(self.galleries.keys() - {one.gallery_id for one in found})
        if missing:
            said.append(
                f"{', '.join(missing)} of {self.title} {'is' if len(missing) == 1 else 'are'} missing"
            )
        return [f"{text}: compare with no published score" for text in said]

    def stated(self) -> dict[str, object]:
        """What goes with every score."""
        return {
            "name": self.name,
            "title": self.title,
            "revision": self.revision,
            "main": self.main,
            "metrics": list(self.metrics),
            "averaged": list(self.averaged),
            "headline": list(self.headline),
        }


def _parts(metric: str) -> tuple[str, int]:
    kind, _, k = metric.partition("@")
    if kind not in ("R", "R_ID", "R_subset", "mAP") or not k.isdigit():
        raise ValueError(f"no metric {metric!r}; there are R@K, R_ID@K, R_subset@K, mAP@K and {AVERAGE}")
    return kind, int(k)
