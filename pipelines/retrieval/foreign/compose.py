"""One query vector from an image's and a text's. Pure functions."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from pipelines.retrieval.foreign.config import Compose

NEAR = 1e-4
"""Angle in radians below which the great circle is its chord."""


def composed(images: Tensor, texts: Tensor, compose: Compose, text_weight: float) -> Tensor:
    """Unit vectors of queries, [n, d].

    Args:
        images, texts: unit vectors [n, d] of the same space.
        compose: sum, slerp, image or text.
        text_weight: share of the text, 0..1.
    """
    if compose == "image":
        return images
    if compose == "text":
        return texts
    if compose == "slerp":
        return slerp(images, texts, text_weight)
    return unit((1 - text_weight) * images + text_weight * texts)


def slerp(start: Tensor, end: Tensor, share: float) -> Tensor:
    """The point at a share of the way from `start` to `end` on their great circle, [n, d].

    Vectors that point the same way have no circle: there it is their chord, and for opposite ones whatever that gives.
    """
    import torch

    angle = (start * end).sum(-1, keepdim=True).clamp(-1, 1).acos()
    sine = angle.sin()
    straight = sine < NEAR
    safe = torch.where(straight, torch.ones_like(sine), sine)
    circle = ((1 - share) * angle).sin() / safe * start + (share * angle).sin() / safe * end
    return unit(torch.where(straight, (1 - share) * start + share * end, circle))


def unit(vectors: Tensor) -> Tensor:
    """The same directions, of length 1."""
    from torch.nn.functional import normalize

    return normalize(vectors.float(), dim=-1)
