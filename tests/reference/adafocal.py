"""AdaFocal written out slowly: one sample, one head, one equation at a time.

The independent version that the model is held against. It imports nothing of the project and nothing of
transformers; weights carry the names of the authors' release, so that the names' conversion is part of what is proven.
Every function takes one sample unless it says otherwise: tokens [T, width], no batch axis. Arithmetic runs in the type
of the weights (float64 in the tests) and is differentiable by autograd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
Box = tuple[float, float, float, float]

VIT_EPS, VISION_EPS, QFORMER_EPS, CRM_EPS = 1e-6, 1e-5, 1e-12, 1e-5
PADDED_KEY = -10000.0


@dataclass(frozen=True)
class Options:
    """What the weights alone do not say.

    `modulation` is "none" (β = 0), "fixed" (β = `fixed_beta`), "scalar" or "vector"; `bias_scale` is "released",
    softmax(QKᵀ/√d + β·M), or "paper", softmax((QKᵀ + β·M)/√d).
    """

    image_size: int
    patch_size: int
    vit_heads: int
    qformer_heads: int
    crm_heads: int
    cross_attention_every: int
    modulation: str = "scalar"
    fixed_beta: float = 0.0
    bias_scale: str = "released"


class QueryPass(NamedTuple):
    """Everything the query branch computes for a batch.

    `beta` [B, 1 or M] and `bias` [B, 1, 1 or M, N] are None where attention is left alone; `probe_hidden` [B, K + L, H]
    is None where the CAAM did not run; `cross` holds the attention weights of every layer with cross-attention,
    [B, heads, M, N].
    """

    f_q: Tensor
    hidden: Tensor
    beta: Tensor | None
    bias: Tensor | None
    probe_hidden: Tensor | None
    cross: list[Tensor]


# Building blocks


def linear(x: Tensor, weights: Weights, name: str) -> Tensor:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def layer_norm(x: Tensor, weights: Weights, name: str, eps: float) -> Tensor:
    mean = x.mean(dim=-1, keepdim=True)
    variance = ((x - mean) ** 2).mean(dim=-1, keepdim=True)
    return (x - mean) / torch.sqrt(variance + eps) * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def gelu(x: Tensor) -> Tensor:
    """x · Φ(x), the exact form."""
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def softplus(x: Tensor) -> Tensor:
    return torch.log(1 + torch.exp(x))


def softmax(logits: Tensor) -> Tensor:
    exponentials = torch.exp(logits - logits.max(dim=-1, keepdim=True).values.detach())
    return exponentials / exponentials.sum(dim=-1, keepdim=True)


def normalise(x: Tensor) -> Tensor:
    return x / torch.sqrt((x**2).sum(dim=-1, keepdim=True))


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    heads: int,
    bias: Tensor | None = None,
    bias_scale: str = "released",
) -> tuple[Tensor, Tensor]:
    """Query [Q, H], key and value [T, H], bias [Q, T] or [1, T] → context [Q, H] and weights [heads, Q, T]."""
    width = query.shape[-1] // heads
    contexts, maps = [], []
    for head in range(heads):
        part = slice(head * width, (head + 1) * width)
        products = query[:, part] @ key[:, part].T
        if bias is None:
            logits = products / math.sqrt(width)
        elif bias_scale == "released":
            logits = products / math.sqrt(width) + bias
        else:
            logits = (products + bias) / math.sqrt(width)
        maps.append(softmax(logits))
        contexts.append(maps[-1] @ value[:, part])
    return torch.cat(contexts, dim=-1), torch.stack(maps)


def count_layers(weights: Weights, prefix: str) -> int:
    """How many numbered layers there are behind `prefix`."""
    return len({name[len(prefix) :].split(".")[0] for name in weights if name.startswith(prefix)})


# Image


def tower(weights: Weights, options: Options, pixels: Tensor) -> Tensor:
    """The frozen ViT of a batch: pixels [B, 3, S, S] → tokens [B, N, D], token 0 the class token; no final norm."""
    return torch.stack([_tower(weights, options, image) for image in pixels])


def _tower(weights: Weights, options: Options, image: Tensor) -> Tensor:
    size, grid = options.patch_size, options.image_size // options.patch_size
    kernel = weights["visual_encoder.patch_embed.proj.weight"]  # [D, 3, p, p]
    tokens = [weights["visual_encoder.cls_token"][0, 0]]
    for row in range(grid):
        for column in range(grid):
            patch = image[:, row * size : (row + 1) * size, column * size : (column + 1) * size]
            tokens.append(
                (kernel * patch).sum(dim=(1, 2, 3)) + weights["visual_encoder.patch_embed.proj.bias"]
            )
    x = torch.stack(tokens) + weights["visual_encoder.pos_embed"][0]
    for index in range(count_layers(weights, "visual_encoder.blocks.")):
        block = f"visual_encoder.blocks.{index}"
        normed = layer_norm(x, weights, f"{block}.norm1", VIT_EPS)
        query_weight, key_weight, value_weight = weights[f"{block}.attn.qkv.weight"].chunk(3)
        query = normed @ query_weight.T + weights[f"{block}.attn.q_bias"]
        key = normed @ key_weight.T  # keys have no bias
        value = normed @ value_weight.T + weights[f"{block}.attn.v_bias"]
        context, _ = attention(query, key, value, options.vit_heads)
        x = x + linear(context, weights, f"{block}.attn.proj")
        normed = layer_norm(x, weights, f"{block}.norm2", VIT_EPS)
        x = x + linear(gelu(linear(normed, weights, f"{block}.mlp.fc1")), weights, f"{block}.mlp.fc2")
    return x


def vision_norm(weights: Weights, tokens: Tensor) -> Tensor:
    """The trained LayerNorm behind the tower."""
    return layer_norm(tokens, weights, "ln_vision", VISION_EPS)


def patch_mask(box: Box | None, options: Options) -> Tensor:
    """1 for every patch with a part of the box in it, row-major after the class token's 0; [N] float64."""
    size, grid = options.patch_size, options.image_size // options.patch_size
    mask = [0.0]
    for row in range(grid):
        for column in range(grid):
            inside = False
            if box is not None:
                left, top, right, bottom = box
                inside = (
                    column >= math.floor(left / size)
                    and row >= math.floor(top / size)
                    and column < math.ceil(right / size)
                    and row < math.ceil(bottom / size)
                )
            mask.append(1.0 if inside else 0.0)
    return torch.tensor(mask, dtype=torch.float64)


