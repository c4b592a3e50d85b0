"""The Context-Aware Attention Modulator: from (image, text) to the modulation β ≥ 0 of the anchored region."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

PROBE_STD = 0.02


class ContextualReasoning(nn.Module):
    """CRM: probe outputs with a learnable [CLS] in front → transformer encoder → [CLS] → β.

    The encoder is post-norm with ReLU and has no positions. The head is Linear → ReLU → Linear → softplus as in the
    release; the paper speaks of one Linear.
    """

    def __init__(
        self, width: int, layers: int, heads: int, feedforward: int, dropout: float, hidden: int, outputs: int
    ) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        layer = nn.TransformerEncoderLayer(width, heads, feedforward, dropout, batch_first=True)
        self.transformer_encoder = nn.TransformerEncoder(layer, layers, enable_nested_tensor=False)
        self.output_head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, outputs))

    def forward(self, probes: Tensor) -> Tensor:
        """Probe hidden states [B, K, H] → β [B, outputs]."""
        cls = self.cls_token.to(probes.dtype).expand(probes.shape[0], -1, -1)
        states = self.transformer_encoder(torch.cat([cls, probes], dim=1))
        return F.softplus(self.output_head(states[:, 0]))


class Modulator(nn.Module):
    """CAAM: K probe tokens that take the queries' place in a first pass of the Q-Former, and the CRM behind it."""

    def __init__(self, num_probe_tokens: int, crm: ContextualReasoning) -> None:
        super().__init__()
        self.probe_tokens = nn.Parameter(torch.zeros(1, num_probe_tokens, crm.cls_token.shape[-1]))
        self.crm = crm

    @torch.no_grad()
    def initialise(self, generator: torch.Generator, initial_beta: float | None = None) -> None:
        """Probes N(0, 0.02), [CLS] N(0, 1), encoder and head as torch starts them, all from `generator`.

        Args:
            generator: the source of all random numbers.
            initial_beta: where β starts, through the bias of the head's last layer; None leaves it as drawn.
        """
        nn.init.normal_(self.probe_tokens, std=PROBE_STD, generator=generator)
        nn.init.normal_(self.crm.cls_token, std=1.0, generator=generator)
        for module in self.crm.modules():
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight, generator=generator)
                nn.init.zeros_(module.in_proj_bias)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        last = self.crm.output_head[-1]
        if initial_beta is not None and isinstance(last, nn.Linear):
            # the inverse of softplus
            nn.init.constant_(last.bias, math.log(math.expm1(initial_beta)))
