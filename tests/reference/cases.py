"""Small random models and batches in which every part of AdaFocal matters.

Freshly initialised weights hide mistakes: zero biases, LayerNorms of weight 1, rows of unit variance that no eps moves.
Here every bias and LayerNorm is random, and rows that enter a LayerNorm have a variance near its eps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from tests.reference.adafocal import Box, Options

CLS, SEP = 1, 2


@dataclass(frozen=True)
class Sizes:
    """Every size of a model and its batch; no two that could be confused are equal."""

    batch: int = 4
    image_size: int = 12
    patch_size: int = 4
    vit_width: int = 12
    vit_depth: int = 2
    vit_heads: int = 3
    vit_mlp: int = 22
    hidden: int = 16
    layers: int = 4
    heads: int = 2
    intermediate: int = 26
    cross_attention_every: int = 2
    vocab: int = 30
    positions: int = 11
    text_tokens: int = 9
    queries: int = 5
    probes: int = 3
    crm_layers: int = 2
    crm_heads: int = 4
    crm_feedforward: int = 20
    beta_hidden: int = 10
    embed_dim: int = 6

    @property
    def image_tokens(self) -> int:
        """N."""
        return 1 + (self.image_size // self.patch_size) ** 2

    def options(self, modulation: str, fixed_beta: float = 0.0, bias_scale: str = "released") -> Options:
        """The reference's options for a model of these sizes."""
        return Options(
            self.image_size,
            self.patch_size,
            self.vit_heads,
            self.heads,
            self.crm_heads,
            self.cross_attention_every,
            modulation,
            fixed_beta,
            bias_scale,
        )


class Inputs(NamedTuple):
    """Pixels [B, 3, S, S], text ids and mask [B, L]; the texts differ in length."""

    reference_pixels: Tensor
    target_pixels: Tensor
    ids: Tensor
    mask: Tensor


