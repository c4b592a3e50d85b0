"""Products whose backward pass keeps the weights themselves, never a scaled, joined or reordered copy of them.

At real size such a copy is 4 to 7 MiB per layer and pass, 0.4 GiB a step; making it again costs next to nothing.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def joint_linear(rows: Tensor, *parts: nn.Linear) -> Tensor:
    """Several linear layers as one product, side by side: rows [R, in] → [R, sum of outs].

    The rows are read once and their gradient is written once.
    """
    joined: Tensor = _JointLinear.apply(  # type: ignore[no-untyped-call]  # torch leaves apply untyped
        rows, len(parts), *(p.weight for p in parts), *(p.bias for p in parts)
    )
    return joined


def head_product(states: Tensor, weight: Tensor, scale: Tensor, inward: bool) -> Tensor:
    """The states of each head times that head's rows of a weight whose columns are scaled.

    Args:
        states: [B, Q, heads, d] if `inward`, else [B, Q, heads, D].
        weight: [heads·d, D].
        scale: of the weight's columns, [D].
        inward: True multiplies by the rows W_h of a head, False by their transpose.

    Returns:
        [B, Q, heads, D] if `inward`, else [B, Q, heads, d]; contiguous, as an einsum's is not.
    """
    product: Tensor = _HeadProduct.apply(  # type: ignore[no-untyped-call]  # as above
        states, weight, scale, inward
    )
    return product


class _JointLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int, *parameters: Tensor) -> Tensor:
        weights, biases = parameters[:count], parameters[count:]
        ctx.save_for_backward(rows, *weights)
        return F.linear(rows, torch.cat(weights), torch.cat(biases))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        rows, *weights = ctx.saved_tensors
        sizes = [len(weight) for weight in weights]
        of_rows = (gradient @ torch.cat(weights).to(gradient.dtype)).to(rows.dtype)
        of_weights = torch.split((gradient.T @ rows.to(gradient.dtype)).to(weights[0].dtype), sizes)
        of_biases = torch.split(gradient.sum(0).to(weights[0].dtype), sizes)
        return of_rows, None, *of_weights, *of_biases


class _HeadProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, scale: Tensor, inward: bool) -> Tensor:
        ctx.save_for_backward(states, weight, scale)
        ctx.inward = inward
        matrices = _matrices(states, weight, scale)
        return _per_head(states, matrices if inward else matrices.transpose(1, 2))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        (gradient,) = gradients
        states, weight, scale = ctx.saved_tensors
        matrices = _matrices(states, weight, scale)
        of_states = _per_head(gradient, matrices.transpose(1, 2) if ctx.inward else matrices)
        narrow, wide = (states, gradient) if ctx.inward else (gradient, states)
        products = torch.bmm(_heads_first(narrow).transpose(1, 2), _heads_first(wide))  # [heads, d, D]
        of_matrices = products.view(weight.shape).to(weight.dtype)
        return of_states, of_matrices * scale, (of_matrices * weight).sum(0), None


def _matrices(states: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """[heads, d, D] in the type of the states."""
    return (weight * scale).to(states.dtype).view(states.shape[2], -1, weight.shape[1])


def _heads_first(states: Tensor) -> Tensor:
    """[B, Q, heads, n] → a view [heads, B·Q, n]."""
    return states.flatten(0, 1).transpose(0, 1)


def _per_head(states: Tensor, matrices: Tensor) -> Tensor:
    """[B, Q, heads, k] times [heads, k, n] → [B, Q, heads, n], written where it belongs."""
    out = states.new_empty(*states.shape[:3], matrices.shape[2])
    torch.bmm(_heads_first(states), matrices, out=_heads_first(out))
    return out
