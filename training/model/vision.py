"""The frozen image tower: transformers' BLIP-2 ViT without its last LayerNorm, and a useful random start for it."""

from __future__ import annotations

import hashlib
import json
import math

import torch
from torch import Tensor, nn
from transformers import Blip2VisionConfig, Blip2VisionModel

POSITION_STD = 0.3
"""Spread of a random position embedding beside patch tokens of about unit variance: visible, not dominant."""
ATTENTION_GAIN = 0.1
"""Random attention only blurs patches into each other; a small share of it is left in."""
MLP_GAINS = (2.0, 3.0)
"""Of the MLP's two layers: its GELU then bends, and the tokens hold random features of a patch, not only its pixels."""
MLP_BIAS_STD = 1.0


def build_tower(config: Blip2VisionConfig) -> Blip2VisionModel:
    """A frozen tower of that shape in eval mode; weights as transformers leaves them (see `initialise_tower`).

    The tower's own final LayerNorm is taken out: BLIP-2 trains it, so it lives in the model behind the tower and
    the tower's tokens stay a pure function of frozen weights, which may be stored.
    """
    tower = Blip2VisionModel(config)
    tower.post_layernorm = nn.Identity()
    return tower.requires_grad_(False).eval()


@torch.no_grad()
def initialise_tower(tower: Blip2VisionModel, generator: torch.Generator) -> None:
    """Random weights whose frozen tokens keep what is in the image; same generator state, same weights.

    transformers' own start (standard deviation 1e-10) maps every image to the same tokens. Here the patch projection
    is orthogonal, so that distances between patches survive; position and class embeddings are of visible size; the
    blocks are LeCun-scaled (variance 1 / fan-in, zero biases) with the gains above. On the procedural world this
    doubles how well instances can be told apart linearly from the tokens inside a box.
    """
    embeddings = tower.embeddings
    projection = embeddings.patch_embedding.weight  # [D, 3, p, p]
    nn.init.orthogonal_(projection.view(projection.shape[0], -1), generator=generator)
    nn.init.zeros_(embeddings.patch_embedding.bias)
    nn.init.normal_(embeddings.position_embedding, std=POSITION_STD, generator=generator)
    nn.init.normal_(embeddings.class_embedding, std=1.0, generator=generator)
    for block in tower.encoder.layers:
        for norm in (block.layer_norm1, block.layer_norm2):
            nn.init.ones_(norm.weight)
            nn.init.zeros_(norm.bias)
        attention, mlp = block.self_attn, block.mlp
        for linear in (attention.qkv, attention.projection, mlp.fc1, mlp.fc2):
            nn.init.normal_(linear.weight, std=1.0 / math.sqrt(linear.weight.shape[1]), generator=generator)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        attention.projection.weight.mul_(ATTENTION_GAIN)
        mlp.fc1.weight.mul_(MLP_GAINS[0])
        mlp.fc2.weight.mul_(MLP_GAINS[1])
        nn.init.normal_(mlp.fc1.bias, std=MLP_BIAS_STD, generator=generator)


@torch.no_grad()
def tower_tokens(tower: Blip2VisionModel, pixels: Tensor) -> Tensor:
    """Image tokens before the trained LayerNorm: pixels [B, 3, H, W] → [B, N, D], token 0 the class token."""
    tokens: Tensor = tower(pixel_values=pixels).last_hidden_state
    return tokens


def state_hash(tower: Blip2VisionModel) -> str:
    """sha256 over what the tower's tokens depend on: its shape options and every weight's name, type, shape, bytes."""
    config = tower.config
    options = ("hidden_act", "image_size", "layer_norm_eps", "num_attention_heads", "patch_size")
    digest = hashlib.sha256(json.dumps({name: getattr(config, name) for name in options}).encode())
    for name, weight in sorted(tower.state_dict().items()):
        digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()
