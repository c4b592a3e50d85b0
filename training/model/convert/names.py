"""Names and forms of the weights: the authors' release and LAVIS' BLIP-2, Hugging Face's BLIP-2, and ours.

One table per part, read in both directions. What is not a mere renaming: EVA's query and value biases are one vector
here, with zeros for the keys between them; CLIP's joint input projection is three here.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from transformers import CLIPVisionConfig

from infra.base.errors import OacirError
from training.model.config import AdaFocalConfig

Pairs = tuple[tuple[str, str], ...]

# Released name, our name. A name that ends in "." stands for all below it, "#" for a layer's number; the first that
# fits counts.
COMMON: Pairs = (
    ("query_tokens", "query_tokens"),
    ("temp", "temp"),
    ("ln_vision.", "vision_norm."),
    ("Qformer.bert.embeddings.LayerNorm.", "qformer.layernorm."),
    ("Qformer.bert.embeddings.word_embeddings.", "embeddings.word_embeddings."),
    ("Qformer.bert.embeddings.position_embeddings.", "embeddings.position_embeddings."),
    ("Qformer.bert.encoder.layer.#.attention.self.", "qformer.encoder.layer.#.attention.attention."),
    (
        "Qformer.bert.encoder.layer.#.crossattention.self.",
        "qformer.encoder.layer.#.crossattention.attention.",
    ),
    ("Qformer.bert.encoder.layer.#.", "qformer.encoder.layer.#."),
    ("vision_proj.", "vision_projection."),
    ("text_proj.", "text_projection."),
    ("contextual_probe_tokens", "caam.probe_tokens"),
    ("crm_module.cls_token", "caam.crm.cls_token"),
    ("crm_module.transformer_encoder.", "caam.crm.transformer_encoder."),
    ("crm_module.output_head.", "caam.crm.output_head."),
)
EVA: Pairs = (
    ("visual_encoder.cls_token", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.pos_embed", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.patch_embed.proj.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.blocks.#.norm1.", "vision_model.encoder.layers.#.layer_norm1."),
    ("visual_encoder.blocks.#.norm2.", "vision_model.encoder.layers.#.layer_norm2."),
    ("visual_encoder.blocks.#.attn.qkv.weight", "vision_model.encoder.layers.#.self_attn.qkv.weight"),
    ("visual_encoder.blocks.#.attn.proj.", "vision_model.encoder.layers.#.self_attn.projection."),
    ("visual_encoder.blocks.#.mlp.", "vision_model.encoder.layers.#.mlp."),
)
CLIP: Pairs = (
    ("visual_encoder.class_embedding", "vision_model.embeddings.class_embedding"),
    ("visual_encoder.positional_embedding", "vision_model.embeddings.position_embedding"),
    ("visual_encoder.conv1.", "vision_model.embeddings.patch_embedding."),
    ("visual_encoder.ln_pre.", "vision_model.pre_layernorm."),
    ("visual_encoder.transformer.resblocks.#.ln_1.", "vision_model.encoder.layers.#.layer_norm1."),
    ("visual_encoder.transformer.resblocks.#.ln_2.", "vision_model.encoder.layers.#.layer_norm2."),
    ("visual_encoder.transformer.resblocks.#.attn.out_proj.", "vision_model.encoder.layers.#.self_attn.out_proj."),
    ("visual_encoder.transformer.resblocks.#.mlp.c_fc.", "vision_model.encoder.layers.#.mlp.fc1."),
    ("visual_encoder.transformer.resblocks.#.mlp.c_proj.", "vision_model.encoder.layers.#.mlp.fc2."),
)  # fmt: skip
HUGGINGFACE: Pairs = (("vision_model.post_layernorm.", "vision_norm."),)

POSITION_IDS = "Qformer.bert.embeddings.position_ids"
UNUSED = re.compile(r"Qformer\.cls\..*|itm_head\..*|(.*\.)?position_ids")
"""Weights of BLIP-2 that AdaFocal does not have: its language and matching heads, and an index of positions."""

_EVA_PART = re.compile(r"visual_encoder\.blocks\.(\d+)\.attn\.[qv]_bias")
_EVA_WHOLE = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.qkv\.bias")
_CLIP_WHOLE = re.compile(r"visual_encoder\.transformer\.resblocks\.(\d+)\.attn\.in_proj_(weight|bias)")
_CLIP_PART = re.compile(r"vision_model\.encoder\.layers\.(\d+)\.self_attn\.([qkv])_proj\.(weight|bias)")


def from_release(state: Mapping[str, Tensor], config: AdaFocalConfig) -> dict[str, Tensor]:
    """Weights under the authors' (LAVIS') names → those of `AdaFocalModel(config)`; also of a part of a model.

    What AdaFocal does not have is left out (`UNUSED`), as are the modulator's weights when `config` has none.

    Raises:
        OacirError: weights that have no place here, all of them.
    """
    ours: dict[str, Tensor] = {}
    unknown = []
    for name, weight in state.items():
        if UNUSED.fullmatch(name):
            continue
        if part := _EVA_PART.fullmatch(name):
            prefix = name.rsplit(".", 1)[0]
            query, value = state.get(f"{prefix}.q_bias"), state.get(f"{prefix}.v_bias")
            if query is None or value is None:
                unknown.append(f"{name} without its counterpart")
                continue
            joined = torch.cat([query, torch.zeros_like(query), value])
            ours[f"vision_model.encoder.layers.{part[1]}.self_attn.qkv.bias"] = joined
        elif whole := _CLIP_WHOLE.fullmatch(name):
            for letter, third in zip("qkv", weight.chunk(3), strict=True):
                ours[f"vision_model.encoder.layers.{whole[1]}.self_attn.{letter}_proj.{whole[2]}"] = (
                    third.clone()
                )
        elif (renamed := _renamed(name, (*COMMON, *EVA, *CLIP))) is not None:
            ours[renamed] = weight
        else:
            unknown.append(name)
    if unknown:
        raise OacirError(
            f"released weights: AdaFocal has no {listed(unknown)}; give the state dict of one of its models"
        )
    if config.modulation in ("none", "fixed"):
        ours = {name: weight for name, weight in ours.items() if not name.startswith("caam.")}
    return ours


def to_release(state: Mapping[str, Tensor], config: AdaFocalConfig) -> dict[str, Tensor]:
    """The inverse of `from_release`; the index of positions is made anew, BLIP-2's two heads are gone.

    Raises:
        OacirError: weights that the released layout has no name for, or a key bias in an EVA tower, all of them; or a
            β with a scale, which the authors' code would not apply.
    """
    if config.modulation in ("scalar", "vector") and config.beta_scale != 1:
        raise OacirError(
            f"the released layout has no place for beta_scale {config.beta_scale:g}; convert a model with scale 1"
        )
    tower = CLIP if isinstance(config.vision_config, CLIPVisionConfig) else EVA
    reverse = tuple((ours, released) for released, ours in (*COMMON, *tower))
    released: dict[str, Tensor] = {}
    unknown = []
    for name, weight in state.items():
        if whole := _EVA_WHOLE.fullmatch(name):
            query, key, value = weight.chunk(3)
            if not weight.is_meta and bool(key.any()):
                unknown.append(f"{name} (its keys have a bias)")
            prefix = f"visual_encoder.blocks.{whole[1]}.attn"
            released |= {f"{prefix}.q_bias": query.clone(), f"{prefix}.v_bias": value.clone()}
        elif part := _CLIP_PART.fullmatch(name):
            _, letter, kind = part.groups()
            if letter == "q":  # stands for all three
                thirds = [state[name.replace("q_proj", f"{other}_proj")] for other in "qkv"]
                joined = f"visual_encoder.transformer.resblocks.{part[1]}.attn.in_proj_{kind}"
                released[joined] = torch.cat(thirds)
        elif (renamed := _renamed(name, reverse)) is not None:
            released[renamed] = weight
        else:
            unknown.append(name)
    if unknown:
        raise OacirError(
            f"the released layout has no place for {listed(unknown)}; it knows AdaFocal's own models"
        )
    return released | {POSITION_IDS: torch.arange(config.qformer.max_position_embeddings)[None]}


def from_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of `Blip2ForImageTextRetrieval` → ours; what AdaFocal does not have is left out."""
    return {
        _renamed(name, HUGGINGFACE) or name: weight
        for name, weight in state.items()
        if not UNUSED.fullmatch(name)
    }


def to_huggingface(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Ours → the names of `Blip2ForImageTextRetrieval`; it has no temperature and no modulator."""
    reverse = tuple((ours, theirs) for theirs, ours in HUGGINGFACE)
    return {
        _renamed(name, reverse) or name: weight
        for name, weight in state.items()
        if name != "temp" and not name.startswith("caam.")
    }


def listed(names: Sequence[str], most: int = 20) -> str:
    """Names for one line of an error: "'a', 'b' and 3 more"."""
    shown = ", ".join(repr(name) for name in names[:most])
    return f"{shown} and {len(names) - most:,} more" if len(names) > most else shown


def _renamed(name: str, pairs: Pairs) -> str | None:
    for old, new in pairs:
        pattern = re.escape(old).replace(r"\#", r"(\d+)") + ("" if old.endswith(".") else "$")
        if found := re.match(pattern, name):
            layer = found[1] if found.groups() else ""
            return new.replace("#", layer) + name[found.end() :]
    return None
