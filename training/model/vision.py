"""The frozen image towers, without their last LayerNorm, and a useful random start for them.

Two kinds, told apart by the type of their configuration: BLIP-2's EVA ViT (`Blip2VisionConfig`, the paper's ViT-G) and
CLIP's ViT (`CLIPVisionConfig`, the ViT-L variant).
"""

from __future__ import annotations

import hashlib
import json
import math
from typing import TypeAlias

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel, CLIPVisionConfig, CLIPVisionModel
from transformers.modeling_outputs import BaseModelOutput

POSITION_STD = 0.3
"""Spread of a random position embedding beside patch tokens of about unit variance: visible, not dominant."""
ATTENTION_GAIN = 0.1
"""Random attention only blurs patches into each other; a small share of it is left in."""
MLP_GAINS = (2.0, 3.0)
"""Of the MLP's two layers: its GELU then bends, and the tokens hold random features of a patch, not only its pixels."""
MLP_BIAS_STD = 1.0


class _ClipEmbeddings(nn.Module):
    """Patches, the class token in front, and a position for each."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.zeros(width))
        self.patch_embedding = nn.Conv2d(3, width, patch, patch, bias=False)
        self.position_embedding = nn.Parameter(torch.zeros(1 + (config.image_size // patch) ** 2, width))

    def forward(self, pixels: Tensor) -> Tensor:
        patches = (
            self.patch_embedding(pixels.to(self.patch_embedding.weight.dtype)).flatten(2).transpose(1, 2)
        )
        class_token = self.class_embedding.expand(len(pixels), 1, -1)
        return torch.cat([class_token, patches], dim=1) + self.position_embedding


class ClipTower(nn.Module):
    """CLIP's ViT as BLIP-2 uses it: a LayerNorm before the blocks, none behind them.

    The blocks are those of transformers' `CLIPVisionModel`. That class itself is not used because it changes the names
    of its weights when it is saved and keeps an index in a buffer that is lost on loading where it is a part of
    another model.
    """

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = _ClipEmbeddings(config)
        self.pre_layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        whole = CLIPVisionModel(config)
        # older versions of transformers hold their parts one level deeper
        self.encoder = getattr(whole, "vision_model", whole).encoder

    def forward(self, pixel_values: Tensor) -> BaseModelOutput:
        """Pixels [B, 3, H, W] → `last_hidden_state` [B, N, D], as transformers' towers answer."""
        return self.encoder(inputs_embeds=self.pre_layernorm(self.embeddings(pixel_values)))


Tower: TypeAlias = Blip2VisionModel | ClipTower


def build_tower(config: Blip2VisionConfig | CLIPVisionConfig) -> Tower:
    """A frozen tower of that kind and shape in eval mode; its weights mean nothing yet (see `initialise_tower`).

    The tower's own final LayerNorm is taken out: BLIP-2 trains it, so it lives in the model behind the tower and
    the tower's tokens stay a pure function of frozen weights, which may be stored.
    """
    if isinstance(config, CLIPVisionConfig):
        return ClipTower(config).requires_grad_(False).eval()
    tower = Blip2VisionModel(config)
    tower.post_layernorm = nn.Identity()
    return tower.requires_grad_(False).eval()


@torch.no_grad()
def initialise_tower(tower: Tower, generator: torch.Generator) -> None:
    """Random weights whose frozen tokens keep what is in the image; same generator state, same weights.

    transformers' own start (standard deviation 1e-10 in BLIP-2) maps every image to the same tokens. Here the patch
    projection is orthogonal, so that distances between patches survive; position and class embeddings are of visible
    size; the blocks are LeCun-scaled (variance 1 / fan-in, zero biases) with the gains above. On the procedural world
    this doubles how well instances can be told apart linearly from the tokens inside a box.
    """
    embeddings = tower.embeddings
    projection = embeddings.patch_embedding.weight  # [D, 3, p, p]
    nn.init.orthogonal_(projection.view(projection.shape[0], -1), generator=generator)
    if embeddings.patch_embedding.bias is not None:
        nn.init.zeros_(embeddings.patch_embedding.bias)
    nn.init.normal_(embeddings.position_embedding, std=POSITION_STD, generator=generator)
    nn.init.normal_(embeddings.class_embedding, std=1.0, generator=generator)
    for block in tower.encoder.layers:
        for norm in (block.layer_norm1, block.layer_norm2):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        attention, mlp = block.self_attn, block.mlp
        if isinstance(tower, ClipTower):
            inputs = [attention.q_proj, attention.k_proj, attention.v_proj]
            output = attention.out_proj
        else:
            inputs, output = [attention.qkv], attention.projection
        for linear in (*inputs, output, mlp.fc1, mlp.fc2):
            nn.init.normal_(linear.weight, std=1.0 / math.sqrt(linear.weight.shape[1]), generator=generator)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        output.weight.mul_(ATTENTION_GAIN)
        mlp.fc1.weight.mul_(MLP_GAINS[0])
        mlp.fc2.weight.mul_(MLP_GAINS[1])
        nn.init.normal_(mlp.fc1.bias, std=MLP_BIAS_STD, generator=generator)


def tower_tokens(tower: Tower, pixels: Tensor) -> Tensor:
    """Image tokens before the trained LayerNorm: pixels [B, 3, H, W] → [B, N, D], token 0 the class token.

    Without a gradient, unless something of the tower is trained.
    """
    trained = any(parameter.requires_grad for parameter in tower.parameters())
    with torch.set_grad_enabled(trained and torch.is_grad_enabled()):
        tokens: Tensor = tower(pixel_values=pixels).last_hidden_state
    return tokens


def state_hash(tower: Tower) -> str:
    """sha256 over what the tower's tokens depend on: its shape options and every weight's name, type, shape, bytes."""
    config = tower.config
    options = ("hidden_act", "image_size", "layer_norm_eps", "num_attention_heads", "patch_size")
    digest = hashlib.sha256(json.dumps({name: getattr(config, name) for name in options}).encode())
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
