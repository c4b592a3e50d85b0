"""From ranks to figures: recalls with chance, blind baselines and intervals, per domain and over all; and a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.retrieval.engine import Floats, Ints, Ranking
from pipelines.retrieval.inputs import DomainTask

METRICS = ("R_ID@1", "R_ID@5", "R_ID@10", "R@1", "R@5", "R@10", "R@50")
AVERAGE = "Avg"
PROTOCOL = (
    "OACIRR: one gallery per domain, the query's reference {}, ties to the smaller image id; percent; over all ="
    " macro mean over the domains present; Avg = mean of R_ID@1, R@1, R@5"
)
FEW_QUERIES = 100


@dataclass(frozen=True)
class DomainResult:
    """Everything measured on one domain."""

    task: DomainTask
    ranking: Ranking
    betas: Sequence[list[float] | None]
    text_only: tuple[Ints, Ints] | None
    """Target and instance ranks of the baseline; None where the domain has a single instance."""
    reference_only: tuple[Ints, Ints] | None

    @property
    def ranks(self) -> tuple[Ints, Ints]:
        """Target and instance ranks."""
        return self.ranking.target_rank, self.ranking.instance_rank


def hits(metric: str, ranks: tuple[Ints, Ints]) -> Floats:
    """100 for every query that hits, 0 for a miss; for Avg the mean of its three recalls."""
    from training.metrics import AVERAGED

    if metric == AVERAGE:
        return np.mean([hits(name, ranks) for name in AVERAGED], axis=0)
    name, _, k = metric.partition("@")
    return np.where(ranks[1 if name == "R_ID" else 0] <= int(k), 100.0, 0.0)


def chance(metric: str, task: DomainTask) -> float:
    """What a random order would score on a domain, percent."""
    from training.metrics import AVERAGED, chance_recall

    if metric == AVERAGE:
        return float(np.mean([chance(name, task) for name in AVERAGED]))
    owner: dict[str | None, str] = dict(zip(task.gallery.image_ids, task.gallery.instance_ids, strict=True))
    removed = np.array([reference in owner for reference in task.queries.removed_ids])
    relevant = np.ones(len(task.queries))
    name, _, k = metric.partition("@")
    if name == "R_ID":
        counts: dict[str, int] = {}
        for instance in task.gallery.instance_ids:
            counts[instance] = counts.get(instance, 0) + 1
        pairs = zip(task.queries.removed_ids, task.queries.instance_ids, strict=True)
        relevant = np.array([counts[instance] - (owner.get(gone) == instance) for gone, instance in pairs])
    return chance_recall(len(task.gallery) - removed, int(k), relevant)


def figures(results: Sequence[DomainResult], samples: int, seed: int) -> dict[str, Any]:
    """Figures of every domain and over all: values, 95 % intervals by instance and by query, chance, baselines."""
    names = (*METRICS, AVERAGE)
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
            "metrics": {name: _measure(name, [r], samples, seed) for name in names},
        }
        for r in results
    }
    queries = sum(len(r.task.queries) for r in results)
    overall = {
        "queries": queries,
        "instances": sum(d["instances"] for d in domains.values()),
        "gallery": {"images": sum(len(r.task.gallery) for r in results)},
        "metrics": {name: _measure(name, results, samples, seed) for name in names},
    }
    kept = any(r.task.queries.reference_kept for r in results)
    protocol = PROTOCOL.format("kept" if kept else "removed")
    return {"protocol": protocol, "domains": domains, "overall": overall, "beta": _beta(results)}


def notes(data: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    said = []
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
    return [*said, *data.get("dataset", {}).get("notes", [])]


def table(data: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text: a row per domain and one over all."""
    head = ["domain", "queries", "gallery", "R_ID@1", "R@1", "R@5"]
    head += ["chance*", "text-only*", "reference-only*"]
    rows = [head]
    parts = [*data["domains"].items(), ("all (macro)", data["overall"])]
    for name, part in parts:
        measures = part["metrics"]
        row = [name, f"{part['queries']:,}", f"{part['gallery']['images']:,}"]
        row += [with_interval(measures[m]) for m in ("R_ID@1", "R@1", "R@5")]
        row += [
            " / ".join(percent(measures[m][kind]) for m in ("R_ID@1", "R@1"))
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
        "percent (95 % interval, bootstrapped by instance); * R_ID@1 / R@1",
        f"Avg of R_ID@1, R@1, R@5: {with_interval(average)}",
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
    metric: str, results: Sequence[DomainResult], samples: int, seed: int
) -> dict[str, float | None]:
    from training.metrics import cluster_bootstrap

    values = np.concatenate([hits(metric, r.ranks) for r in results])
    strata = [r.task.domain for r in results for _ in r.task.queries.query_ids]
    clusters = [instance for r in results for instance in r.task.queries.instance_ids]
    low: float | None = None
    high: float | None = None
    # One instance resampled is always itself: an interval of no width would claim certainty.
    if any(len(set(r.task.queries.instance_ids)) > 1 for r in results):
        low, high = cluster_bootstrap(values, clusters, samples, seed, strata)
    low_by_query, high_by_query = cluster_bootstrap(values, None, samples, seed, strata)
    return {
        "value": _macro([hits(metric, r.ranks) for r in results]),
        "low": low,
        "high": high,
        "low_by_query": low_by_query,
        "high_by_query": high_by_query,
        "chance": float(np.mean([chance(metric, r.task) for r in results])),
        "text_only": _blind(metric, [r.text_only for r in results]),
        "reference_only": _blind(metric, [r.reference_only for r in results]),
    }


def _macro(values: Sequence[Floats]) -> float:
    return float(np.mean([np.mean(v) for v in values]))


def _blind(metric: str, ranks: Sequence[tuple[Ints, Ints] | None]) -> float | None:
    known = [r for r in ranks if r is not None]
    return _macro([hits(metric, r) for r in known]) if known and len(known) == len(ranks) else None


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
