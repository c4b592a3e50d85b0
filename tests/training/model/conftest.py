"""A model small enough for every test, and a batch for it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from training.model.adafocal import AdaFocalModel
from training.model.auto import random_model
from training.model.config import AdaFocalConfig, preset

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

SMALL = {
    "vision_config.image_size": 28,
    "vision_config.patch_size": 7,
    "vision_config.hidden_size": 24,
    "vision_config.intermediate_size": 48,
    "qformer.hidden_size": 32,
    "qformer.intermediate_size": 48,
    # As in BLIP-2: cross-attention in every second layer, dropout, no start of its own.
    "qformer.num_hidden_layers": 4,
    "qformer.cross_attention_frequency": 2,
    "qformer.hidden_dropout_prob": 0.1,
    "qformer.attention_probs_dropout_prob": 0.1,
    "crm_dropout": 0.1,
    "initial_beta": None,
    "aligned_start": False,
    "qformer.vocab_size": 50,
    # Far from the flat start of BERT, so that attention and gradients are not all alike.
    "qformer.initializer_range": 0.3,
    "num_query_tokens": 5,
    "num_probe_tokens": 3,
    "embed_dim": 12,
    "crm_feedforward": 40,
    "beta_hidden": 16,
}


def small_config(**overrides: Any) -> AdaFocalConfig:
    """4 x 4 patches of 7 px, 17 image tokens."""
    return preset("tiny", **{**SMALL, **overrides})


def small_model(seed: int = 0, with_tower: bool = True, **overrides: Any) -> AdaFocalModel:
    return random_model(small_config(**overrides), seed, with_tower)


@pytest.fixture
def batch() -> dict[str, Tensor]:
    """Four samples with texts of 4, 9, 6 and 9 tokens; the third has no box."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.arange(9)[None] < torch.tensor([4, 9, 6, 9])[:, None]
    patches = torch.zeros(4, 17)
    patches[0, 1:5] = patches[1, 6:8] = patches[3, 1:] = 1
    return {
        "tokens": torch.randn(4, 17, 24, generator=generator),
        "input_ids": torch.randint(5, 50, (4, 9), generator=generator) * mask,
        "attention_mask": mask.long(),
        "patch_mask": patches,
    }
