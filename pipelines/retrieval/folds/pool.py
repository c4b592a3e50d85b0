"""The evaluations of all folds as one: every query once, ranked by the model that was not trained on its instance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.retrieval.inputs import DomainTask, load_tasks
from pipelines.retrieval.protocols.base import AVERAGE, Benchmark, Ranks
from pipelines.retrieval.protocols.known import declared_in, stated_in
from pipelines.retrieval.summary import FEW_QUERIES, candidates, percent, with_interval

FEW_INSTANCES = 20
"""Fewer are too few for an interval by instance to be believed."""


def pool(folds: Sequence[Version], evaluations: Sequence[Version], samples: int, seed: int) -> dict[str, Any]:
    """Figures by domain and over all: queries, instances, gallery, and each metric with chance and its interval.

    Args:
        folds: the benchmarks of all folds.
        evaluations: of each fold's test split, in their order.
        samples: of the bootstrap, which draws whole instances.
        seed: of it.

    Raises:
        OacirError: an evaluation is of another fold, or asked or ranked in another way than the others.
    """
    for fold, evaluation in zip(folds, evaluations, strict=True):
        if evaluation.manifest.figures["dataset"]["content_hash"] != fold.manifest.content_hash:
            raise OacirError(f"{evaluation.url}: is no evaluation of {fold.url}")
    stated = [(stated_in(e.manifest.figures), e.manifest.figures.get("perturbed")) for e in evaluations]
    if any(one != stated[0] for one in stated):
        raise OacirError(
            "the evaluations of the folds are not of one protocol and perturbation; evaluate them alike"
        )
    benchmark = declared_in(evaluations[0].manifest.figures)
    parts: dict[str, list[tuple[DomainTask, Ranks]]] = {}
    for fold, evaluation in zip(folds, evaluations, strict=True):
        rankings = {row["query_id"]: row for row in evaluation.table("rankings").to_pylist()}
        for task in load_tasks(fold, "test"):
            found = [rankings[query_id] for query_id in task.queries.query_ids]
            ranks = Ranks(
                np.array([row["target_rank"] for row in found]),
                np.array([row["instance_rank"] for row in found]),
            )
            parts.setdefault(task.domain, []).append((task, ranks))
    domains = {domain: _figures([part], benchmark, samples, seed) for domain, part in sorted(parts.items())}
    overall = _figures([part for _, part in sorted(parts.items())], benchmark, samples, seed)
    return {"domains": domains, "overall": overall, "notes": notes(domains, overall)}


def notes(domains: Mapping[str, Any], overall: Mapping[str, Any]) -> list[str]:
    """What a reader has to know before believing the figures."""
    said = []
    for name, part in (*domains.items(), ("all domains together", overall)):
        few = [
            f"{part[what]} {what}"
            for what, least in (("queries", FEW_QUERIES), ("instances", FEW_INSTANCES))
            if part[what] < least
        ]
        if few:
            said.append(f"{name}: {' and '.join(few)}: too few to rank models")
    least = f"fewer than {FEW_QUERIES} queries or {FEW_INSTANCES} instances"
    return [*said, *([f"too few: {least}"] if said else [])]


def table(figures: Mapping[str, Any], benchmark: Mapping[str, Any]) -> list[str]:
    """The figures as lines of text."""
    shown = [name for name in benchmark["headline"] if name != AVERAGE] + [AVERAGE]
    rows = [["domain", "queries", "instances", "gallery", *(f"{name} | chance" for name in shown)]]
    for name, part in (*figures["domains"].items(), ("all (macro)", figures["overall"])):
        cells = [
            f"{with_interval(part['metrics'][m])} | {percent(part['metrics'][m]['chance'])}" for m in shown
        ]
        rows.append([name, f"{part['queries']:,}", f"{part['instances']:,}", f"{part['gallery']:,}", *cells])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join(
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    ]
    return [*lines, "percent (95 % interval, bootstrapped by instance) | what a random order would score"]


def _figures(
    parts: Sequence[Sequence[tuple[DomainTask, Ranks]]], benchmark: Benchmark, samples: int, seed: int
) -> dict[str, Any]:
    """Of domains, each in folds; over several the mean over the domains."""
    from training.metrics import cluster_bootstrap

    flat = [(task, ranks) for folds in parts for task, ranks in folds]
    strata = [task.domain for task, _ in flat for _ in task.queries.query_ids]
    clusters = [instance for task, _ in flat for instance in task.queries.instance_ids]
    # every fold has the same gallery
    galleries = {task.domain: len(task.gallery) for task, _ in flat}
    metrics = {}
    for name in (*benchmark.metrics, AVERAGE):
        hits = [np.concatenate([benchmark.hits(name, ranks) for _, ranks in folds]) for folds in parts]
        sizes = [np.array([len(task.queries) for task, _ in folds]) for folds in parts]
        chances = [
            np.array([benchmark.chance(name, candidates(task)) for task, _ in folds]) for folds in parts
        ]
        low: float | None = None
        high: float | None = None
        if len(set(clusters)) > 1:
            low, high = cluster_bootstrap(np.concatenate(hits), clusters, samples, seed, strata)
        pairs = zip(chances, sizes, strict=True)
        metrics[name] = {
            "value": float(np.mean([own.mean() for own in hits])),
            "low": low,
            "high": high,
            "chance": float(np.mean([np.average(chance, weights=size) for chance, size in pairs])),
        }
    return {
        "queries": len(clusters),
        "instances": len(set(zip(strata, clusters, strict=True))),
        "gallery": sum(galleries.values()),
        "metrics": metrics,
    }
