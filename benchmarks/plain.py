"""AdaFocal's step as one would first write it: eager, three passes, padded texts, nothing shared or skipped.

The baseline of `benchmarks.qformer`: every pass projects keys and values of all image tokens, attention is a full
matrix, every row of the last layer is computed, scores are the broadcast product. It runs on the weights of an
`AdaFocalModel` and none of its arithmetic.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from training.model.adafocal import AdaFocalModel


def scores(queries: Tensor, targets: Tensor) -> Tensor:
    """Queries [Q, d], targets [T, M, d] → the best cosine [Q, T], from the broadcast product as in the release."""
    products = torch.matmul(queries[:, None, None, :], targets.transpose(1, 2))  # [Q, T, 1, M]
    return products.squeeze(2).max(dim=-1).values


def encode_query(
    model: AdaFocalModel, tokens: Tensor, input_ids: Tensor, attention_mask: Tensor, patch_mask: Tensor
) -> Tensor:
    """Reference tokens [B, N, D], padded text [B, L] and patch mask [B, N] → query vectors [B, d]."""
    assert model.caam is not None
    image = model.vision_norm(tokens)
    positions = model.embeddings.position_embeddings.weight[: input_ids.shape[1]]
    text = model.embeddings.word_embeddings(input_ids) + positions
    probes, queries = model.caam.probe_tokens, model.query_tokens
    hidden = _encode(model, probes, text, attention_mask, image, None)
    beta = model.caam.crm(hidden[:, : probes.shape[1]])
    bias = beta[:, None, :, None] * patch_mask[:, None, None, :]
    hidden = _encode(model, queries, text, attention_mask, image, bias)
    return F.normalize(model.text_projection(hidden[:, queries.shape[1]]), dim=-1)


def encode_target(model: AdaFocalModel, tokens: Tensor) -> Tensor:
    """Target tokens [B, N, D] → [B, M, d]."""
    hidden = _encode(model, model.query_tokens, None, None, model.vision_norm(tokens), None)
    return F.normalize(model.vision_projection(hidden), dim=-1)


def _encode(
    model: AdaFocalModel,
    queries: Tensor,
    text: Tensor | None,
    attention_mask: Tensor | None,
    image: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """One pass over [queries ; text] → all hidden states [B, Q + L, H]."""
    count, states = queries.shape[1], queries.expand(len(image), -1, -1)
    mask = None
    if text is not None and attention_mask is not None:
        states = torch.cat([states, text], dim=1)
        everything = F.pad(attention_mask, (count, 0), value=1)
        mask = (1.0 - everything[:, None, None, :].to(text.dtype)) * -10000.0
    states = model.qformer.layernorm(states)
    for layer in model.qformer.encoder.layer:
        states = _layer(layer, states, count, mask, image, bias)
    return states


def _layer(
    layer: Any, states: Tensor, count: int, mask: Tensor | None, image: Tensor, bias: Tensor | None
) -> Tensor:
    states = _residual(
        layer.attention.output, _attend(layer.attention.attention, states, states, mask), states
    )
    queries, text = states[:, :count], states[:, count:]
    if layer.crossattention is not None:
        context = _attend(layer.crossattention.attention, queries, image, bias)
        queries = _residual(layer.crossattention.output, context, queries)
    queries = _residual(layer.output_query, F.gelu(layer.intermediate_query.dense(queries)), queries)
    text = _residual(layer.output, F.gelu(layer.intermediate.dense(text)), text)
    return torch.cat([queries, text], dim=1)


def _attend(projections: Any, states: Tensor, memory: Tensor, bias: Tensor | None) -> Tensor:
    query, key, value = (
        part.unflatten(-1, (projections.heads, -1)).transpose(1, 2)
        for part in (projections.query(states), projections.key(memory), projections.value(memory))
    )
    logits = query @ key.transpose(-1, -2) / projections.head_width**0.5
    weights = (logits if bias is None else logits + bias).softmax(dim=-1)
    return (weights @ value).transpose(1, 2).flatten(2)


def _residual(block: Any, update: Tensor, states: Tensor) -> Tensor:
    normed: Tensor = block.LayerNorm(block.dense(update) + states)
    return normed