# Q-Former


def qformer(
    weights: Weights,
    options: Options,
    queries: Tensor,
    text: tuple[Tensor, Tensor] | None,
    image: Tensor,
    bias: Tensor | None = None,
) -> tuple[Tensor, list[Tensor]]:
    """One pass of one sample.

    Args:
        weights, options: the model.
        queries: what takes the query places, [Q, H].
        text: token ids [L], padded, and their mask [L]; None for the queries alone.
        image: image tokens behind the trained LayerNorm, [N, D].
        bias: of the cross-attention logits, [1 or Q, N].

    Returns:
        Last hidden state [Q + L, H], queries first, and the cross-attention weights of every layer that has it.
    """
    states, count = queries, len(queries)
    key_mask = torch.zeros(1, count, dtype=queries.dtype)
    if text is not None:
        ids, mask = text
        words = weights["Qformer.bert.embeddings.word_embeddings.weight"][ids]
        positions = weights["Qformer.bert.embeddings.position_embeddings.weight"][: len(ids)]
        states = torch.cat([queries, words + positions])
        padding = torch.where(mask.bool(), 0.0, PADDED_KEY).to(queries.dtype)[None]
        key_mask = torch.cat([key_mask, padding], dim=1)
    states = layer_norm(states, weights, "Qformer.bert.embeddings.LayerNorm", QFORMER_EPS)

    def sublayer(x: Tensor, update: Tensor, name: str) -> Tensor:
        """Dense, then post-norm: LayerNorm(x + update)."""
        return layer_norm(
            x + linear(update, weights, f"{name}.dense"), weights, f"{name}.LayerNorm", QFORMER_EPS
        )

    def projected(x: Tensor, y: Tensor, name: str) -> tuple[Tensor, Tensor, Tensor]:
        return linear(x, weights, f"{name}.query"), *(
            linear(y, weights, f"{name}.{part}") for part in ("key", "value")
        )

    cross = []
    for index in range(count_layers(weights, "Qformer.bert.encoder.layer.")):
        layer = f"Qformer.bert.encoder.layer.{index}"
        query, key, value = projected(states, states, f"{layer}.attention.self")
        context, _ = attention(query, key, value, options.qformer_heads, key_mask)
        states = sublayer(states, context, f"{layer}.attention.output")
        query_rows, text_rows = states[:count], states[count:]
        if index % options.cross_attention_every == 0:
            query, key, value = projected(query_rows, image, f"{layer}.crossattention.self")
            context, maps = attention(query, key, value, options.qformer_heads, bias, options.bias_scale)
            cross.append(maps)
            query_rows = sublayer(query_rows, context, f"{layer}.crossattention.output")
        inner = gelu(linear(query_rows, weights, f"{layer}.intermediate_query.dense"))
        query_rows = sublayer(query_rows, inner, f"{layer}.output_query")
        inner = gelu(linear(text_rows, weights, f"{layer}.intermediate.dense"))
        text_rows = sublayer(text_rows, inner, f"{layer}.output")
        states = torch.cat([query_rows, text_rows])
    return states, cross


