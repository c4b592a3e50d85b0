"""Where β comes from: the Context-Aware Attention Modulator, or a constant; and the bias that it becomes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.model.interfaces import Fusion, Modulation

if TYPE_CHECKING:
    from training.model.config import AdaFocalConfig
    from training.model.qformer import ImageMemory, Text

PROBE_STD = 0.02


def attention_bias(beta: Tensor, patch_mask: Tensor, config: AdaFocalConfig) -> Tensor:
    """β [B, 1 or M] and patch mask [B, N] → bias of the scaled attention logits, [B, 1, 1 or M, N].

    With `bias_scale` "released" it is added after the division of QKᵀ by √d, with "paper" (Eq. 2) before it.
    """
    bias = beta[:, None, :, None] * patch_mask[:, None, None, :].to(beta.dtype)
    if config.bias_scale == "paper":
        bias = bias * (config.qformer.hidden_size // config.qformer.num_attention_heads) ** -0.5
    return bias


class FixedModulator:
    """The same β for every query: the paper's sweep over constants."""

    def __init__(self, config: AdaFocalConfig) -> None:
        self.config = config

    def __call__(self, fusion: Fusion, image: ImageMemory, text: Text, patch_mask: Tensor) -> Modulation:
        """See `interfaces.Modulator`; neither image nor text decides."""
        del fusion, image
        beta = text.rows.new_full((len(patch_mask), 1), self.config.fixed_beta)
        return Modulation(attention_bias(beta, patch_mask, self.config), beta)


class ContextualReasoning(nn.Module):
    """CRM: probe outputs [B, K, H] → β [B, outputs] ≥ 0.

    "transformer": a learnable [CLS] in front, a transformer encoder (post-norm, ReLU, no positions), its [CLS] to the
    head. "mlp": the probes side by side through Linear → ReLU to width H. "average": their mean. The head is Linear →
    ReLU → Linear → softplus as in the release; the paper speaks of one Linear. The release has the transformer alone;
    the form of the other two is ours.
    """

    gradient_checkpointing = False
    """As the Q-Former's."""
    _gradient_checkpointing_func: Any = None

    def __init__(self, config: AdaFocalConfig, outputs: int) -> None:
        super().__init__()
        width, self.kind, self.scale = config.qformer.hidden_size, config.crm, config.beta_scale
        if self.kind == "transformer":
            self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
            layer = nn.TransformerEncoderLayer(
                width, config.crm_heads, config.crm_feedforward, config.crm_dropout, batch_first=True
            )
            self.transformer_encoder = nn.TransformerEncoder(
                layer, config.crm_layers, enable_nested_tensor=False
            )
        elif self.kind == "mlp":
            self.mlp = nn.Linear(config.num_probe_tokens * width, width)
        self.output_head = nn.Sequential(
            nn.Linear(width, config.beta_hidden), nn.ReLU(), nn.Linear(config.beta_hidden, outputs)
        )

    def forward(self, probes: Tensor) -> Tensor:
        """Probe hidden states [B, K, H] → β [B, outputs]."""
        if self.gradient_checkpointing and self.training:
            beta: Tensor = self._gradient_checkpointing_func(self._beta, probes)
            return beta
        return self._beta(probes)

    def _beta(self, probes: Tensor) -> Tensor:
        if self.kind == "transformer":
            cls = self.cls_token.to(probes.dtype).expand(probes.shape[0], -1, -1)
            pooled = self.transformer_encoder(torch.cat([cls, probes], dim=1))[:, 0]
        elif self.kind == "mlp":
            pooled = F.relu(self.mlp(probes.flatten(1)))
        else:
            pooled = probes.mean(dim=1)
        return self.scale * F.softplus(self.output_head(pooled))


class ContextAwareAttentionModulator(nn.Module):
    """CAAM: K probe tokens that take the queries' place in a first pass of the Q-Former, and the CRM behind it."""

    def __init__(self, config: AdaFocalConfig) -> None:
        super().__init__()
        self.config = config
        self.probe_tokens = nn.Parameter(
            torch.zeros(1, config.num_probe_tokens, config.qformer.hidden_size),
            requires_grad=config.trainable_probes,
        )
        self.crm = ContextualReasoning(
            config, 1 if config.modulation == "scalar" else config.num_query_tokens
        )

    def forward(self, fusion: Fusion, image: ImageMemory, text: Text, patch_mask: Tensor) -> Modulation:
        """See `interfaces.Modulator`."""
        beta = self.crm(fusion(self.probe_tokens, text, image, read="queries"))
        return Modulation(attention_bias(beta, patch_mask, self.config), beta)

    @torch.no_grad()
    def initialise(self, generator: torch.Generator) -> None:
        """Probes N(0, 0.02), [CLS] N(0, 1), the rest as torch starts it, all from `generator`.

        With `initial_beta` β starts there, through the bias of the head's last layer; without, it is left as drawn.
        """
        nn.init.normal_(self.probe_tokens, std=PROBE_STD, generator=generator)
        if self.crm.kind == "transformer":
            nn.init.normal_(self.crm.cls_token, std=1.0, generator=generator)
        for module in self.crm.modules():
            if isinstance(module, nn.MultiheadAttention):
                nn.init.xavier_uniform_(module.in_proj_weight, generator=generator)
                nn.init.zeros_(module.in_proj_bias)
            elif isinstance(module, nn.Linear):
                bound = 1 / math.sqrt(module.in_features)
                nn.init.uniform_(module.weight, -bound, bound, generator=generator)
                nn.init.uniform_(module.bias, -bound, bound, generator=generator)
        last, start = self.crm.output_head[-1], self.config.initial_beta
        if start is not None and isinstance(last, nn.Linear):
            # the inverse of softplus
            nn.init.constant_(last.bias, math.log(math.expm1(start / self.config.beta_scale)))
