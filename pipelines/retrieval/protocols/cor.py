"""COR127K: scored by masks (`training.mask_metrics`), which needs a model that draws them; ranking scenes is ours."""

from __future__ import annotations

from pipelines.retrieval.protocols.base import AVERAGE, COMMON, Benchmark

COR127K = Benchmark(
    name="cor127k",
    title="COR127K scenes",
    revision="none pinned: the files were not at hand",
    rules=(
        "COR127K, ranking of scenes (ours; the authors score masks by Dice and IoU): the query's reference removed;"
        " over all = mean over base and novel categories; Avg = mean of R_ID@1, R@1, R@5"
    ),
    main=AVERAGE,
    metrics=COMMON,
)
