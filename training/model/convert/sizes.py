"""The configuration that a checkpoint's weights imply."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

from transformers import Blip2Config

from infra.base.errors import OacirError
from training.model.config import AdaFocalConfig, preset

Shapes = Mapping[str, tuple[int, ...]]

EVA_HEAD_WIDTH, CLIP_HEAD_WIDTH, QFORMER_HEAD_WIDTH = 88, 64, 64
"""Width of an attention head in EVA ViT-g, CLIP ViT-L and BERT-base: heads leave no trace in the weights' shapes."""
CLIP_WIDTH = 1024
"""Of CLIP ViT-L: tells which tower a file without one was trained behind."""
MAX_TEXT_TOKENS = 32
"""What BLIP-2 and the release cut texts to; not in their files."""


def release_config(shapes: Shapes, overrides: Mapping[str, Any]) -> AdaFocalConfig:
    """Sizes and modulation of a checkpoint with the authors' (LAVIS') names.

    What no weight tells is as in the presets "vit_g" or "vit_l": a weight that is missing then shows up as such when
    names and shapes are compared.

    Args:
        shapes: of all its weights.
        overrides: fields of the configuration, dotted for the nested ones, that count before what was found.

    Raises:
        OacirError: heads cannot be told, or a value that does not fit.
    """
    size = _Sizes(shapes)
    clip = size.has(r"visual_encoder\.(class_embedding|transformer\..*)") or (
        not size.has(r"visual_encoder\..*") and size.of(r"ln_vision\.weight", 0) == CLIP_WIDTH
    )
    found = _clip(size) if clip else _eva(size)
    layer = r"Qformer\.bert\.encoder\.layer"
    crossing = sorted(size.indices(rf"{layer}\.(\d+)\.crossattention\..*"))
    steps = [after - before for before, after in pairwise(crossing)]
    layers = size.count(rf"{layer}\.(\d+)\..*")
    found |= {
        "qformer.hidden_size": size.of(rf"{layer}\.\d+\.\w+\.output\.LayerNorm\.weight", 0),
        "qformer.num_hidden_layers": layers,
        "qformer.intermediate_size": size.of(rf"{layer}\.\d+\.intermediate(_query)?\.dense\.weight", 0),
        "qformer.cross_attention_frequency": min(steps) if steps else layers,
        "qformer.vocab_size": size.of(r"Qformer\.bert\.embeddings\.word_embeddings\.weight", 0),
        "qformer.max_position_embeddings": size.of(
            r"Qformer\.bert\.embeddings\.position_embeddings\.weight", 0
        ),
        "num_query_tokens": size.of("query_tokens", 1),
        "embed_dim": size.of(r"(vision|text)_proj\.weight", 0),
        "modulation": "none",
    }
    if size.has(r"crm_module\..*|contextual_probe_tokens"):
        outputs = size.of(r"crm_module\.output_head\.2\.(weight|bias)", 0)
        found |= {
            "modulation": "scalar" if outputs == 1 else "vector",
            "num_probe_tokens": size.of("contextual_probe_tokens", 1),
            "crm_layers": size.count(r"crm_module\.transformer_encoder\.layers\.(\d+)\..*"),
            "crm_feedforward": size.of(r"crm_module\.transformer_encoder\.layers\.\d+\.linear1\.weight", 0),
            "beta_hidden": size.of(r"crm_module\.output_head\.0\.weight", 0),
        }
    known = {key: value for key, value in found.items() if value is not None} | dict(overrides)
    kind = "vit_l" if clip else "vit_g"
    known = _with_heads(known, "vision_config", CLIP_HEAD_WIDTH if clip else EVA_HEAD_WIDTH)
    known = _with_heads(known, "qformer", QFORMER_HEAD_WIDTH)
    positions = known.get("qformer.max_position_embeddings", MAX_TEXT_TOKENS)
    return preset(kind, **{"max_text_tokens": min(MAX_TEXT_TOKENS, positions), **known})


