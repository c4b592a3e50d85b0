"""Slow ranking and recalls of object-anchored retrieval. Nothing of the project is imported."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


def ranking(scores: Sequence[float], gallery: Sequence[str], reference: str) -> list[str]:
    """Gallery images, best first, without the query's own reference; scores must differ."""
    order = sorted(range(len(gallery)), key=lambda column: -scores[column])
    return [gallery[column] for column in order if gallery[column] != reference]


def recalls(
    rankings: Sequence[Sequence[str]],
    targets: Sequence[str],
    instance_of: Mapping[str, str],
    ks: Sequence[int],
    instance_ks: Sequence[int],
) -> dict[str, float]:
    """R@K and R_ID@K in percent of the queries."""
    found: dict[str, float] = {}
    for k in ks:
        hits = [target in ranked[:k] for ranked, target in zip(rankings, targets, strict=True)]
        found[f"R@{k}"] = 100 * sum(hits) / len(hits)
    for k in instance_ks:
        hits = [
            any(instance_of[image] == instance_of[target] for image in ranked[:k])
            for ranked, target in zip(rankings, targets, strict=True)
        ]
        found[f"R_ID@{k}"] = 100 * sum(hits) / len(hits)
    return found
