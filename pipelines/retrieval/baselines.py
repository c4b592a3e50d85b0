"""Blind baselines: how far a model comes that sees only the text, or only the reference with its box.

A blank image or an empty text would ask the model about inputs it has never seen, and a collapse there says nothing
about the benchmark. Here the hidden half is marginalised instead, with inputs the model knows: the score of a candidate
is the mean over k other queries of the domain and split that lend their reference and box (text-only) or their text
(reference-only). They always come from other instances, from k different ones where there are many, because a query
of the same instance would give away what is hidden.

Text-only leaves out, for each candidate, a lender that shows the candidate's own instance: otherwise images of the
lenders' instances would crowd the top and make the baseline look weaker than the text is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pipelines.retrieval.engine import (
    Asked,
    Floats,
    Gallery,
    Ints,
    QuerySet,
    encode_queries,
    score,
)

if TYPE_CHECKING:
    import torch

    from training.model.interfaces import Rep, Scorer


@dataclass(frozen=True)
class Lenders:
    """Which queries lend their half to each query, [Q, k] each."""

    references: Ints
    texts: Ints


@dataclass(frozen=True)
class Borrowed:
    """Query vectors of all lent combinations [U, d], and which of them belong to each query, [Q, k] each."""

    vectors: torch.Tensor
    with_own_text: Ints
    with_own_reference: Ints


def lenders(queries: QuerySet, count: int, seed: int) -> Lenders | None:
    """Who lends what to each query; None if all queries are of one instance.

    The queries stand in a circle, grouped by instance, in an order drawn by seed; each takes the reference of those
    `count` steps ahead and the text of those as many steps behind, with steps longer than the largest group. So a
    reference lent to a text is a text lent to that reference, and one query vector serves both baselines. Where a group
    is too large for that, steps that end in the own group go on behind it.
    """
    total = len(queries)
    order = sorted(
        range(total), key=lambda i: (_lot(seed, queries.instance_ids[i]), _lot(seed, queries.query_ids[i]))
    )
    standing = [queries.instance_ids[i] for i in order]
    first = np.array([i == 0 or standing[i] != standing[i - 1] for i in range(total)])
    starts = np.flatnonzero(first)
    if len(starts) < 2:
        return None
    group = np.cumsum(first) - 1
    sizes = np.diff(np.append(starts, total))
    shortest = int(sizes.max()) if 2 * sizes.max() + count <= total + 1 else 1
    steps = shortest + (total - 2 * shortest) * np.arange(count) // max(1, count - 1)
    places, back = np.array(order), np.argsort(order)
    here = np.arange(total)[:, None]
    start, size = starts[group][:, None], sizes[group][:, None]

    def reach(where: Ints) -> Ints:
        inside = group[where] == group[here]
        behind = (start + size + (where - start) % (total - size)) % total
        return places[np.where(inside, behind, where)][back]

    return Lenders(reach((here + steps) % total), reach((here - steps) % total))


def borrow(encoder: Asked, prepared: Any, lent: Lenders) -> Borrowed:
    """Encode every combination of a reference and a text that the baselines need, each once."""
    total, count = lent.references.shape
    own = np.repeat(np.arange(total)[:, None], count, axis=1)
    pairs = np.concatenate([lent.references * total + own, own * total + lent.texts])
    unique, where = np.unique(pairs, return_inverse=True)
    vectors, _ = encode_queries(encoder, prepared, unique // total, unique % total)
    where = where.reshape(pairs.shape)
    return Borrowed(vectors, where[:total], where[total:])


def text_only(
    scorer: Scorer,
    borrowed: Borrowed,
    lent: Lenders,
    queries: QuerySet,
    gallery: Gallery,
    targets: Rep,
    chunk: int,
) -> Iterator[tuple[slice, Floats]]:
    """Scores [chunk, T] of each query's text with lent references, chunk by chunk."""
    names = {name: code for code, name in enumerate(sorted({*gallery.instance_ids, *queries.instance_ids}))}
    owner = np.array([names[name] for name in gallery.instance_ids])
    lender = np.array([names[name] for name in queries.instance_ids])
    count = lent.references.shape[1]
    for rows in chunks(len(queries), chunk):
        total = np.zeros((rows.stop - rows.start, len(gallery)))
        every, foreign = total.copy(), total.copy()
        for k in range(count):
            scores = score(scorer, borrowed.vectors[borrowed.with_own_text[rows, k]], targets)
            strange = lender[lent.references[rows, k]][:, None] != owner[None, :]
            every += scores
            total += np.where(strange, scores, 0.0)
            foreign += strange
        mean = np.where(foreign > 0, total / np.maximum(foreign, 1), every / count)
        yield rows, mean.astype(np.float32)


def reference_only(
    scorer: Scorer, borrowed: Borrowed, targets: Rep, chunk: int
) -> Iterator[tuple[slice, Floats]]:
    """Scores [chunk, T] of each query's reference and box with lent texts, chunk by chunk."""
    total, count = borrowed.with_own_reference.shape
    for rows in chunks(total, chunk):
        scores = np.zeros((rows.stop - rows.start, len(targets)))
        for k in range(count):
            scores += score(scorer, borrowed.vectors[borrowed.with_own_reference[rows, k]], targets)
        yield rows, (scores / count).astype(np.float32)


def chunks(count: int, size: int) -> Iterator[slice]:
    """Slices of at most `size` over 0 … count."""
    for start in range(0, count, size):
        yield slice(start, min(count, start + size))


def _lot(seed: int, name: str) -> str:
    return hashlib.sha256(f"{seed}\0{name}".encode()).hexdigest()