def huggingface_config(folder: Path, overrides: Mapping[str, Any]) -> AdaFocalConfig:
    """Sizes of a `Blip2ForImageTextRetrieval` directory, from its config.json.

    The LayerNorm behind the tower keeps BLIP-2's 1e-5: Hugging Face's class has the tower's 1e-6 there.
    """
    theirs = Blip2Config.from_pretrained(folder)
    names = {
        "vision_config": (
            "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "image_size",
            "patch_size", "hidden_act", "layer_norm_eps", "qkv_bias",
        ),
        "qformer": (
            "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size",
            "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "max_position_embeddings",
            "layer_norm_eps", "cross_attention_frequency",
        ),
    }  # fmt: skip
    parts = {"vision_config": theirs.vision_config, "qformer": theirs.qformer_config}
    found = {
        f"{part}.{name}": getattr(parts[part], name) for part, fields in names.items() for name in fields
    }
    found |= {
        "num_query_tokens": theirs.num_query_tokens,
        "embed_dim": theirs.image_text_hidden_size,
        "max_text_tokens": min(MAX_TEXT_TOKENS, theirs.qformer_config.max_position_embeddings),
        "modulation": "none",
    }
    return preset("vit_g", **(found | dict(overrides)))


def _eva(size: _Sizes) -> dict[str, Any]:
    return {
        "vision_config.hidden_size": size.of(r"(visual_encoder\.blocks\.\d+\.norm[12]|ln_vision)\.weight", 0),
        "vision_config.num_hidden_layers": size.count(r"visual_encoder\.blocks\.(\d+)\..*"),
        "vision_config.intermediate_size": size.of(r"visual_encoder\.blocks\.\d+\.mlp\.fc1\.weight", 0),
        **_patches(
            size.of(r"visual_encoder\.patch_embed\.proj\.weight", 3), size.of(r"visual_encoder\.pos_embed", 1)
        ),
    }


def _clip(size: _Sizes) -> dict[str, Any]:
    block = r"visual_encoder\.transformer\.resblocks"
    return {
        "vision_config.hidden_size": size.of(rf"({block}\.\d+\.ln_[12]|ln_vision)\.weight", 0),
        "vision_config.num_hidden_layers": size.count(rf"{block}\.(\d+)\..*"),
        "vision_config.intermediate_size": size.of(rf"{block}\.\d+\.mlp\.c_fc\.weight", 0),
        **_patches(
            size.of(r"visual_encoder\.conv1\.weight", 3), size.of(r"visual_encoder\.positional_embedding", 0)
        ),
    }


def _patches(patch: int | None, tokens: int | None) -> dict[str, Any]:
    if patch is None or tokens is None or tokens < 2:
        return {}
    return {"vision_config.patch_size": patch, "vision_config.image_size": patch * math.isqrt(tokens - 1)}


def _with_heads(known: dict[str, Any], part: str, width: int) -> dict[str, Any]:
    total = known.get(f"{part}.hidden_size")
    key = f"{part}.num_attention_heads"
    if total is None or key in known:
        return known
    if total % width:
        raise OacirError(
            f"checkpoint: the heads of {part} cannot be told from its width {total}, no multiple of the usual {width};"
            f" say how many, --overrides '{{\"{key}\": N}}'"
        )
    return known | {key: total // width}


class _Sizes:
    """Questions to the shapes of a state dict.

    Where several weights can answer, most of them decide: a single odd one is then found out by the comparison. None
    where no weight can.
    """

    def __init__(self, shapes: Shapes) -> None:
        self.shapes = shapes

    def has(self, pattern: str) -> bool:
        return any(re.fullmatch(pattern, name) for name in self.shapes)

    def of(self, pattern: str, axis: int) -> int | None:
        answers = Counter(
            shape[axis]
            for name, shape in self.shapes.items()
            if re.fullmatch(pattern, name) and len(shape) > axis
        )
        return answers.most_common(1)[0][0] if answers else None

    def indices(self, pattern: str) -> set[int]:
        matches = (re.fullmatch(pattern, name) for name in self.shapes)
        return {int(found[1]) for found in matches if found}

    def count(self, pattern: str) -> int | None:
        found = self.indices(pattern)
        return max(found) + 1 if found else None
