"""Rows without padding: linear layers, norms and feed-forwards only ever see real tokens.

A batch of B sequences [Q queries ; text of varying length] is kept as packed rows [R, C]: the queries of all samples
first, then the texts' tokens one after another. Only attention needs the padded form [B, Q + L, C].
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx

PADDED_KEY = -10000.0
"""Added to the logits of padded text, as BERT does; exp of it is 0 in every float type."""


class Layout(NamedTuple):
    """Where packed rows lie in the padded form.

    Attributes:
        batch: B.
        queries: Q, query (or probe) tokens per sample.
        length: Q + L, length of the padded form.
        places: place of every packed row in the flattened padded form [R]; None if nothing is ever padded.
        first_text: packed row of every sample's first text token [B]; None without text.
        mask: added to attention logits [B, 1, 1, Q + L]; None if nothing is padded.
    """

    batch: int
    queries: int
    length: int
    places: Tensor | None
    first_text: Tensor | None
    mask: Tensor | None


def layout_of(batch: int, queries: int, text_mask: Tensor | None) -> Layout:
    """The layout of `batch` sequences of `queries` tokens and the texts of `text_mask` [B, L] (1 = token), if any."""
    if text_mask is None:
        return Layout(batch, queries, queries, None, None, None)
    length = queries + text_mask.shape[1]
    everything = F.pad(text_mask.bool(), (queries, 0), value=True)
    place = torch.arange(batch * length, device=text_mask.device).view(batch, length)
    index = torch.cat([place[:, :queries].flatten(), place[:, queries:][everything[:, queries:]]])
    lengths = text_mask.sum(1)
    first_text = batch * queries + lengths.cumsum(0) - lengths
    mask = torch.where(everything, 0.0, PADDED_KEY)[:, None, None, :]
    return Layout(batch, queries, length, index, first_text, mask)


def pad_rows(rows: Tensor, layout: Layout) -> Tensor:
    """Packed rows [R, C] → [B, Q + L, C], zeros where padded."""
    if layout.places is None:
        return rows.view(layout.batch, layout.length, -1)
    padded: Tensor = _Pad.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        rows, layout.places, layout.batch * layout.length
    )
    return padded.view(layout.batch, layout.length, -1)


def pack_rows(padded: Tensor, layout: Layout) -> Tensor:
    """The reverse of `pad_rows`: [B, Q + L, C] → packed rows [R, C]."""
    flat = padded.flatten(0, 1)
    if layout.places is None:
        return flat
    rows: Tensor = _Pack.apply(flat, layout.places)  # type: ignore[no-untyped-call]  # as above
    return rows


class _Pad(torch.autograd.Function):
    """Rows to their places. torch's own gradient of the reverse adds rows up one by one; places are unique here."""

    @staticmethod
    def forward(ctx: FunctionCtx, rows: Tensor, index: Tensor, size: int) -> Tensor:
        ctx.save_for_backward(index)
        return rows.new_zeros(size, rows.shape[1]).index_copy_(0, index, rows)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None, None]:
        (index,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types the context too narrowly
        return gradient.index_select(0, index), None, None


class _Pack(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, flat: Tensor, index: Tensor) -> Tensor:
        ctx.save_for_backward(index)
        ctx.size = flat.shape[0]  # type: ignore[attr-defined]  # contexts take any attribute
        return flat.index_select(0, index)

    @staticmethod
    def backward(ctx: FunctionCtx, gradient: Tensor) -> tuple[Tensor, None]:
        (index,) = ctx.saved_tensors  # type: ignore[attr-defined]  # torch types the context too narrowly
        size: int = ctx.size  # type: ignore[attr-defined]  # set in forward
        return gradient.new_zeros(size, gradient.shape[1]).index_copy_(0, index, gradient), None
