"""How a worker's part of a global batch becomes gradients where it does not fit into memory at once.

Two ways, and both may recompute the layers beside:

- the batch keeps its negatives (GradCache, Gao et al. 2021): every micro-batch is encoded without keeping what lies
  between tokens and representations, the loss is taken over the whole global batch, and the backward pass encodes each
  micro-batch once more, with the same random numbers, when the gradients of its representations are known;
- every micro-batch is a contrastive batch of its own over the workers, and the gradients add up (accumulation).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from training.batches import Batch
from training.distributed import share
from training.model.adafocal import AdaFocalModel
from training.model.interfaces import QueryOutput, Rep

# The non-reentrant kind alone keeps several outputs, autocast and hooks of parameters right. It restores the random
# numbers' state, so that dropout draws the same masks again.
recomputed = partial(checkpoint, use_reentrant=False, preserve_rng_state=True)


def encode(model: AdaFocalModel, batch: Batch, micro_batch: int | None) -> tuple[QueryOutput, Rep]:
    """Queries and distinct targets of a worker's part, never more than `micro_batch` of either held at once.

    What is encoded in pieces holds nothing but the pieces' outputs. In one backward pass over the loss, torch visits
    the pieces one after another, the last first: it encodes a piece again, with the same dropout, takes the gradients
    of its parameters and lets it go. The loss itself, and with it the temperature, is differentiated once, and ZeRO
    reduces once, where a backward pass for every piece would have ZeRO-2 reduce every time.

    Args:
        model: encodes them.
        batch: b queries and u distinct targets.
        micro_batch: most queries or targets per forward; None encodes all at once.

    Returns:
        as the model's own forward.
    """
    queries = (batch.reference_tokens, batch.input_ids, batch.attention_mask, batch.patch_mask)
    if micro_batch is None or max(len(batch.reference_tokens), len(batch.target_tokens)) <= micro_batch:
        query = model.encode_query(*queries, batch.modulate)
        return query, model.encode_target(batch.target_tokens)
    parts = [
        recomputed(model.encode_query, *(t[start:end] for t in queries), batch.modulate)
        for start, end in _pieces(len(batch.reference_tokens), micro_batch)
    ]
    targets = [
        recomputed(model.encode_target, batch.target_tokens[start:end])
        for start, end in _pieces(len(batch.target_tokens), micro_batch)
    ]
    return joined_queries(parts), torch.cat(targets)


def micro_batches(batch: Batch, size: int | None, world_size: int) -> list[Batch]:
    """A worker's part cut into parts of smaller global batches, each with targets of its own.

    All workers cut into the same number of pieces, however their shares differ, and the n-th pieces of all workers are
    one global batch of which each holds its `share`.

    Args:
        batch: a worker's part of a global batch.
        size: most queries of a piece; None leaves the part whole.
        world_size: workers.
    """
    shares = [end - start for start, end in (share(batch.total, r, world_size) for r in range(world_size))]
    count = 1 if size is None else -(-shares[0] // size)
    if count == 1:
        return [batch]
    return [_piece(batch, n, count, shares) for n in range(count)]


def _piece(batch: Batch, n: int, count: int, shares: Sequence[int]) -> Batch:
    start, end = share(len(batch.reference_tokens), n, count)
    indices = [batch.target_index, *([] if batch.reference_index is None else [batch.reference_index])]
    shown, index = torch.unique(torch.stack([i[start:end] for i in indices]), return_inverse=True)
    bounds = [share(of_worker, n, count) for of_worker in shares]
    rows = _rows_of_piece(bounds, shares, batch.target_index.device)
    return Batch(
        batch.reference_tokens[start:end],
        batch.target_tokens[shown],
        index[0],
        batch.input_ids[start:end],
        batch.attention_mask[start:end],
        batch.patch_mask[start:end],
        batch.modulate,  # of the whole batch still: no worker skips in one piece what others wait for
        sum(e - s for s, e in bounds),
        None if batch.reference_index is None else index[1],
        None if batch.target_images is None else batch.target_images[rows],
        None if batch.reference_images is None else batch.reference_images[rows],
        None if batch.right_images is None else batch.right_images[start:end],
    )


def _rows_of_piece(
    bounds: Sequence[tuple[int, int]], shares: Sequence[int], device: torch.device
) -> torch.Tensor:
    """The rows of the global batch that all workers' pieces hold, in rank order, from each worker's bounds."""
    firsts = itertools.accumulate(shares, initial=0)
    runs = [
        torch.arange(first + s, first + e, device=device)
        for first, (s, e) in zip(firsts, bounds, strict=False)
    ]
    return torch.cat(runs)


def joined_queries(parts: Sequence[QueryOutput]) -> QueryOutput:
    """Outputs of consecutive queries as one."""
    betas = [part.beta for part in parts if part.beta is not None]
    return QueryOutput(
        torch.cat([part.embedding for part in parts]),
        torch.cat(betas) if betas else None,
        {name: torch.cat([part.extras[name] for part in parts]) for name in parts[0].extras},
    )


def recompute_layers(model: nn.Module) -> None:
    """Keep of every layer its input alone, and compute the layer again in the backward pass.

    Sets what transformers' own layers go by, so that its towers follow as well as the Q-Former and the CRM.
    """
    for module in model.modules():
        if hasattr(module, "gradient_checkpointing"):
            layer: Any = module
            layer.gradient_checkpointing, layer._gradient_checkpointing_func = True, recomputed


def _pieces(count: int, most: int) -> Iterator[tuple[int, int]]:
    """Bounds of as few pieces as `most` allows, which differ by at most one row; none is empty."""
    pieces = -(-count // most)
    for n in range(pieces):
        yield share(count, n, pieces)
