"""From ranks to figures: recalls with chance, blind baselines and intervals, per domain and over all; and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from pipelines.retrieval.engine import Ranking
from pipelines.retrieval.inputs import DomainTask
from pipelines.retrieval.protocols.base import AVERAGE, Benchmark, Candidates, Floats, Ranks
from pipelines.retrieval.protocols.known import stated_in
from pipelines.retrieval.protocols.oacirr import BUILT
from pipelines.retrieval.robustness.config import in_words

FEW_QUERIES = 100


@dataclass(frozen=True)
class DomainResult:
    """Everything measured on one domain."""

    task: DomainTask
    ranking: Ranking
    betas: Sequence[list[float] | None]
    text_only: Ranks | None
    """Ranks of the baseline; None where the domain has a single instance."""
    reference_only: Ranks | None

    @property
    def ranks(self) -> Ranks:
        """Of the model itself."""
        return self.ranking.ranks

    @cached_property
    def candidates(self) -> Candidates:
        """See `candidates`."""
        return candidates(self.task)


def candidates(task: DomainTask) -> Candidates:
    """Among how many images each query of a domain is ranked, and how many of them are right."""
    queries, gallery = task.queries, task.gallery
    owner: dict[str | None, str] = dict(zip(gallery.image_ids, gallery.instance_ids, strict=True))
    removed = np.array([gone in owner for gone in queries.removed_ids], np.int64)
    counts: dict[str, int] = {}
    for instance in gallery.instance_ids:
        counts[instance] = counts.get(instance, 0) + 1
    pairs = zip(queries.removed_ids, queries.instance_ids, strict=True)
    own = [counts[instance] - (owner.get(gone) == instance) for gone, instance in pairs]
    further = queries.further_ids or [[]] * len(queries)
    group = None
    if queries.group_ids is not None:
        members = zip(queries.group_ids, queries.removed_ids, strict=True)
        group = np.array([len(set(ids) - {gone}) for ids, gone in members], np.int64)
    return Candidates(
        images=len(gallery) - removed,
        instance=np.array(own, np.int64),
        targets=np.array([1 + len(others) for others in further], np.int64),
        group=group,
    )


def figures(
    results: Sequence[DomainResult], samples: int, seed: int, benchmark: Benchmark = BUILT
) -> dict[str, Any]:
    """Figures of every domain and over all: values, 95 % intervals by instance and by query, chance, baselines."""
    names = (*benchmark.metrics, AVERAGE)
    domains: dict[str, dict[str, Any]] = {
        r.task.domain: {
            "queries": len(r.task.queries),
            "instances": len(set(r.task.queries.instance_ids)),
            "gallery": {
                "id": r.task.gallery.gallery_id,
                "images": len(r.task.gallery),
                "distractors": r.task.distractors,
                "hash": r.task.gallery_hash,
            },
            "metrics": {name: _measure(name, [r], samples, seed, benchmark) for name in names},
        }
        for r in results
    }
    queries = sum(len(r.task.queries) for r in results)
    overall = {
        "queries": queries,
        "instances": sum(d["instances"] for d in domains.values()),
        "gallery": {"images": sum(len(r.task.gallery) for r in results)},
        "metrics": {name: _measure(name, results, samples, seed, benchmark) for name in names},
    }
    return {
        "protocol": benchmark.rules,
        "benchmark": benchmark.stated(),
        "departures": benchmark.departures([r.task.found for r in results]),
        "domains": domains,
        "overall": overall,
        "beta": _beta(results),
    }


def notes(data: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    said = []
    if stated := data.get("perturbed"):
        told = ", ".join(f"{count:,} {what}" for what, count in stated["counts"].items())
        said.append(f"perturbed queries ({in_words(stated)}; {told}): compare with no score of the benchmark")
    queries = data["overall"]["queries"]
    if queries < FEW_QUERIES:
        said.append(f"{queries} queries: too few to rank models (fewer than {FEW_QUERIES})")
    few = [
        f"{name} ({d['queries']})"
        for name, d in data["domains"].items()
        if d["queries"] < FEW_QUERIES <= queries
    ]
    if few:
        said.append(f"too few queries to rank models in {', '.join(few)} (fewer than {FEW_QUERIES})")
    alone = [n for n, d in data["domains"].items() if d["metrics"]["R@1"]["text_only"] is None]
    if alone:
        said.append(
            f"no blind baselines and no interval in {', '.join(alone)}: all queries are of one instance"
            + ("; the interval over all is too narrow" if len(alone) < len(data["domains"]) else "")
        )
    said += [f"domain {name} is absent: {why}" for name, why in data.get("absent", {}).items()]
    said += [f"{name} was not trained on: its figures are cross-domain" for name in data.get("unseen") or ()]
    return [*said, *data.get("departures", []), *data.get("dataset", {}).get("notes", [])]


def table(data: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text: a row per domain and one over all."""
    stated = stated_in(data)
    shown = [name for name in stated["headline"] if name != AVERAGE]
    head = ["domain", "queries", "gallery", *shown]
    head += ["chance*", "text-only*", "reference-only*"]
    rows = [head]
    parts = [*data["domains"].items(), ("all (macro)", data["overall"])]
    for name, part in parts:
        measures = part["metrics"]
        row = [name, f"{part['queries']:,}", f"{part['gallery']['images']:,}"]
        row += [with_interval(measures[m]) for m in shown]
        row += [
            " / ".join(percent(measures[m][kind]) for m in shown[:2])
            for kind in ("chance", "text_only", "reference_only")
        ]
        rows.append(row)
    widths = [max(len(row[i]) for row in rows) for i in range(len(head))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    average = data["overall"]["metrics"][AVERAGE]
    return [
        *lines,
        f"percent (95 % interval, bootstrapped by instance); * {' / '.join(shown[:2])}",
        f"Avg of {', '.join(stated['averaged'])}: {with_interval(average)}",
        *(f"note: {text}" for text in notes(data)),
    ]


def percent(value: float | None) -> str:
    """A percentage to one decimal place, small ones to two; n/a for none."""
    if value is None:
        return "n/a"
    return f"{value:.2f}" if 0 < value < 1 else f"{value:.1f}"


def with_interval(measure: Mapping[str, Any]) -> str:
    """A value with its interval, where it has one: 41.2 (38.0-44.1)."""
    if measure["low"] is None:
        return f"{measure['value']:.1f} (n/a)"
    return f"{measure['value']:.1f} ({measure['low']:.1f}-{measure['high']:.1f})"


def _measure(
    metric: str, results: Sequence[DomainResult], samples: int, seed: int, benchmark: Benchmark
) -> dict[str, float | None]:
    from training.metrics import cluster_bootstrap

    own = [benchmark.hits(metric, r.ranks) for r in results]
    values = np.concatenate(own)
    strata = [r.task.domain for r in results for _ in r.task.queries.query_ids]
    clusters = [instance for r in results for instance in r.task.queries.instance_ids]
    low: float | None = None
    high: float | None = None
    # One instance resampled is always itself: an interval of no width would claim certainty.
    if any(len(set(r.task.queries.instance_ids)) > 1 for r in results):
        low, high = cluster_bootstrap(values, clusters, samples, seed, strata)
    low_by_query, high_by_query = cluster_bootstrap(values, None, samples, seed, strata)
    return {
        "value": _macro(own),
        "low": low,
        "high": high,
        "low_by_query": low_by_query,
        "high_by_query": high_by_query,
        "chance": float(np.mean([benchmark.chance(metric, r.candidates) for r in results])),
        "text_only": _blind(metric, [r.text_only for r in results], benchmark),
        "reference_only": _blind(metric, [r.reference_only for r in results], benchmark),
    }


def _macro(values: Sequence[Floats]) -> float:
    return float(np.mean([np.mean(v) for v in values]))


def _blind(metric: str, ranks: Sequence[Ranks | None], benchmark: Benchmark) -> float | None:
    known = [r for r in ranks if r is not None]
    return _macro([benchmark.hits(metric, r) for r in known]) if known and len(known) == len(ranks) else None


def _beta(results: Sequence[DomainResult]) -> dict[str, float] | None:
    used = np.array([np.mean(beta) for r in results for beta in r.betas if beta is not None])
    if not len(used):
        return None
    return {
        "queries": len(used),
        "mean": float(used.mean()),
        "std": float(used.std()),
        "min": float(used.min()),
        "max": float(used.max()),
    }
