"""Training losses: pure functions of similarities, and the terms that methods weigh into their objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from training.model.interfaces import LossContext, Rep


def info_nce(
    similarity: Tensor, temperature: Tensor | float, labels: Tensor, excluded: Tensor | None = None
) -> Tensor:
    """One-way InfoNCE, queries over targets: mean cross-entropy of similarity / temperature, in nats.

    Args:
        similarity: cosine of every query with every target of the (global) batch, [B, T].
        temperature: positive scalar; a tensor may be learnable.
        labels: column of each query's own target, [B].
        excluded: true where a column does not count for a query, bool [B, T]; never its own target's.
    """
    logits = similarity / temperature
    if excluded is not None:
        logits = logits.masked_fill(excluded, float("-inf"))
    return F.cross_entropy(logits, labels)


def false_negatives(images: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """Which columns are right answers of a query without being the one it is trained on, bool [B, T].

    Args:
        images: which image each column is, as numbers that equal images share, [T].
        right: those that are right for each query, [B, A].
        labels: column of each query's own target, [B]; it always counts.
    """
    found = torch.zeros(len(right), len(images), dtype=torch.bool, device=images.device)
    for one in right.unbind(1):  # one by one: [B, A, T] may be large beside a memory bank
        found |= images == one[:, None]
    return found.scatter(1, labels[:, None], value=False)


def over_columns(context: LossContext, queries: Rep) -> Tensor:
    """InfoNCE of some representation of the queries over the targets and all further negatives, in nats."""
    scores = context.scorer(queries, context.targets)
    if context.negatives is not None:
        scores = torch.cat([scores, context.scorer(queries, context.negatives)], dim=1)
    return info_nce(scores, context.temperature, context.labels, context.excluded)


def query_to_target(context: LossContext) -> Tensor:
    """InfoNCE of the queries over the targets (AdaFocal Eq. 5; SPRC's itc), in nats."""
    return over_columns(context, context.query.embedding)


def text_to_target(context: LossContext) -> Tensor:
    """InfoNCE of text with the learnable prompts, without the image, over the targets (SPRC's rtc), in nats."""
    return over_columns(context, context.query.extras["text_only"])


def prompt_alignment(context: LossContext) -> Tensor:
    """Mean squared distance of the fused tokens' mean to the prompts' mean, which stays fixed (SPRC's align)."""
    fused, prompts = context.query.extras["fused"], context.query.extras["prompts"]
    return F.mse_loss(fused, prompts.detach())
