"""Exact top K of the max-over-set score, in chunks: the same columns and scores however the work is cut.

A score is the largest of the M inner products of a query with a target's vectors, as the real number it is, rounded to
float32; ties go to the smaller column. Single-precision products, which differ in their last bits between block shapes,
only screen: whatever lies within their error bound of the K-th best is scored again in double precision, and where even
that leaves the rounding to float32 open, by an exactly rounded sum. So neither chunks nor shards nor workers nor the
machine change a bit of the result, at the cost of one single-precision product.

Memory: beside queries, targets and the result, at most `chunk_bytes` of products and scores.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from torch import Tensor

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
CHUNK_BYTES = 2**26
"""64 MiB: large enough for the products to be the whole cost, small beside a gallery."""
PRODUCT_BYTES = 2**22
"""Of the chunk, products held before their maximum is taken: what stays in a core's cache."""
MAXIMA = 8
"""Times k: from so many maxima the bound of a query's candidates is taken."""
NOT_FINITE = "a vector holds NaN or infinity, or is too long"
NOTHING = -1
"""The column of a query that removes none, and of the places behind the last candidate."""


class Best(NamedTuple):
    """The best candidates of each query, best first."""

    columns: Ints
    """[Q, K]; -1 where a query has fewer candidates."""
    scores: Floats
    """[Q, K]; -inf there."""

    def rows(self) -> tuple[list[list[int]], list[list[float]]]:
        """Columns and scores of each query as lists, without the empty places."""
        counts = (self.columns != NOTHING).sum(1)
        columns, scores = self.columns.tolist(), self.scores.tolist()
        kept = [row[:n] for row, n in zip(columns, counts, strict=True)]
        return kept, [row[:n] for row, n in zip(scores, counts, strict=True)]


def search(
    queries: Tensor,
    targets: Tensor | Iterable[Tensor],
    k: int,
    removed: Ints | None = None,
    first: int = 0,
    chunk_bytes: int = CHUNK_BYTES,
) -> Best:
    """The K best targets of each query.

    Args:
        queries: vectors, float32 [Q, d].
        targets: M vectors of each target, float32 [T, M, d], or blocks of them in order, so that a gallery need never
            be in memory as a whole.
        k: how many.
        removed: the column taken out of each query's ranking, -1 for none, [Q].
        first: the column of the first target, where these are a shard of a gallery.
        chunk_bytes: bound of what is held beside the arguments.

    Raises:
        ValueError: shapes disagree, k is not positive, or a vector is not finite.
    """
    import torch

    if k < 1 or queries.ndim != 2 or (removed is not None and len(removed) != len(queries)):
        raise ValueError(
            f"queries {tuple(queries.shape)}, k = {k}: give [Q, d], k ≥ 1 and a removed column for each"
        )
    if len(queries) and not math.isfinite(_longest(queries)):
        raise ValueError(NOT_FINITE)
    gone = np.full(len(queries), NOTHING) if removed is None else np.asarray(removed, np.int64)
    best = Best(
        np.full((len(queries), k), NOTHING, np.int64), np.full((len(queries), k), -np.inf, np.float32)
    )
    blocks = [targets] if isinstance(targets, torch.Tensor) else targets
    for block in blocks:
        if block.ndim != 3 or block.shape[2] != queries.shape[1]:
            raise ValueError(f"targets {tuple(block.shape)} do not fit queries {tuple(queries.shape)}")
        if len(block):
            best = _add(best, queries.float(), block.float(), gone, first, chunk_bytes)
        first += len(block)
    return best


def merge(parts: Sequence[Best]) -> Best:
    """The best of several shards' best, in any order of the shards."""
    columns, scores = (np.concatenate([p[n] for p in parts], axis=1) for n in (0, 1))
    k = parts[0].columns.shape[1]
    last = np.iinfo(np.int64).max
    order = np.lexsort((np.where(columns == NOTHING, last, columns), -scores), axis=1)[:, :k]
    return Best(np.take_along_axis(columns, order, 1), np.take_along_axis(scores, order, 1))


