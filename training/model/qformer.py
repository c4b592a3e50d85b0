"""The Q-Former: queries and text attend to each other, queries also to the image.

Parameter names are those of transformers' `Blip2QFormerModel`, its equal in function. Written out here because AdaFocal
biases the cross-attention, reads only some rows of the last layer, and trains on CPUs:

- Rows are packed (`packing.py`): padded text costs nothing outside attention.
- Cross-attention works on the standardised image tokens x̂ themselves. A key is W_k(γ∘x̂ + s) + b, so q·k = x̂·(γ∘W_kᵀq)
  plus a number that is the same for all keys, and the attended value is W_v(γ∘Σpx̂ + Σp s) + Σp b. The projections are
  applied to a handful of queries instead of hundreds of image tokens, x̂ is shared by all layers and passes, and no
  gradient has to flow into it while the tower is frozen.
- In the last layer only the rows that are read are computed.
- A pass may do without an image (SPRC's second): every row then takes the text's feed-forward, as in the release.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Blip2QFormerConfig

from training.model.dropout import Dropout, dropout
from training.model.packing import Layout, layout_of, pack_rows, pad_rows
from training.model.products import head_product, joint_linear

Read = Literal["all", "queries", "text_cls"]
"""Which rows of the last hidden state are wanted."""


class ImageMemory(NamedTuple):
    """Image tokens for cross-attention: x̂ [B, N, D] of zero mean and unit variance; trained γ and shift s, [D]."""

    standardised: Tensor
    scale: Tensor
    shift: Tensor


def image_memory(tokens: Tensor, norm: nn.LayerNorm) -> ImageMemory:
    """Tower tokens [B, N, D] → the memory of `norm(tokens)`; compute it once per image, every pass can share it."""
    standardised = F.layer_norm(tokens.to(norm.weight.dtype), norm.normalized_shape, eps=norm.eps)
    return ImageMemory(standardised, norm.weight, norm.bias)


class Text(NamedTuple):
    """Embedded text without its padding: `rows` [S, H] of all samples in turn; `mask` [B, L], 1 for tokens."""

    rows: Tensor
    mask: Tensor


class TextEmbeddings(nn.Module):
    """Word plus position embedding of text; positions count from 0 at the text's [CLS]."""

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(
            config.vocab_size, config.hidden_size, padding_idx=config.pad_token_id
        )
        self.position_embeddings = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Text:
        """Token ids and mask [B, L], padded on the right → the tokens' embeddings."""
        real = attention_mask.bool()
        positions = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        return Text(
            self.word_embeddings(input_ids[real]) + self.position_embeddings(positions[real]), attention_mask
        )


class AttentionMaps(NamedTuple):
    """Attention weights, one entry per layer that has it: self [B, heads, R, Q + L], cross [B, heads, Q, N]."""

    self_attention: list[Tensor]
    cross_attention: list[Tensor]


class _Projections(nn.Module):
    """The query, key and value projections of one attention."""

    def __init__(self, config: Blip2QFormerConfig, key_width: int) -> None:
        super().__init__()
        self.heads = config.num_attention_heads
        self.head_width = config.hidden_size // config.num_attention_heads
        self.dropout = config.attention_probs_dropout_prob
        self.fused = config._attn_implementation != "eager"
        self.query = nn.Linear(config.hidden_size, config.hidden_size)
        self.key = nn.Linear(key_width, config.hidden_size)
        self.value = nn.Linear(key_width, config.hidden_size)


class _SelfProjections(_Projections):
    def forward(self, rows: Tensor, layout: Layout, read: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        """Attention of the rows to all rows of their sample.

        Args:
            rows: packed rows [R, H].
            layout: where they lie.
            read: rows that ask, the same number per sample [B·r]; None lets all rows ask.
            maps: receives the weights if given.

        Returns:
            Packed context [R, H], or [B·r, H].
        """
        if read is None:
            joined = joint_linear(rows, self.query, self.key, self.value)
            query, key, value = pad_rows(joined, layout).chunk(3, dim=-1)
        else:
            key, value = pad_rows(joint_linear(rows, self.key, self.value), layout).chunk(2, dim=-1)
            query = self.query(rows[read]).view(layout.batch, -1, key.shape[-1])
        context = self._attend(query, key, value, layout.mask, maps)
        return pack_rows(context, layout) if read is None else context.flatten(0, 1)

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, maps: list[Tensor] | None
    ) -> Tensor:
        query, key, value = (
            part.view(*part.shape[:-1], self.heads, self.head_width).transpose(1, 2)
            for part in (query, key, value)
        )
        active = self.dropout if self.training else 0.0
        mask = None if mask is None else mask.to(query.dtype)
        if maps is None and self.fused and (active == 0 or query.is_cuda):
            context = F.scaled_dot_product_attention(query, key, value, mask, active)
        else:  # torch's CPU kernel knows no dropout and falls back to something several times slower than this
            logits = query * self.head_width**-0.5 @ key.transpose(-1, -2)
            weights = (logits if mask is None else logits + mask).softmax(-1)
            if maps is not None:
                maps.append(weights)
            context = dropout(weights, self.dropout, self.training) @ value
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
        key_query = head_product(query, self.key.weight, scale, inward=True)  # [B, Q, heads, D]
        logits = (key_query.flatten(1, 2) @ tokens.transpose(1, 2)).view(batch, queries, heads, length)
        # The same number for every key, without effect on the softmax: kept so that the key's bias has its
        # (vanishing) gradient and no optimizer meets a parameter without one.
        key_shift = (self.key.weight @ shift + self.key.bias).view(heads, width)
        constant = torch.einsum("bqhd,hd->bqh", query, key_shift).unsqueeze(-1)
        weights = (logits + (constant if bias is None else constant + bias.transpose(1, 2))).softmax(-1)
        if maps is not None:
            maps.append(weights.transpose(1, 2))
        weights = dropout(weights, self.dropout, self.training)
        mixed = (weights.flatten(1, 2) @ tokens).view(batch, queries, heads, -1)  # [B, Q, heads, D]
        value_shift = (self.value.weight @ shift + self.value.bias).view(heads, width)
        if self.training and self.dropout:
            value_shift = value_shift * weights.sum(-1, keepdim=True)  # dropped weights no longer sum to 1
        context = head_product(mixed, self.value.weight, scale, inward=False) + value_shift
        return context.flatten(2)