class _Draw:
    """Named random tensors from one generator, float64."""

    def __init__(self, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.weights: dict[str, Tensor] = {}

    def normal(self, name: str, *shape: int, std: float, mean: float = 0.0) -> None:
        drawn = torch.randn(shape, generator=self.generator, dtype=torch.float64)
        self.weights[name] = mean + std * drawn

    def linear(self, name: str, outputs: int, inputs: int, gain: float = 1.0, bias: float = 0.2) -> None:
        self.normal(f"{name}.weight", outputs, inputs, std=gain / math.sqrt(inputs))
        self.normal(f"{name}.bias", outputs, std=bias)

    def norm(self, name: str, width: int, scale: float = 1.0) -> None:
        self.normal(f"{name}.weight", width, std=0.25 * scale, mean=scale)
        self.normal(f"{name}.bias", width, std=0.2 * scale)


def random_weights(sizes: Sizes, seed: int, beta_outputs: int = 1) -> dict[str, Tensor]:
    """A model in the release's names, float64; the same sizes and seed give the same weights.

    Args:
        sizes: of the model.
        seed: of the generator.
        beta_outputs: 1 for the scalar modulator, M for the vector one; the rest does not depend on it.
    """
    draw = _Draw(seed)
    _draw_tower(draw, sizes)
    draw.norm("ln_vision", sizes.vit_width)
    _draw_qformer(draw, sizes)
    draw.normal("temp", std=0.01, mean=0.08)
    _draw_modulator(draw, sizes, beta_outputs)
    return draw.weights


def _draw_tower(draw: _Draw, s: Sizes) -> None:
    """The residual stream stays near 0.01, so that its variance is near the eps of its LayerNorms."""
    small = 0.01
    draw.normal("visual_encoder.cls_token", 1, 1, s.vit_width, std=small)
    draw.normal("visual_encoder.pos_embed", 1, s.image_tokens, s.vit_width, std=small)
    fan_in = 3 * s.patch_size**2
    shape = (s.vit_width, 3, s.patch_size, s.patch_size)
    draw.normal("visual_encoder.patch_embed.proj.weight", *shape, std=small / math.sqrt(fan_in))
    draw.normal("visual_encoder.patch_embed.proj.bias", s.vit_width, std=small / 4)
    for index in range(s.vit_depth):
        block = f"visual_encoder.blocks.{index}"
        draw.norm(f"{block}.norm1", s.vit_width)
        draw.normal(f"{block}.attn.q_bias", s.vit_width, std=0.5)
        draw.normal(f"{block}.attn.v_bias", s.vit_width, std=0.5)
        draw.normal(
            f"{block}.attn.qkv.weight", 3 * s.vit_width, s.vit_width, std=1.3 / math.sqrt(s.vit_width)
        )
        draw.linear(f"{block}.attn.proj", s.vit_width, s.vit_width, gain=small, bias=small / 4)
        draw.norm(f"{block}.norm2", s.vit_width)
        draw.linear(f"{block}.mlp.fc1", s.vit_mlp, s.vit_width, gain=1.5)
        draw.linear(f"{block}.mlp.fc2", s.vit_width, s.vit_mlp, gain=small, bias=small / 4)


def _draw_qformer(draw: _Draw, s: Sizes) -> None:
    """Embeddings near 1e-5, whose variance the eps of 1e-12 still moves; the last layer's queries come out small."""
    tiny, embeddings = 1e-5, "Qformer.bert.embeddings"
    draw.normal("query_tokens", 1, s.queries, s.hidden, std=tiny)
    draw.normal(f"{embeddings}.word_embeddings.weight", s.vocab, s.hidden, std=tiny)
    draw.normal(f"{embeddings}.position_embeddings.weight", s.positions, s.hidden, std=tiny)
    draw.norm(f"{embeddings}.LayerNorm", s.hidden)
    for index in range(s.layers):
        layer = f"Qformer.bert.encoder.layer.{index}"
        kinds = [("attention", s.hidden)]
        if index % s.cross_attention_every == 0:
            kinds.append(("crossattention", s.vit_width))
        for kind, key_width in kinds:
            draw.linear(f"{layer}.{kind}.self.query", s.hidden, s.hidden, gain=1.3)
            draw.linear(f"{layer}.{kind}.self.key", s.hidden, key_width, gain=1.3)
            draw.linear(f"{layer}.{kind}.self.value", s.hidden, key_width)
            draw.linear(f"{layer}.{kind}.output.dense", s.hidden, s.hidden, gain=1.5)
            draw.norm(f"{layer}.{kind}.output.LayerNorm", s.hidden)
        last = index == s.layers - 1
        for suffix, scale in (("", 1.0), ("_query", 0.05 if last else 1.0)):
            draw.linear(f"{layer}.intermediate{suffix}.dense", s.intermediate, s.hidden, gain=1.5)
            draw.linear(f"{layer}.output{suffix}.dense", s.hidden, s.intermediate, gain=1.5)
            draw.norm(f"{layer}.output{suffix}.LayerNorm", s.hidden, scale)
    draw.linear("vision_proj", s.embed_dim, s.hidden, gain=20.0)
    draw.linear("text_proj", s.embed_dim, s.hidden)


def _draw_modulator(draw: _Draw, s: Sizes, outputs: int) -> None:
    """Rows near 0.05 into the first LayerNorms; β spread around 2 with samples below 1."""
    draw.normal("contextual_probe_tokens", 1, s.probes, s.hidden, std=1e-5)
    draw.normal("crm_module.cls_token", 1, 1, s.hidden, std=0.05)
    for index in range(s.crm_layers):
        layer = f"crm_module.transformer_encoder.layers.{index}"
        draw.normal(
            f"{layer}.self_attn.in_proj_weight", 3 * s.hidden, s.hidden, std=5.0 / math.sqrt(s.hidden)
        )
        draw.normal(f"{layer}.self_attn.in_proj_bias", 3 * s.hidden, std=0.2)
        draw.linear(f"{layer}.self_attn.out_proj", s.hidden, s.hidden, gain=0.1, bias=0.02)
        draw.norm(f"{layer}.norm1", s.hidden, 0.1)
        draw.linear(f"{layer}.linear1", s.crm_feedforward, s.hidden, gain=5.0)
        draw.linear(f"{layer}.linear2", s.hidden, s.crm_feedforward, gain=0.1, bias=0.02)
        draw.norm(f"{layer}.norm2", s.hidden, 1.0 if index == s.crm_layers - 1 else 0.1)
    draw.linear("crm_module.output_head.0", s.beta_hidden, s.hidden, gain=1.5)
    draw.normal("crm_module.output_head.2.weight", outputs, s.beta_hidden, std=3.0 / math.sqrt(s.beta_hidden))
    draw.normal("crm_module.output_head.2.bias", outputs, std=0.5, mean=1.5)


def random_inputs(sizes: Sizes, seed: int) -> Inputs:
    """A batch; the first text is as long as allowed, the others are shorter."""
    generator = torch.Generator().manual_seed(seed)
    shape = (2, sizes.batch, 3, sizes.image_size, sizes.image_size)
    pixels = torch.randn(shape, generator=generator, dtype=torch.float64)
    lengths = [sizes.text_tokens] + [
        int(torch.randint(3, sizes.text_tokens, (), generator=generator)) for _ in range(sizes.batch - 1)
    ]
    ids = torch.zeros(sizes.batch, sizes.text_tokens, dtype=torch.long)
    for row, length in enumerate(lengths):
        ids[row, 0], ids[row, length - 1] = CLS, SEP
        ids[row, 1 : length - 1] = torch.randint(SEP + 1, sizes.vocab, (length - 2,), generator=generator)
    mask = torch.arange(sizes.text_tokens)[None] < torch.tensor(lengths)[:, None]
    return Inputs(pixels[0], pixels[1], ids, mask.long())


def random_boxes(sizes: Sizes, seed: int) -> list[Box]:
    """One box per sample: a single patch, the whole image, then random ones that may leave the image."""
    generator = torch.Generator().manual_seed(seed)
    size, patch = sizes.image_size, sizes.patch_size
    boxes: list[Box] = [(patch, 0, 2 * patch, patch), (0, 0, size, size)]
    while len(boxes) < sizes.batch:
        x1, y1 = (int(v) for v in torch.randint(-patch, size - 1, (2,), generator=generator))
        width, height = (int(v) for v in torch.randint(1, size, (2,), generator=generator))
        if x1 + width > 0 and y1 + height > 0:
            boxes.append((x1, y1, x1 + width, y1 + height))
    return boxes[: sizes.batch]


def case_boxes(boxes: list[Box]) -> dict[str, list[Box | None]]:
    """The three batches: all samples with a box, one without, none with."""
    return {"mixed": [None, *boxes[1:]], "all_boxes": list(boxes), "all_none": [None] * len(boxes)}
