"""The Q-Former: queries and text attend to each other, queries also to the image.

Parameter names are those of transformers' `Blip2QFormerModel`, its equal in function. Written out here because AdaFocal
biases the cross-attention, reads only some rows of the last layer, and trains on CPUs:

- Cross-attention works on the standardised image tokens x̂ themselves. A key is W_k(γ∘x̂ + s) + b, so q·k = x̂·(γ∘W_kᵀq)
  plus a number that is the same for all keys, and the attended value is W_v(γ∘Σpx̂ + Σp s) + Σp b. The projections are
  applied to a handful of queries instead of hundreds of image tokens, x̂ is shared by all layers and passes, and no
  gradient has to flow into it while the tower is frozen.
- In the last layer only the rows that are read (`rows`) are computed.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig

PADDED_KEY = -10000.0
"""Added to the logits of padded text, as BERT does; exp of it is 0 in every float type."""


class ImageMemory(NamedTuple):
    """Image tokens for cross-attention: x̂ [B, N, D] of zero mean and unit variance; trained γ and shift s, [D]."""

    standardised: Tensor
    scale: Tensor
    shift: Tensor


def image_memory(tokens: Tensor, norm: nn.LayerNorm) -> ImageMemory:
    """Tower tokens [B, N, D] → the memory of `norm(tokens)`; compute it once per image, every pass can share it."""
    standardised = F.layer_norm(tokens.to(norm.weight.dtype), norm.normalized_shape, eps=norm.eps)
    return ImageMemory(standardised, norm.weight, norm.bias)


class TextEmbeddings(nn.Module):
    """Word plus position embedding of text; positions count from 0 at the text's [CLS]."""

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids [B, L] → embeddings [B, L, H]."""
        words: Tensor = self.word_embeddings(input_ids)
        return words + self.position_embeddings.weight[: input_ids.shape[1]]


class _Projections(nn.Module):
    """The query, key and value projections of one attention."""

    def __init__(self, config: Blip2QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_width = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_width, config.hidden_size)
        self.value = nn.Linear(key_width, config.hidden_size)

    def split(self, states: Tensor) -> Tensor:
        """[B, L, H] → [B, heads, L, H / heads]."""
        return states.view(*states.shape[:-1], self.heads, self.head_width).transpose(1, 2)

    @property
    def active_dropout(self) -> float:
        """Dropout of the attention weights; 0 in eval mode."""
        return self.dropout if self.training else 0.0


class _SelfProjections(_Projections):
    def forward(self, rows: Tensor, states: Tensor, mask: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        """Attention of `rows` [B, R, H] to `states` [B, L, H]; `mask` [B, 1, 1, L] is added to the logits."""
        query, key, value = (
            self.split(self.query(rows)),
            self.split(self.key(states)),
            self.split(self.value(states)),
        )
        if maps is None:
            context = F.scaled_dot_product_attention(query, key, value, mask, self.active_dropout)
        else:
            logits = query @ key.transpose(-1, -2) * self.head_width**-0.5
            weights = (logits if mask is None else logits + mask).softmax(-1)
            maps.append(weights)
            context = F.dropout(weights, self.active_dropout) @ value
        return context.transpose(1, 2).flatten(2)


class _CrossProjections(_Projections):
    def forward(
        self, rows: Tensor, image: ImageMemory, bias: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        """Attention of `rows` [B, Q, H] to the image; `bias` [B, 1, 1 or Q, N] is added to the scaled logits."""
        tokens, scale, shift = image
        batch, queries, _ = rows.shape
        heads, width, length = self.heads, self.head_width, tokens.shape[1]
        query = self.query(rows).view(batch, queries, heads, width) * width**-0.5
        key_weight = (self.key.weight * scale).view(heads, width, -1)
        key_query = torch.einsum("bqhd,hdD->bhqD", query, key_weight).flatten(1, 2)  # [B, heads·Q, D]
        logits = (key_query @ tokens.transpose(1, 2)).view(batch, heads, queries, length)
        # The same number for every key, without effect on the softmax: kept so that the key's bias has its
        # (vanishing) gradient and no optimizer meets a parameter without one.
        key_shift = (self.key.weight @ shift + self.key.bias).view(heads, width)
        constant = torch.einsum("bqhd,hd->bhq", query, key_shift).unsqueeze(-1)
        weights = (logits + (constant if bias is None else constant + bias)).softmax(-1)
        if maps is not None:
            maps.append(weights)
        weights = F.dropout(weights, self.active_dropout)
        mixed = (weights.flatten(1, 2) @ tokens).view(batch, heads, queries, -1)
        value_weight = (self.value.weight * scale).view(heads, width, -1)
        value_shift = (self.value.weight @ shift + self.value.bias).view(heads, 1, width)
        if self.active_dropout:
            value_shift = value_shift * weights.sum(-1, keepdim=True)  # dropped weights no longer sum to 1
        context = torch.einsum("bhqD,hdD->bhqd", mixed, value_weight) + value_shift
        return context.transpose(1, 2).flatten(2)


class _Residual(nn.Module):
    """Dense → dropout → LayerNorm of the sum with the block's input."""

    def __init__(self, config: Blip2QFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(states)) + residual)
        return normed