class _Residual(nn.Module):
    """Dense → dropout → LayerNorm of the sum with the block's input."""

    def __init__(self, config: Blip2QFormerConfig, width: int) -> None:
        super().__init__()
        self.dense = nn.Linear(width, config.hidden_size)
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)

    def forward(self, states: Tensor, residual: Tensor) -> Tensor:
        normed: Tensor = self.LayerNorm(self.dropout(self.dense(states)) + residual)
        return normed


class _SelfAttention(nn.Module):
    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        self.attention = _SelfProjections(config, config.hidden_size)
        self.output = _Residual(config, config.hidden_size)

    def forward(self, rows: Tensor, layout: Layout, read: Tensor | None, maps: list[Tensor] | None) -> Tensor:
        context = self.attention(rows, layout, read, maps)
        attended: Tensor = self.output(context, rows if read is None else rows[read])
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
        rows: Tensor,
        layout: Layout,
        image: ImageMemory | None,
        bias: Tensor | None,
        read: Read,
        maps: AttentionMaps | None,
    ) -> Tensor:
        """Packed rows [R, H] → their new states; only those of the queries [B·Q, H] or text [CLS] [B, H] if asked."""
        queries = layout.batch * layout.queries
        wanted = None
        if read == "text_cls":
            wanted = layout.first_text
        elif read == "queries" and layout.places is not None:
            wanted = torch.arange(queries, device=rows.device)
        attended = self.attention(rows, layout, wanted, maps.self_attention if maps else None)
        if read == "text_cls" or image is None:
            return self._feed_text(attended)
        if layout.places is None or read == "queries":
            return self._feed_queries(attended, layout, image, bias, maps)
        query_rows, text_rows = attended.split([queries, len(attended) - queries])
        return torch.cat(
            [self._feed_queries(query_rows, layout, image, bias, maps), self._feed_text(text_rows)]
        )

    def _feed_text(self, rows: Tensor) -> Tensor:
        new: Tensor = self.output(self.intermediate(rows), rows)
        return new

    def _feed_queries(
        self,
        rows: Tensor,
        layout: Layout,
        image: ImageMemory,
        bias: Tensor | None,
        maps: AttentionMaps | None,
    ) -> Tensor:
        if self.crossattention is not None:
            states = rows.view(layout.batch, layout.queries, -1)
            rows = self.crossattention(states, image, bias, maps.cross_attention if maps else None).flatten(
                0, 1
            )
        new: Tensor = self.output_query(self.intermediate_query(rows), rows)
        return new


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

    gradient_checkpointing = False
    """Whether the backward pass computes every layer again instead of keeping what lies in it (transformers' name)."""
    _gradient_checkpointing_func: Any = None

    def __init__(self, config: Blip2QFormerConfig) -> None:
        super().__init__()
        if config.hidden_act != "gelu":
            raise ValueError(
                f"qformer.hidden_act {config.hidden_act!r}: only 'gelu' (the exact form) is built"
            )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.dropout = Dropout(config.hidden_dropout_prob)
        self.encoder = QFormerEncoder(config)

    def forward(
        self,
        queries: Tensor,
        text: Text | None,
        image: ImageMemory | None,
        bias: Tensor | None = None,
        read: Read = "all",
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        """One pass.

        Args:
            queries: what takes the query places, [1, Q, H] (learnable tokens) or [B, Q, H].
            text: embedded text, or None for the queries alone.
            image: what the queries attend to, batch B; None for a pass without cross-attention, in which queries
                too take the text's feed-forward.
            bias: added to the scaled cross-attention logits in every layer that has them, [B, 1, 1 or Q, N].
            read: "queries" → [B, Q, H]; "text_cls" → [B, H], the text's first token; "all" → packed rows [R, H].
            maps: filled with the attention weights if given; self-attention then runs without its fused kernel.

        Returns:
            Hidden states of the last layer.

        Raises:
            ValueError: neither text nor image is given.
        """
        if image is None and text is None:
            raise ValueError("a pass of the Q-Former needs a text or an image")
        batch = len(image.standardised) if image is not None else len(text.mask)  # type: ignore[union-attr]  # see above
        count = queries.shape[1]
        layout = layout_of(batch, count, None if text is None else text.mask)
        rows = queries.expand(batch, -1, -1).flatten(0, 1)
        if text is not None:
            rows = torch.cat([rows, text.rows])
        rows = self.dropout(self.layernorm(rows))
        last = len(self.encoder.layer) - 1
        again = self.gradient_checkpointing and self.training and maps is None
        for index, layer in enumerate(self.encoder.layer):
            wanted = read if index == last else "all"
            if again:
                rows = self._gradient_checkpointing_func(layer, rows, layout, image, bias, wanted, None)
            else:
                rows = layer(rows, layout, image, bias, wanted, maps)
        return rows.view(batch, count, -1) if read == "queries" else rows
