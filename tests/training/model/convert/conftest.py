"""Small checkpoints as others write them, from lists of names and shapes written by hand."""

from __future__ import annotations

import torch
from torch import Tensor

WIDTH, DEPTH, MLP, PATCH, GRID = 24, 3, 52, 7, 4
"""Of the image tower."""
HIDDEN, LAYERS, FEEDFORWARD, VOCAB, POSITIONS = 32, 4, 48, 50, 20
"""Of the Q-Former; cross-attention in layers 0 and 2."""
QUERIES, PROBES, EMBED, CRM_LAYERS, CRM_FEEDFORWARD, BETA_HIDDEN = 5, 3, 12, 2, 40, 16
HEADS = {"vision_config.num_attention_heads": 4, "qformer.num_attention_heads": 4}
"""What no weight tells at these sizes."""

Shapes = dict[str, tuple[int, ...]]


def linear(name: str, out: int, inner: int) -> Shapes:
    return {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}


def norm(name: str, width: int) -> Shapes:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def eva_shapes() -> Shapes:
    shapes: Shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, 1 + GRID**2, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
    }
    for i in range(DEPTH):
        block = f"blocks.{i}"
        shapes |= norm(f"{block}.norm1", WIDTH) | norm(f"{block}.norm2", WIDTH)
        shapes |= {f"{block}.attn.q_bias": (WIDTH,), f"{block}.attn.v_bias": (WIDTH,)}
        shapes |= {f"{block}.attn.qkv.weight": (3 * WIDTH, WIDTH)}
        shapes |= linear(f"{block}.attn.proj", WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.fc1", MLP, WIDTH) | linear(f"{block}.mlp.fc2", WIDTH, MLP)
    return shapes


def clip_shapes() -> Shapes:
    shapes: Shapes = {
        "class_embedding": (WIDTH,),
        "positional_embedding": (1 + GRID**2, WIDTH),
        "conv1.weight": (WIDTH, 3, PATCH, PATCH),
        **norm("ln_pre", WIDTH),
    }
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}"
        shapes |= norm(f"{block}.ln_1", WIDTH) | norm(f"{block}.ln_2", WIDTH)
        shapes |= {
            f"{block}.attn.in_proj_weight": (3 * WIDTH, WIDTH),
            f"{block}.attn.in_proj_bias": (3 * WIDTH,),
        }
        shapes |= linear(f"{block}.attn.out_proj", WIDTH, WIDTH)
        shapes |= linear(f"{block}.mlp.c_fc", MLP, WIDTH) | linear(f"{block}.mlp.c_proj", WIDTH, MLP)
    return shapes


def qformer_shapes() -> Shapes:
    bert = "Qformer.bert"
    shapes: Shapes = {
        "query_tokens": (1, QUERIES, HIDDEN),
        "temp": (),
        f"{bert}.embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        f"{bert}.embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        **norm(f"{bert}.embeddings.LayerNorm", HIDDEN),
        **norm("ln_vision", WIDTH),
        **linear("vision_proj", EMBED, HIDDEN),
        **linear("text_proj", EMBED, HIDDEN),
    }
    for i in range(LAYERS):
        layer = f"{bert}.encoder.layer.{i}"
        for part, width in (("attention", HIDDEN), ("crossattention", WIDTH)):
            if part == "crossattention" and i % 2:
                continue
            shapes |= linear(f"{layer}.{part}.self.query", HIDDEN, HIDDEN)
            shapes |= linear(f"{layer}.{part}.self.key", HIDDEN, width)
            shapes |= linear(f"{layer}.{part}.self.value", HIDDEN, width)
            shapes |= linear(f"{layer}.{part}.output.dense", HIDDEN, HIDDEN)
            shapes |= norm(f"{layer}.{part}.output.LayerNorm", HIDDEN)
        for end in ("", "_query"):
            shapes |= linear(f"{layer}.intermediate{end}.dense", FEEDFORWARD, HIDDEN)
            shapes |= linear(f"{layer}.output{end}.dense", HIDDEN, FEEDFORWARD)
            shapes |= norm(f"{layer}.output{end}.LayerNorm", HIDDEN)
    return shapes


def caam_shapes(outputs: int) -> Shapes:
    shapes: Shapes = {
        "contextual_probe_tokens": (1, PROBES, HIDDEN),
        "crm_module.cls_token": (1, 1, HIDDEN),
        **linear("crm_module.output_head.0", BETA_HIDDEN, HIDDEN),
        **linear("crm_module.output_head.2", outputs, BETA_HIDDEN),
    }
    for i in range(CRM_LAYERS):
        layer = f"crm_module.transformer_encoder.layers.{i}"
        shapes |= {f"{layer}.self_attn.in_proj_weight": (3 * HIDDEN, HIDDEN)}
        shapes |= {f"{layer}.self_attn.in_proj_bias": (3 * HIDDEN,)}
        shapes |= linear(f"{layer}.self_attn.out_proj", HIDDEN, HIDDEN)
        shapes |= linear(f"{layer}.linear1", CRM_FEEDFORWARD, HIDDEN)
        shapes |= linear(f"{layer}.linear2", HIDDEN, CRM_FEEDFORWARD)
        shapes |= norm(f"{layer}.norm1", HIDDEN) | norm(f"{layer}.norm2", HIDDEN)
    return shapes


def unused_shapes() -> Shapes:
    head = "Qformer.cls.predictions"
    return {
        f"{head}.bias": (VOCAB,),
        **linear(f"{head}.transform.dense", HIDDEN, HIDDEN),
        **norm(f"{head}.transform.LayerNorm", HIDDEN),
        **linear(f"{head}.decoder", VOCAB, HIDDEN),
    }


def random_state(shapes: Shapes, seed: int = 0) -> dict[str, Tensor]:
    """Weights of about unit effect: N(0, 1 / fan-in), LayerNorms around one."""
    generator = torch.Generator().manual_seed(seed)

    def draw(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) >= 2:
            return values / max(1, torch.Size(shape[1:]).numel()) ** 0.5
        return 1 + 0.2 * values if name.endswith("weight") else 0.2 * values

    return {name: draw(name, shape) for name, shape in shapes.items()}


def tower_shapes(kind: str) -> Shapes:
    return {f"visual_encoder.{k}": v for k, v in (eva_shapes() if kind == "eva" else clip_shapes()).items()}


def released_state(modulation: str = "scalar", tower: str = "eva", seed: int = 0) -> dict[str, Tensor]:
    """A model of the authors: with modulation "scalar" or "vector", or "none" (their baseline)."""
    shapes = tower_shapes(tower) | qformer_shapes() | unused_shapes()
    if modulation != "none":
        shapes |= caam_shapes(1 if modulation == "scalar" else QUERIES)
    state = random_state(shapes, seed) | {"temp": torch.tensor(0.05)}
    return state | {"Qformer.bert.embeddings.position_ids": torch.arange(POSITIONS)[None]}


def lavis_state(tower: str | None = "eva", seed: int = 0) -> dict[str, Tensor]:
    """BLIP-2's first stage: no CAAM, with the matching head; LAVIS leaves the frozen tower out."""
    shapes = qformer_shapes() | unused_shapes() | linear("itm_head", 2, HIDDEN)
    if tower is not None:
        shapes |= tower_shapes(tower)
    return random_state(shapes, seed) | {"temp": torch.tensor(0.09)}
