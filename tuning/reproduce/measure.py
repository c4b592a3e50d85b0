"""What is kept of a trained model: the ranks of every test query, as it is asked and with wrong boxes, and its β."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from infra.base.versions import Version

if TYPE_CHECKING:
    from pipelines.retrieval.engine import Encoder
    from pipelines.retrieval.inputs import DomainTask
    from pipelines.retrieval.protocols.base import Ranks

OWN, TEXT_ONLY, REFERENCE_ONLY = "own", "text only", "reference only"
SHIFTED_BELOW = 0.8
"""The paper scales a box to IoU 0.8, and scales and shifts it to IoU 0.5."""
CHUNK = 256
"""Queries ranked at a time."""
SCHEMA = pa.schema(
    [
        ("variant", pa.string()),
        ("query_id", pa.string()),
        ("instance_id", pa.string()),
        ("domain", pa.string()),
        ("target_rank", pa.int32()),
        ("instance_rank", pa.int32()),
        ("beta", pa.float64()),
        ("box_share", pa.float64()),
        ("words", pa.int32()),
    ]
)
"""A row for each query and variant (own, a wrong box, a blind baseline); β is the mean over the query tokens, null
where none was used; box_share is the box's share of the image's area; words are those of the text."""


def box_variant(iou: float) -> str:
    """The name of the variant that is asked with boxes of that IoU."""
    return f"box IoU {iou:g}"


def measured(
    run: Version,
    root: str,
    dataset: Version,
    domains: Sequence[str] | None,
    ious: Sequence[float],
    blind: int,
) -> pa.Table:
    """Rank the test galleries by the model of a run.

    Args:
        run: a finished training.
        root: where its features lie.
        dataset: the benchmark.
        domains: that are ranked; None all.
        ious: of the wrong boxes it is asked with as well.
        blind: foreign halves over which the blind baselines average; 0 leaves them out.

    Returns:
        rows of `SCHEMA`.
    """
    from pipelines.retrieval.engine import Encoder
    from pipelines.retrieval.inputs import StoreTokens, find_model, load_tasks, require_features
    from training.stores import joined

    place = find_model(root, run.url)
    model, processor = place.load(with_tower=False)
    stores = require_features(root, None, place, dataset, processor)
    encoder = Encoder(model, processor, StoreTokens(joined(stores)))
    tasks = [t for t in load_tasks(dataset, "test") if domains is None or t.domain in domains]
    return pa.concat_tables([_domain(encoder, task, ious, blind) for task in tasks])


def _domain(encoder: Encoder, task: DomainTask, ious: Sequence[float], blind: int) -> pa.Table:
    import torch

    from pipelines.retrieval import baselines
    from pipelines.retrieval.robustness.apply import perturb
    from pipelines.retrieval.robustness.config import PerturbSection

    queries, gallery = task.queries, task.gallery
    targets = torch.cat(list(encoder.targets(gallery.image_ids)))
    tables = [_ranked(encoder, task, OWN, targets)]
    for iou in ious:
        section = PerturbSection(box="scaled" if iou >= SHIFTED_BELOW else "shifted", box_iou=iou)
        (other,), _ = perturb([task], section, encoder.processor)
        tables.append(_ranked(encoder, other, box_variant(iou), targets))
    lent = baselines.lenders(queries, blind, 0) if blind else None
    if lent is not None:
        borrowed = baselines.borrow(encoder, encoder.prepare(queries), lent)
        scorer = encoder.model.score
        text = baselines.text_only(scorer, borrowed, lent, queries, gallery, targets, CHUNK)
        reference = baselines.reference_only(scorer, borrowed, targets, CHUNK)
        for variant, scored in ((TEXT_ONLY, text), (REFERENCE_ONLY, reference)):
            tables.append(_table(task, variant, _joined(task, scored), None))
    return pa.concat_tables(tables)


def _ranked(encoder: Encoder, task: DomainTask, variant: str, targets: Any) -> pa.Table:
    from pipelines.retrieval.baselines import chunks
    from pipelines.retrieval.engine import encode_queries, score

    vectors, betas = encode_queries(encoder, encoder.prepare(task.queries))
    scored = (
        (rows, score(encoder.model.score, vectors[rows], targets))
        for rows in chunks(len(task.queries), CHUNK)
    )
    return _table(task, variant, _joined(task, scored), betas)


def _joined(task: DomainTask, scored: Any) -> Ranks:
    from pipelines.retrieval.engine import join, rank

    return join([rank(scores, task.queries, rows, task.gallery, 1) for rows, scores in scored]).ranks


def _table(
    task: DomainTask, variant: str, ranks: Ranks, betas: Sequence[Sequence[float] | None] | None
) -> pa.Table:
    queries = task.queries
    count = len(queries)
    means = [None if b is None else float(np.mean(b)) for b in betas or [None] * count]
    return pa.table(
        {
            "variant": [variant] * count,
            "query_id": queries.query_ids,
            "instance_id": queries.instance_ids,
            "domain": [task.domain] * count,
            "target_rank": ranks.target.astype(np.int32),
            "instance_rank": ranks.instance.astype(np.int32),
            "beta": means,
            "box_share": [_share(a.box, a.size) for a in queries.anchors],
            "words": [len(text.split()) for text in queries.texts],
        },
        schema=SCHEMA,
    )


def _share(box: Sequence[float] | None, size: tuple[int, int]) -> float | None:
    return None if box is None else (box[2] - box[0]) * (box[3] - box[1]) / (size[0] * size[1])
