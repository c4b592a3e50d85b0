"""CIRCO, val: mAP over many targets in all of COCO 2017 unlabeled.

The authors' own evaluation ranks every image of the index, the reference among them, so it stays in. COCO's index was
not at hand: the gallery's size is known, its hash is not.
"""

from __future__ import annotations

from pipelines.retrieval.protocols.base import AVERAGE, COMMON, Benchmark, DeclaredGallery

PRECISION = ("mAP@5", "mAP@10", "mAP@25", "mAP@50")
CIRCO = Benchmark(
    name="circo",
    title="CIRCO val",
    revision="miccunifi/CIRCO 267b5c9087d8",
    rules=(
        "CIRCO val: all of COCO 2017 unlabeled, the query's reference kept; mAP@K over all targets, R@K of the first"
        " one; Avg = mean of mAP@5, 10, 25, 50"
    ),
    main="mAP@5",
    metrics=(*PRECISION, *COMMON, "R@25"),
    averaged=PRECISION,
    headline=(*PRECISION, AVERAGE),
    reference_kept=True,
    galleries={"circo/test": DeclaredGallery(123403)},
    queries={"circo/test": 220},
)
