"""Why a query found what it found: where its attention lay, what β did to it, and which target token won."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from training.model.qformer import AttentionMaps, image_memory

if TYPE_CHECKING:
    from training.model.adafocal import AdaFocalModel


class Explanation(NamedTuple):
    """What the model did with a batch of B queries.

    Attributes:
        beta: modulation, [B, 1 or M]; None where none was used.
        attention: share of the query tokens' cross-attention on every image token, [B, layers, N]: one entry per
            layer that looks at the image, mean over heads and query tokens; token 0 is the image's class token, each
            row sums to 1.
        attention_unmodulated: the same with β = 0.
        scores: of each query with its target, the cosine that counts, [B]; None without targets.
        winning_token: which of the target's M vectors gave it, int64 [B]; None without targets.
        probe_attention: share of the CAAM's probes' cross-attention on every image token in the first pass, which no
            bias reaches, [B, layers, N]; None without a CAAM.
    """

    beta: Tensor | None
    attention: Tensor
    attention_unmodulated: Tensor
    scores: Tensor | None
    winning_token: Tensor | None
    probe_attention: Tensor | None = None

    def share_inside(self, patch_mask: Tensor) -> tuple[Tensor, Tensor]:
        """Share of the attention inside the region [B, N], with and without β, mean over layers: two [B]."""
        inside = patch_mask[:, None, :].to(self.attention.dtype)
        with_beta, without = (
            (maps * inside).sum(-1).mean(-1) for maps in (self.attention, self.attention_unmodulated)
        )
        return with_beta, without

    def probes_inside(self, patch_mask: Tensor) -> Tensor | None:
        """Share of the probes' attention inside the region [B, N], mean over layers: [B]; None without a CAAM."""
        if self.probe_attention is None:
            return None
        inside = patch_mask[:, None, :].to(self.probe_attention.dtype)
        return (self.probe_attention * inside).sum(-1).mean(-1)


@torch.no_grad()
def explain(
    model: AdaFocalModel,
    tokens: Tensor,
    input_ids: Tensor,
    attention_mask: Tensor,
    patch_mask: Tensor | None,
    target_tokens: Tensor | None = None,
) -> Explanation:
    """Encode queries twice, with and without the bias, and keep what they looked at.

    Args:
        model: in eval mode.
        tokens: reference image tokens [B, N, D].
        input_ids: text token ids [B, L].
        attention_mask: 1 for tokens, 0 for padding [B, L].
        patch_mask: 1 where the region touches a patch [B, N]; None for no region.
        target_tokens: image tokens of one candidate per query [B, N, D], or None.
    """
    with_beta, without = AttentionMaps([], []), AttentionMaps([], [])
    query = model.encode_query(tokens, input_ids, attention_mask, patch_mask, maps=with_beta)
    model.encode_query(tokens, input_ids, attention_mask, patch_mask, modulate=False, maps=without)
    scores = winning_token = None
    if target_tokens is not None:
        products = torch.einsum("bd,bmd->bm", query.embedding, model.encode_target(target_tokens))
        scores, winning_token = products.max(dim=1)
    probes = None
    if model.caam is not None:
        looked = AttentionMaps([], [])
        image = image_memory(model.image_tokens(tokens), model.vision_norm)
        text = model.embeddings(input_ids, attention_mask)
        model.qformer(model.caam.probe_tokens, text, image, read="queries", maps=looked)
        probes = _patch_shares(looked)
    shares = _patch_shares(with_beta), _patch_shares(without)
    return Explanation(query.beta, *shares, scores, winning_token, probes)


def _patch_shares(maps: AttentionMaps) -> Tensor:
    """Cross-attention [B, heads, Q, N] of every layer → [B, layers, N]."""
    return torch.stack([weights.mean(dim=(1, 2)) for weights in maps.cross_attention], dim=1)
