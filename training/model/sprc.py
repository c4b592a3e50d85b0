"""SPRC: the fused tokens of a first pass become sentence prompts of a second, which sees no image.

With `modulation` "none" it is the baseline that the OACIR paper compares with; with "scalar" or "vector" it is SPRC†:
the CAAM's bias acts in its first pass.
"""

from __future__ import annotations

from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.losses import prompt_alignment, query_to_target, text_to_target
from training.model.adafocal import AdaFocalModel
from training.model.config import SprcConfig
from training.model.interfaces import Loss
from training.model.qformer import AttentionMaps, ImageMemory, Text

PROMPT_STD = 0.02


class SprcModel(AdaFocalModel):
    """SPRC on AdaFocal's parts (METHODS: baselines): two passes, three losses.

    The target branch is AdaFocal's. `prompt_tokens` [1, M, H] stand behind the text's [CLS] in a pass without image;
    where a token stands among the rows does not matter, since positions are added to text alone and before.
    """

    config_class = SprcConfig
    own_parts: ClassVar[tuple[str, ...]] = ("caam.", "prompt_tokens")

    def __init__(self, config: SprcConfig, with_tower: bool = True) -> None:
        super().__init__(config, with_tower)
        self.prompt_tokens = nn.Parameter(torch.zeros_like(self.query_tokens))

    @property
    def objective(self) -> tuple[tuple[float, Loss], ...]:
        """itc + 0.4 · rtc + 0.4 · align, by default."""
        return (
            (1.0, query_to_target),
            (self.config.rtc_weight, text_to_target),
            (self.config.align_weight, prompt_alignment),
        )

    def fuse(
        self, image: ImageMemory, text: Text, bias: Tensor | None, maps: AttentionMaps | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Both passes; in training also what `text_to_target` and `prompt_alignment` compare."""
        fused = self.qformer(self.query_tokens, text, image, bias, "queries", maps)  # [B, M, H]
        hidden = self.qformer(fused, text, None, read="text_cls")
        if not self.training:
            return hidden, {}
        prompted = self.qformer(self.prompt_tokens, text, None, read="text_cls")
        return hidden, {
            "text_only": F.normalize(self.text_projection(prompted), dim=-1),
            "fused": fused.mean(dim=1),
            "prompts": self.prompt_tokens.mean(dim=1).expand(len(fused), -1),
        }

    @torch.no_grad()
    def initialise_own_parts(self, generator: torch.Generator) -> None:
        """The CAAM as in AdaFocal, the prompts as the queries."""
        super().initialise_own_parts(generator)
        nn.init.normal_(self.prompt_tokens, std=PROMPT_STD, generator=generator)
