"""Evaluations made by hand: a benchmark of numbered queries, and models of which every rank is said."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa

from infra.base import storage, versions
from infra.base.config import Config
from pipelines.records import conform
from pipelines.retrieval import summary
from pipelines.retrieval.engine import Gallery, QuerySet, Ranking
from pipelines.retrieval.evaluate import rankings_table
from pipelines.retrieval.inputs import DomainTask
from pipelines.retrieval.protocols.base import Benchmark, Ranks
from pipelines.retrieval.protocols.oacirr import BUILT
from pipelines.retrieval.summary import DomainResult

DOMAINS, QUERIES, IMAGES, PER_INSTANCE = ("car", "product"), 80, 200, 4


class Made(Config):
    """The recipe of a version made by hand."""

    by: str = "a test"


def make_benchmark(root: str, name: str = "bench") -> versions.Version:
    """Queries alone, four to an instance; nothing that would have to be decoded."""
    rows = [
        {
            "query_id": f"{domain}-{n:03d}",
            "domain": domain,
            "split": "test",
            "instance_id": f"{domain}/{n // PER_INSTANCE}",
            "category": domain,
            "reference_id": f"{domain}/{n:03d}.jpg",
            "reference_box": [0.0, 0.0, 1.0, 1.0],
            "modification_text": f"in the {n}th place",
            "target_ids": [f"{domain}/{n + QUERIES:03d}.jpg"],
            "provenance": {"annotator": "test"},
        }
        for domain in DOMAINS
        for n in range(QUERIES)
    ]
    draft = versions.start("datasets", name, "key", Made(by=name), root=root)
    storage.write_table(draft.path("quadruples/0.parquet"), conform(pa.Table.from_pylist(rows), "quadruples"))
    files = [versions.file_entry(draft.url, "quadruples/0.parquet", len(rows))]
    return draft.commit(content_hash=versions.content_hash({"quadruples": name}), files=files)


def make_evaluation(
    dataset: versions.Version,
    root: str,
    name: str,
    rank: Callable[[int], int],
    *,
    benchmark: Benchmark = BUILT,
    gallery: str = "one",
    split: str = "test",
    key: str = "key",
    **changes: Any,
) -> versions.Version:
    """An evaluation in which the n-th query of each domain has its target and its instance at `rank(n)`.

    Args:
        dataset: of `make_benchmark`.
        root, name: where it lies and what it is called.
        rank: 1 = best.
        benchmark: by which it is measured.
        gallery: what its galleries' hash follows from.
        split: of the benchmark, by name alone.
        key: begins the version's.
        changes: of its figures.
    """
    results = [_result(domain, rank, gallery) for domain in DOMAINS]
    figures = summary.figures(results, 100, 0, benchmark) | {
        "split": split,
        "model": {"name": name, "url": f"{root}/runs/{name}", "content_hash": f"{name:0<64}"},
        "dataset": {
            "name": dataset.manifest.name,
            "url": dataset.url,
            "content_hash": dataset.manifest.content_hash,
            "notes": [],
        },
        "absent": {},
        "unseen": None,
        "asked": {"reference_view": "full", "text_entity": "none", "region": "box", "regions": {"mask": 0, "box": 160}},
    }  # fmt: skip
    figures |= changes
    figures["notes"] = summary.notes(figures)
    draft = versions.start("evaluations", name, f"{key}-{split}-{gallery}", Made(by=name), root=root)
    files = []
    for result in results:
        path = f"rankings/{result.task.domain}.parquet"
        storage.write_table(draft.path(path), rankings_table(result))
        files.append(versions.file_entry(draft.url, path, QUERIES))
    return draft.commit(
        content_hash=versions.content_hash({"rankings": f"{name} {gallery}"}),
        files=files,
        parents={"model": f"{name:0<64}", "dataset": dataset.manifest.content_hash},
        figures=figures,
    )


def _result(domain: str, rank: Callable[[int], int], gallery: str) -> DomainResult:
    numbers = range(QUERIES)
    ids = [f"{domain}/{n:03d}.jpg" for n in range(IMAGES)]
    queries = QuerySet(
        query_ids=[f"{domain}-{n:03d}" for n in numbers],
        instance_ids=[f"{domain}/{n // PER_INSTANCE}" for n in numbers],
        reference_ids=ids[:QUERIES],
        target_ids=ids[QUERIES : 2 * QUERIES],
        texts=[""] * QUERIES,
        categories=[domain] * QUERIES,
        anchors=[],
    )
    place = Gallery(f"{domain}/test", ids, [f"{domain}/{n % QUERIES // PER_INSTANCE}" for n in range(IMAGES)])
    ranks = np.array([rank(n) for n in numbers])
    task = DomainTask(domain, queries, place, f"{gallery:0<64}", 0)
    found = Ranking(Ranks(ranks, ranks), [[0]] * QUERIES, [[1.0]] * QUERIES)
    blind = dataclasses.replace(found, ranks=Ranks(ranks * 0 + 9, ranks * 0 + 9)).ranks
    return DomainResult(task, found, [None] * QUERIES, blind, blind)
