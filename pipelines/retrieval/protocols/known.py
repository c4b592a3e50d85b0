"""Which declared benchmark a dataset is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.retrieval.protocols.base import Benchmark
from pipelines.retrieval.protocols.circo import CIRCO
from pipelines.retrieval.protocols.cirr import CIRR
from pipelines.retrieval.protocols.cor import COR127K
from pipelines.retrieval.protocols.fashioniq import FASHIONIQ
from pipelines.retrieval.protocols.genecis import GENECIS
from pipelines.retrieval.protocols.oacirr import BUILT, OACIRR, built
from pipelines.sources.released.base import NOT_STATED

BENCHMARKS: dict[str, Benchmark] = {
    one.name: one for one in (OACIRR, CIRR, *FASHIONIQ.values(), CIRCO, GENECIS, COR127K)
}
"""Every declared benchmark, by name."""


def benchmark_of(dataset: Version, split: str) -> Benchmark:
    """What a split of a dataset is ranked by: the declared benchmark on its test split, OACIRR's rules on dev.

    dev is held out of training queries in galleries of its own: no benchmark says how it is scored, and the groups of
    its queries are not whole there.

    Raises:
        OacirError: it was imported with the reference in the ranking where this benchmark has it out, or the reverse.
    """
    rules = dataset.manifest.figures.get("protocol") or {}
    kept = rules.get("reference") == "kept"
    name = _name(dataset, rules, kept) if split == "test" else None
    if name not in BENCHMARKS:
        return built(kept, name)
    declared = BENCHMARKS[name]
    if declared.reference_kept != kept:
        raise OacirError(
            f"{dataset.url}: imported with the reference {_place(kept)} the ranking, {declared.title} has it"
            f" {_place(declared.reference_kept)}; import it again with this release of oacir"
        )
    return declared


def declared_in(figures: Mapping[str, Any]) -> Benchmark:
    """The benchmark that an evaluation was measured by."""
    return BENCHMARKS.get(stated_in(figures)["name"], BUILT)


def stated_in(figures: Mapping[str, Any]) -> Mapping[str, Any]:
    """What an evaluation says of its benchmark (`Benchmark.stated`); one made before it was said: OACIRR's rules."""
    stated: Mapping[str, Any] = figures.get("benchmark") or BUILT.stated()
    return stated


def _name(dataset: Version, rules: Mapping[str, Any], kept: bool) -> str | None:
    name = rules.get("name")
    if name == "fashioniq":
        if rules["gallery"] == "val_triplets":
            return "fashioniq-val_triplets"
        return "fashioniq-split" if kept else "fashioniq-split_without_reference"
    release = dataset.manifest.figures.get("release", {})
    # An export of ours in OACIRR's layout is no OACIRR; its import states no licence of the annotations.
    if release.get("kind") == "oacirr" and release.get("annotation_licence") != NOT_STATED:
        return OACIRR.name
    return None if name is None else str(name)


def _place(kept: bool) -> str:
    return "in" if kept else "out of"