class _SelfAttention(nn.Module):
    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.attention = _SelfProjections(config, config.hidden_size)
        self.output = _Residual(config, config.hidden_size)

    def forward(self, rows: Tensor, states: Tensor, mask: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        attended: Tensor = self.output(self.attention(rows, states, mask, maps), rows)
        return attended


class _CrossAttention(nn.Module):
    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.attention = _CrossProjections(config, config.encoder_hidden_size)
        self.output = _Residual(config, config.hidden_size)

    def forward(
        self, rows: Tensor, image: ImageMemory, bias: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        attended: Tensor = self.output(self.attention(rows, image, bias, maps), rows)
        return attended


class _Intermediate(nn.Module):
    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.intermediate_size)

    def forward(self, states: Tensor) -> Tensor:
        return F.gelu(self.dense(states))


class QFormerLayer(nn.Module):
    """Joint self-attention, cross-attention of the queries (in some layers), separate feed-forwards."""

    def __init__(self, config: Blip2QFormerConfig, index: int) -> None:
        super().__init__()
        self.attention = _SelfAttention(config)
        self.crossattention: _CrossAttention | None = None
        if index % config.cross_attention_frequency == 0:
            self.crossattention = _CrossAttention(config)
        self.intermediate = _Intermediate(config)
        self.output = _Residual(config, config.intermediate_size)
        self.intermediate_query = _Intermediate(config)
        self.output_query = _Residual(config, config.intermediate_size)

    def forward(
        self,
        states: Tensor,
        query_length: int,
        mask: Tensor | None,
        image: ImageMemory,
        bias: Tensor | None,
        rows: slice,
        maps: AttentionMaps | None,
    ) -> Tensor:
        """States [B, L, H], queries first → the new states of `rows` [B, R, H]."""
        first, last, _ = rows.indices(states.shape[1])
        kept = states if last - first == states.shape[1] else states[:, first:last]
        attended = self.attention(kept, states, mask, maps.self_attention if maps else None)
        queries = max(min(query_length, last) - first, 0)
        parts = []
        if queries:
            part = attended[:, :queries]
            if self.crossattention is not None:
                part = self.crossattention(part, image, bias, maps.cross_attention if maps else None)
            parts.append(self.output_query(self.intermediate_query(part), part))
        if queries < attended.shape[1]:
            part = attended[:, queries:]
            parts.append(self.output(self.intermediate(part), part))
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)


class AttentionMaps(NamedTuple):
    """Attention weights per layer: self [B, heads, R, L], cross [B, heads, Q, N] (only layers that have it)."""

    self_attention: list[Tensor]
    cross_attention: list[Tensor]


class QFormerEncoder(nn.Module):
    """The stack of layers."""

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(QFormerLayer(config, index) for index in range(config.num_hidden_layers))


class QFormer(nn.Module):
    """The querying transformer over embeddings of [queries ; text] and an image.

    Raises:
        ValueError: the configuration asks for an activation other than the exact GELU.
    """

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        if config.hidden_act != "gelu":
            raise ValueError(
                f"qformer.hidden_act {config.hidden_act!r}: only 'gelu' (the exact form) is built"
            )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.encoder = QFormerEncoder(config)

    def forward(
        self,
        queries: Tensor,
        text: Tensor | None,
        text_mask: Tensor | None,
        image: ImageMemory,
        bias: Tensor | None = None,
        rows: slice = slice(None),
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        """One pass.

        Args:
            queries: learnable tokens that take the query places, [1, Q, H].
            text: text embeddings [B, T, H], or None for the queries alone.
            text_mask: 1 for tokens, 0 for padding, [B, T]; None if nothing is padded.
            image: what the queries attend to, batch B.
            bias: added to the scaled cross-attention logits in every layer that has them, [B, 1, 1 or Q, N].
            rows: which rows of the last hidden state to compute, of Q + T, queries first.
            maps: filled with the attention weights if given; self-attention then runs without its fused kernel.

        Returns:
            Hidden states of the last layer, [B, R, H].
        """
        batch, length = image.standardised.shape[0], queries.shape[1]
        states = queries.expand(batch, -1, -1)
        mask = None
        if text is not None:
            states = torch.cat([states.to(text.dtype), text], dim=1)
            if text_mask is not None:
                padding = (1 - text_mask[:, None, None, :].to(states.dtype)) * PADDED_KEY
                mask = F.pad(padding, (length, 0))
        states = self.dropout(self.layernorm(states))
        layers = self.encoder.layer
        for index, layer in enumerate(layers):
            wanted = rows if index == len(layers) - 1 else slice(None)
            states = layer(states, length, mask, image, bias, wanted, maps)
        return states
