"""Blind baselines: how far a model comes that sees only the text, or only the reference with its box.

A blank image or an empty text would ask the model about inputs it has never seen, and a collapse there says nothing
about the benchmark. Here the hidden half is marginalised instead, with inputs the model knows: the score of a candidate
is the mean over k other queries of the domain and split that lend their reference and box (text-only) or their text
(reference-only). They always come from other instances, from k different ones where there are as many, because a query
of the same instance would give away what is hidden.

Text-only leaves out, for each candidate, a lender that shows the candidate's own instance: otherwise images of the
lenders' instances would crowd the top and make the baseline look weaker than the text is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

from pipelines.retrieval.engine import (
    Encoder,
    Floats,
    Gallery,
    Ints,
    Prepared,
    QuerySet,
    encode_queries,
    score,
)

if TYPE_CHECKING:
    import torch


def lenders(queries: QuerySet, count: int, seed: int) -> Ints | None:
    """Which `count` queries lend their half to each query, [Q, count]; None if the domain has one instance only.

    The draw of a query depends on the seed, its own id and the instances of the domain, not on the order of the work.
    """
    members: dict[str, list[int]] = {}
    for index, instance in enumerate(queries.instance_ids):
        members.setdefault(instance, []).append(index)
    instances = sorted(members)
    if len(instances) < 2:
        return None
    drawn = np.empty((len(queries), count), np.int64)
    for index, query_id in enumerate(queries.query_ids):
        digest = hashlib.sha256(f"{seed}\0{query_id}".encode()).digest()
        generator = np.random.default_rng(int.from_bytes(digest[:8]))
        others = [name for name in instances if name != queries.instance_ids[index]]
        chosen = generator.choice(len(others), count, replace=len(others) < count)
        drawn[index] = [members[others[i]][generator.integers(len(members[others[i]]))] for i in chosen]
    return drawn


def text_only(
    encoder: Encoder,
    prepared: Prepared,
    queries: QuerySet,
    gallery: Gallery,
    targets: torch.Tensor,
    drawn: Ints,
    chunk: int,
) -> Iterator[tuple[slice, Floats]]:
    """Scores [chunk, T] of each query's text with lent references, chunk by chunk."""
    names = {name: code for code, name in enumerate(sorted({*gallery.instance_ids, *queries.instance_ids}))}
    owner = np.array([names[name] for name in gallery.instance_ids])
    lender = np.array([names[name] for name in queries.instance_ids])
    vectors = [encode_queries(encoder, prepared, reference_of=drawn[:, k])[0] for k in range(drawn.shape[1])]
    for rows in chunks(len(queries), chunk):
        total = np.zeros((rows.stop - rows.start, len(gallery)))
        every, foreign = total.copy(), total.copy()
        for k, vector in enumerate(vectors):
            scores = score(vector[rows], targets)
            strange = lender[drawn[rows, k]][:, None] != owner[None, :]
            every += scores
            total += np.where(strange, scores, 0.0)
            foreign += strange
        mean = np.where(foreign > 0, total / np.maximum(foreign, 1), every / len(vectors))
        yield rows, mean.astype(np.float32)


def reference_only(
    encoder: Encoder,
    prepared: Prepared,
    queries: QuerySet,
    targets: torch.Tensor,
    drawn: Ints,
    chunk: int,
) -> Iterator[tuple[slice, Floats]]:
    """Scores [chunk, T] of each query's reference and box with lent texts, chunk by chunk."""
    vectors = [encode_queries(encoder, prepared, text_of=drawn[:, k])[0] for k in range(drawn.shape[1])]
    for rows in chunks(len(queries), chunk):
        total = np.zeros((rows.stop - rows.start, len(targets)))
        for vector in vectors:
            total += score(vector[rows], targets)
        yield rows, (total / len(vectors)).astype(np.float32)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` over 0 … count."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))
