"""Weights of the authors' release (LAVIS names) → the names used here."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

from infra.base.errors import OacirError
from training.model.config import AdaFocalConfig

_RENAMED = (
    (r"^visual_encoder\.cls_token$", "vision_model.embeddings.class_embedding"),
    (r"^visual_encoder\.pos_embed$", "vision_model.embeddings.position_embedding"),
    (r"^visual_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual_encoder\.blocks\.(\d+)\.norm([12])\.", r"vision_model.encoder.layers.\1.layer_norm\2."),
    (
        r"^visual_encoder\.blocks\.(\d+)\.attn\.proj\.",
        r"vision_model.encoder.layers.\1.self_attn.projection.",
    ),
    (r"^visual_encoder\.blocks\.(\d+)\.attn\.qkv\.", r"vision_model.encoder.layers.\1.self_attn.qkv."),
    (r"^visual_encoder\.blocks\.(\d+)\.mlp\.", r"vision_model.encoder.layers.\1.mlp."),
    (r"^ln_vision\.", "vision_norm."),
    (r"^Qformer\.bert\.embeddings\.LayerNorm\.", "qformer.layernorm."),
    (r"^Qformer\.bert\.embeddings\.", "embeddings."),
    (r"^Qformer\.bert\.encoder\.layer\.(\d+)\.(\w+)\.self\.", r"qformer.encoder.layer.\1.\2.attention."),
    (r"^Qformer\.bert\.encoder\.", "qformer.encoder."),
    (r"^vision_proj\.", "vision_projection."),
    (r"^text_proj\.", "text_projection."),
    (r"^contextual_probe_tokens$", "caam.probe_tokens"),
    (r"^crm_module\.", "caam.crm."),
)
_DROPPED = re.compile(r"^Qformer\.(cls\.|bert\.embeddings\.position_ids$)")
_QKV_PART = re.compile(r"^visual_encoder\.blocks\.(\d+)\.attn\.[qv]_bias$")


def from_release(state: Mapping[str, Tensor], config: AdaFocalConfig) -> dict[str, Tensor]:
    """A state dict for `AdaFocalModel(config)` from one of the released models.

    The masked-language head and the position index are dropped, as are the modulator's weights when `config` has
    none; the tower's query and value biases are joined to one (its keys have no bias).

    Raises:
        OacirError: a weight that no rule knows.
    """
    converted: dict[str, Tensor] = {}
    for name, weight in state.items():
        part = _QKV_PART.match(name)
        if part:
            prefix = name.rsplit(".", 1)[0]
            query, value = state[f"{prefix}.q_bias"], state[f"{prefix}.v_bias"]
            bias = torch.cat([query, torch.zeros_like(query), value])
            converted[f"vision_model.encoder.layers.{part[1]}.self_attn.qkv.bias"] = bias
        elif not _DROPPED.match(name):
            converted[_renamed(name)] = weight
    if config.modulation in ("none", "fixed"):
        converted = {name: weight for name, weight in converted.items() if not name.startswith("caam.")}
    return converted


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        new, count = re.subn(pattern, replacement, name)
        if count:
            return new
    if name in ("query_tokens", "temp"):
        return name
    raise OacirError(
        f"released weights: {name!r} is no weight of AdaFocal; give the state dict of one of its models"
    )
