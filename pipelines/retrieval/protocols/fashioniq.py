"""FashionIQ, val, in the three galleries in use. Scores of different ones do not compare: each is its own benchmark.

`split`: all images of the category's split, the reference among them; `split_without_reference`: the same, each query's
reference taken out; `val_triplets`: references and targets of the val queries only, the reference among them. Images
are in use as PNG and as JPEG under the same names, so each gallery has two hashes.
"""

from __future__ import annotations

from pipelines.retrieval.protocols.base import AVERAGE, COMMON, Benchmark, DeclaredGallery

QUERIES = {"dress/test": 2017, "shirt/test": 2038, "toptee/test": 1961}
SPLIT = {
    "dress/test": DeclaredGallery(
        3817,
        frozenset(
            {
                "66708f621cbcd07c8c756e6eeed817245bd810eca707f6553636cab5325e1e23",
                "8d0125c909c189757fbc2788815fdb0f5e155d8cb56dd3d191769d92306577e5",
            }
        ),
    ),
    "shirt/test": DeclaredGallery(
        6346,
        frozenset(
            {
                "2d35919d1c7efec9684a954e1b266e2ff5468d4d4ecf75f257f668faaf9f8c1b",
                "015887e3e17cc6fb66460295f372b796845381902ab6ef935b95849f598e8b2c",
            }
        ),
    ),
    "toptee/test": DeclaredGallery(
        5373,
        frozenset(
            {
                "c0260cfe5765c123ec4f769049eace33625444062e5cb0bf95408348ee247ca4",
                "538a50bb85d93aaa21be502cdf4efe02b1ebb2d4df5ab339943822fd146cf587",
            }
        ),
    ),
}
TRIPLETS = {
    "dress/test": DeclaredGallery(
        2628,
        frozenset(
            {
                "408300e55aca6705f359d7478c13862fc93c5049c4ad8c1ac25c3d5b15148532",
                "e114d566996687e97e61b84f911b7095407851fff0ec4416b84bb58321e0003e",
            }
        ),
    ),
    "shirt/test": DeclaredGallery(
        3089,
        frozenset(
            {
                "079824c371dbdf5726da413acbfcdca49c8254a79970f1dfd0f8aa3eebcee7e4",
                "a1b83ac9373f6182d64484555cae61218fb586c3780cb16f2838d2205f3c8106",
            }
        ),
    ),
    "toptee/test": DeclaredGallery(
        2902,
        frozenset(
            {
                "0eb6188a7a87a22cd71c362f061e3570d672bc674edbb639d80700c26cc11207",
                "c931b9583885b00575ccbf3eb5ef52b9d297e3d72765b4b58a1dcf4ce56c678a",
            }
        ),
    ),
}


def _benchmark(protocol: str, what: str, kept: bool, galleries: dict[str, DeclaredGallery]) -> Benchmark:
    return Benchmark(
        name=f"fashioniq-{protocol}",
        title=f"FashionIQ val ({protocol})",
        revision="XiaoxiaoGuo/fashion-iq f71b16c3b09e",
        rules=(
            f"FashionIQ val, protocol {protocol}: {what}, the query's reference {'kept' if kept else 'removed'}; over"
            " all = mean over the categories present; Avg = mean of R@10 and R@50"
        ),
        main=AVERAGE,
        metrics=COMMON,
        averaged=("R@10", "R@50"),
        headline=("R@10", "R@50", AVERAGE),
        reference_kept=kept,
        galleries=galleries,
        queries=QUERIES,
    )


FASHIONIQ = {
    protocol: _benchmark(protocol, what, kept, galleries)
    for protocol, what, kept, galleries in (
        ("split", "all images of the category's split", True, SPLIT),
        ("split_without_reference", "all images of the category's split", False, SPLIT),
        ("val_triplets", "references and targets of the val queries", True, TRIPLETS),
    )
}
"""By the mandatory `protocol` of the import."""