def reasoning(weights: Weights, options: Options, probes: Tensor) -> Tensor:
    """CRM: probe outputs [K, H] → β [1 or M]; post-norm encoder over [cls ; probes], two-layer head, softplus."""
    x = torch.cat([weights["crm_module.cls_token"][0], probes])
    for index in range(count_layers(weights, "crm_module.transformer_encoder.layers.")):
        layer = f"crm_module.transformer_encoder.layers.{index}"
        joint = (
            x @ weights[f"{layer}.self_attn.in_proj_weight"].T + weights[f"{layer}.self_attn.in_proj_bias"]
        )
        query, key, value = joint.chunk(3, dim=-1)
        context, _ = attention(query, key, value, options.crm_heads)
        x = layer_norm(
            x + linear(context, weights, f"{layer}.self_attn.out_proj"), weights, f"{layer}.norm1", CRM_EPS
        )
        inner = relu(linear(x, weights, f"{layer}.linear1"))
        x = layer_norm(x + linear(inner, weights, f"{layer}.linear2"), weights, f"{layer}.norm2", CRM_EPS)
    inner = relu(linear(x[0], weights, "crm_module.output_head.0"))
    return softplus(linear(inner, weights, "crm_module.output_head.2"))


# The two branches and the loss, for a batch


def encode_query(
    weights: Weights, options: Options, tokens: Tensor, ids: Tensor, mask: Tensor, regions: Tensor
) -> QueryPass:
    """Tower tokens [B, N, D], text ids and mask [B, L], patch masks [B, N] → the query branch."""
    images = [vision_norm(weights, sample) for sample in tokens]
    texts = list(zip(ids, mask, strict=True))
    regions = regions.to(tokens.dtype)
    any_box = bool((regions > 0).any())

    beta = probe_hidden = bias = None
    if options.modulation in ("scalar", "vector") and any_box:
        probes = weights["contextual_probe_tokens"][0]
        probe_hidden = torch.stack(
            [qformer(weights, options, probes, t, i)[0] for t, i in zip(texts, images, strict=True)]
        )
        beta = torch.stack([reasoning(weights, options, h[: len(probes)]) for h in probe_hidden])
    elif options.modulation == "fixed" and options.fixed_beta > 0 and any_box:
        beta = torch.full((len(tokens), 1), options.fixed_beta, dtype=tokens.dtype)
    if beta is not None:
        bias = torch.stack([b[:, None] * r[None] for b, r in zip(beta, regions, strict=True)])[:, None]

    hidden, cross = [], []
    for sample, (text, image) in enumerate(zip(texts, images, strict=True)):
        own_bias = None if bias is None else bias[sample, 0]
        states, maps = qformer(weights, options, weights["query_tokens"][0], text, image, own_bias)
        hidden.append(states)
        cross.append(maps)
    text_cls = torch.stack(hidden)[
        :, weights["query_tokens"].shape[1]
    ]  # behind the queries: the text's [CLS]
    return QueryPass(
        normalise(linear(text_cls, weights, "text_proj")),
        torch.stack(hidden),
        beta,
        bias,
        probe_hidden,
        [torch.stack(layer) for layer in zip(*cross, strict=True)],
    )


def encode_target(weights: Weights, options: Options, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Tower tokens [B, N, D] → M unit vectors per image [B, M, d], and the hidden states before them [B, M, H]."""
    queries = weights["query_tokens"][0]
    hidden = torch.stack(
        [qformer(weights, options, queries, None, vision_norm(weights, sample))[0] for sample in tokens]
    )
    return normalise(linear(hidden, weights, "vision_proj")), hidden


def similarity(f_q: Tensor, targets: Tensor) -> Tensor:
    """Cosine of each query [Q, d] with the best of each target's vectors [T, M, d] → [Q, T]."""
    return torch.stack(
        [torch.stack([torch.stack([query @ v for v in target]).max() for target in targets]) for query in f_q]
    )


def info_nce(scores: Tensor, temperature: Tensor) -> Tensor:
    """Queries over targets, one way: mean of -log of the own target's share; query i belongs to target i."""
    losses = []
    for own, row in enumerate(scores / temperature):
        largest = row.max().detach()
        losses.append(largest + torch.log(torch.exp(row - largest).sum()) - row[own])
    return torch.stack(losses).mean()
