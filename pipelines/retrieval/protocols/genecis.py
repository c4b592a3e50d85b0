"""GeneCIS: every query has a small gallery of its own; the score is the mean over its four tasks."""

from __future__ import annotations

from pipelines.retrieval.protocols.base import COMMON, Benchmark, DeclaredGallery

SUBSET = ("R_subset@1", "R_subset@2", "R_subset@3")
GENECIS = Benchmark(
    name="genecis",
    title="GeneCIS",
    revision="facebookresearch/genecis 0c5c968c01b8, object tasks; the attribute tasks' files were not at hand",
    rules=(
        "GeneCIS: R_subset@K (published as R@K) ranks the target in the query's own gallery; R@K ranks all images of"
        " the task, which is harder; over all = mean over the tasks present; Avg = R_subset@1"
    ),
    main="R_subset@1",
    metrics=(*SUBSET, *COMMON),
    averaged=("R_subset@1",),
    headline=SUBSET,
    groups=True,
    galleries={
        "change_object/test": DeclaredGallery(
            2734, frozenset({"aab8e1668ee6518033a48c7fc4767a24afd44578eb82f9ea917406855fdae21d"})
        ),
        "focus_object/test": DeclaredGallery(
            2192, frozenset({"056a8a7428e37ee1024021405161da5af8956ec2e6bce9c8f16321778a6671b6"})
        ),
    },
    queries={"change_object/test": 1960, "focus_object/test": 1960},
)
