"""CIRR, val: the whole split without the reference, and the five other images of the query's set of six."""

from __future__ import annotations

from pipelines.retrieval.protocols.base import AVERAGE, COMMON, Benchmark, DeclaredGallery

CIRR = Benchmark(
    name="cirr",
    title="CIRR val",
    revision="Cuberick-Orion/CIRR, branch cirr_dataset 2276fba2d2c5, rc2",
    rules=(
        "CIRR val: the split without the query's reference; R_subset@K ranks the five other images of the query's set;"
        " the target is target_hard; Avg = mean of R@5 and R_subset@1"
    ),
    main=AVERAGE,
    metrics=("R_subset@1", "R_subset@2", "R_subset@3", *COMMON),
    averaged=("R@5", "R_subset@1"),
    headline=("R@1", "R@5", "R_subset@1", AVERAGE),
    groups=True,
    galleries={
        "cirr/test": DeclaredGallery(
            2297, frozenset({"a3a035345ecad17cb4d9bdee1fb09569fc82ed0af8259fa7c5e64a2569eb94c9"})
        )
    },
    queries={"cirr/test": 4181},
)
