"""Training losses: pure functions of similarities, and the terms that methods weigh into their objective."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from training.model.interfaces import LossContext


def info_nce(similarity: Tensor, temperature: Tensor | float, labels: Tensor) -> Tensor:
    """One-way InfoNCE, queries over targets: mean cross-entropy of similarity / temperature, in nats.

    Args:
        similarity: cosine of every query with every target of the (global) batch, [B, T].
        temperature: positive scalar; a tensor may be learnable.
        labels: column of each query's own target, [B].
    """
    return F.cross_entropy(similarity / temperature, labels)


def query_to_target(context: LossContext) -> Tensor:
    """InfoNCE of the queries over the targets (AdaFocal Eq. 5; SPRC's itc), in nats."""
    scores = context.scorer(context.query.embedding, context.targets)
    return info_nce(scores, context.temperature, context.labels)


def text_to_target(context: LossContext) -> Tensor:
    """InfoNCE of text with the learnable prompts, without the image, over the targets (SPRC's rtc), in nats."""
    scores = context.scorer(context.query.extras["text_only"], context.targets)
    return info_nce(scores, context.temperature, context.labels)


def prompt_alignment(context: LossContext) -> Tensor:
    """Mean squared distance of the fused tokens' mean to the prompts' mean, which stays fixed (SPRC's align)."""
    fused, prompts = context.query.extras["fused"], context.query.extras["prompts"]
    return F.mse_loss(fused, prompts.detach())