def _add(best: Best, queries: Tensor, targets: Tensor, gone: Ints, first: int, chunk_bytes: int) -> Best:
    """The best so far and of some more targets."""
    # A row of screened scores and its mask take 5 bytes a target; the other half is for products.
    rows = max(1, min(len(queries), chunk_bytes // 2 // (5 * len(targets))))
    longest = _longest(targets)
    if not math.isfinite(longest):
        raise ValueError(NOT_FINITE)
    parts = [
        _add_rows(
            Best(best.columns[start : start + rows], best.scores[start : start + rows]),
            queries[start : start + rows],
            targets,
            gone[start : start + rows] - first,
            first,
            longest,
            chunk_bytes // 2,
        )
        for start in range(0, len(queries), rows)
    ]
    return Best(np.concatenate([p.columns for p in parts]), np.concatenate([p.scores for p in parts]))


def _add_rows(
    best: Best, queries: Tensor, targets: Tensor, gone: Ints, first: int, longest: float, product_bytes: int
) -> Best:
    import torch

    k, (count, dim) = best.columns.shape[1], queries.shape
    screened = screen(queries, targets, min(product_bytes, PRODUCT_BYTES))  # [T, Q]
    inside = np.flatnonzero((gone >= 0) & (gone < len(targets)))
    screened[torch.from_numpy(gone[inside]), torch.from_numpy(inside)] = -torch.inf
    lengths = queries.norm(dim=-1).double() * longest
    # |screened - real| by the standard bound of a sum of d products in any order, and the rounding of the real score.
    error = 1.01 * (dim + 4) * 2.0**-24 * lengths
    floor = torch.from_numpy(best.scores[:, -1].astype(np.float64)).to(error) - error
    if len(targets) > k:
        floor = torch.maximum(floor, _reached(screened, k).double() - 2 * error)
    # Rounded down, so that the comparison in single precision keeps whatever the bound keeps.
    bound = torch.nextafter(floor.float(), torch.full_like(floor, -torch.inf, dtype=torch.float32))
    columns, rows = ((screened >= bound) & (screened > -torch.inf)).nonzero(as_tuple=True)
    scores = exact(queries, targets, rows, columns, lengths, min(product_bytes, PRODUCT_BYTES))
    found_rows, found_columns = rows.cpu().numpy(), columns.cpu().numpy() + first
    known = best.columns != NOTHING
    all_rows = np.concatenate([np.nonzero(known)[0], found_rows])
    all_columns = np.concatenate([best.columns[known], found_columns])
    all_scores = np.concatenate([best.scores[known], scores])
    order = np.lexsort((all_columns, -all_scores, all_rows))
    all_rows, all_columns, all_scores = all_rows[order], all_columns[order], all_scores[order]
    place = np.arange(len(all_rows)) - np.searchsorted(all_rows, all_rows)
    kept = place < k
    made = Best(np.full((count, k), NOTHING, np.int64), np.full((count, k), -np.inf, np.float32))
    made.columns[all_rows[kept], place[kept]] = all_columns[kept]
    made.scores[all_rows[kept], place[kept]] = all_scores[kept]
    return made


def _reached(screened: Tensor, k: int) -> Tensor:
    """A score that at least k targets of each query reach, and hardly more do, [Q].

    The K-th largest of maxima over a few targets each: no more than that of all, and found in a fraction of the time.
    """
    few = max(1, len(screened) // (MAXIMA * k))
    whole = len(screened) // few * few
    maxima = screened[:whole].view(-1, few, screened.shape[1]).amax(1)
    return maxima.topk(k, dim=0).values[-1]


def screen(queries: Tensor, targets: Tensor, product_bytes: int = PRODUCT_BYTES) -> Tensor:
    """Scores [T, Q] good to a bound on the rounding of single precision: `(d + 2) · 2⁻²⁴ · |q| · |t|`.

    Args:
        queries: [Q, d].
        targets: [T, M, d].
        product_bytes: of products held at a time.
    """
    import torch

    # Elsewhere torch may be told to multiply in fewer bits, where the bound does not hold.
    wide = torch.float32 if torch.get_float32_matmul_precision() == "highest" else torch.float64
    total, per_target, _ = targets.shape
    right = queries.to(wide).T.contiguous()
    step = max(1, product_bytes // (right.element_size() * per_target * len(queries)))
    result = torch.empty(total, len(queries), dtype=torch.float32, device=queries.device)
    room = torch.empty(min(step, total) * per_target, len(queries), dtype=wide, device=queries.device)
    for start in range(0, total, step):
        block = targets[start : start + step]
        # Targets in rows: the maximum then runs over whole lines of memory.
        products = torch.mm(block.to(wide).flatten(0, 1), right, out=room[: len(block) * per_target])
        result[start : start + len(block)] = products.view(len(block), per_target, -1).amax(1)
    return result


def exact(
    queries: Tensor,
    targets: Tensor,
    rows: Tensor,
    columns: Tensor,
    lengths: Tensor,
    room_bytes: int = PRODUCT_BYTES,
) -> Floats:
    """The scores of pairs, float32 [P].

    Args:
        queries: [Q, d].
        targets: [T, M, d].
        rows, columns: of the pairs; columns do not fall, [P].
        lengths: a bound of |q| · |t| for each query, float64 [Q].
        room_bytes: of copies held at a time, as far as one target and its queries allow.
    """
    import torch

    (_, dim), members = queries.shape, targets.shape[1]
    found = torch.empty(len(rows), dtype=torch.float64, device=queries.device)
    wanted = queries.double()
    which, counts = torch.unique_consecutive(columns, return_counts=True)
    starts = counts.cumsum(0) - counts
    # Targets with about as many queries are multiplied together: one at a time, each would cost more than its product.
    order, done = counts.argsort(descending=True), 0
    while done < len(order):
        most = int(counts[order[done]])
        size = max(1, room_bytes // (8 * (most * (dim + members) + 2 * members * dim)))
        some = order[done : done + size]
        places = torch.arange(most, device=queries.device)
        inside = places < counts[some][:, None]
        pairs = starts[some][:, None] + torch.where(inside, places, 0)
        products = torch.bmm(wanted[rows[pairs]], targets[which[some]].double().transpose(1, 2))
        found[pairs[inside]] = products.amax(2)[inside]
        done += size
    slack = 1.01 * (dim + 2) * 2.0**-53 * lengths[rows]
    low, high = (found - slack).float(), (found + slack).float()
    result: Floats = low.cpu().numpy()
    for pair in (low != high).nonzero().flatten().tolist():
        # Products of two float32 are exact in double precision, and fsum rounds their sum once.
        terms = wanted[rows[pair]] * targets[columns[pair]].double()
        result[pair] = np.float32(max(math.fsum(row) for row in terms.tolist()))
    return result


def _longest(vectors: Tensor) -> float:
    """The largest length of the vectors; infinite or NaN where one is not finite, or too long to be squared."""
    return float(vectors.norm(dim=-1).max())
