"""OACIRR: one gallery a domain, the target and its instance. Also what a benchmark built here is ranked by.

The sizes are the paper's; the release's files were not at hand, so no gallery hash is pinned.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from infra.base.errors import OacirError
from pipelines.retrieval.protocols.base import AVERAGE, COMMON, Benchmark, DeclaredGallery

RULES = (
    "OACIRR: one gallery per domain, the query's reference {}, ties to the smaller image id; percent; over all ="
    " macro mean over the domains present; Avg = mean of R_ID@1, R@1, R@5"
)


def built(reference_kept: bool = False, name: str | None = None) -> Benchmark:
    """A benchmark that `oacir build` made, or a release of that name without rules of its own: ranked as OACIRR is."""
    return Benchmark(
        name=name or "built",
        title=name or "a benchmark built here",
        revision="the content hash of the dataset",
        rules=RULES.format("kept" if reference_kept else "removed"),
        main=AVERAGE,
        reference_kept=reference_kept,
    )


BUILT = built()
OACIRR = Benchmark(
    name="oacirr",
    title="OACIRR",
    revision="none pinned: the release's files were not at hand; sizes as published",
    rules=RULES.format("removed"),
    main=AVERAGE,
    metrics=COMMON,
    galleries={
        "fashion/test": DeclaredGallery(5077),
        "car/test": DeclaredGallery(4717),
        "product/test": DeclaredGallery(11801),
        "landmark/test": DeclaredGallery(5000),
    },
    queries={"fashion/test": 3606, "car/test": 3586, "product/test": 21046, "landmark/test": 5211},
)
"""Trained on Union or on a subset; the same galleries serve leave-one-domain-out (`cross_domain`)."""


def cross_domain(figures: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Leave-one-domain-out: every domain scored by the model that was not trained on it.

    Args:
        figures: of one evaluation for each domain; `unseen` names the domains its model was not trained on.

    Returns:
        metric → macro mean over the domains, percent; Avg among them.

    Raises:
        OacirError: a domain is left out by none of the models or by two, or they were not asked the same.
    """
    by_domain: dict[str, Mapping[str, Any]] = {}
    asked = {name: part["gallery"]["hash"] for name, part in figures[0]["domains"].items()} if figures else {}
    for one in figures:
        if {name: part["gallery"]["hash"] for name, part in one["domains"].items()} != asked:
            raise OacirError(
                "the evaluations ranked different galleries; evaluate all models on the same benchmark"
            )
        for domain in one.get("unseen") or ():
            if domain in by_domain:
                raise OacirError(
                    f"{domain} was left out by two of the models; give one evaluation for each domain"
                )
            by_domain[domain] = one["domains"][domain]["metrics"]
    if not by_domain or (missing := sorted(asked.keys() - by_domain.keys())):
        raise OacirError(
            f"no model was trained without {', '.join(missing) if by_domain else 'any domain'}; train one with"
            " --training.leave_out_domains"
        )
    names = next(iter(by_domain.values()))
    return {name: fmean(part[name]["value"] for part in by_domain.values()) for name in names}
