from __future__ import annotations

import pytest
import torch

from infra.base.errors import OacirError
from tests.training.model.conftest import small_config
from training.model.convert import from_release


def test_names_and_the_joined_bias():
    query, value = torch.ones(24), torch.full((24,), 2.0)
    state = {
        "visual_encoder.blocks.3.attn.q_bias": query,
        "visual_encoder.blocks.3.attn.v_bias": value,
        "visual_encoder.blocks.3.norm2.weight": query,
        "ln_vision.bias": query,
        "Qformer.bert.encoder.layer.2.crossattention.self.key.weight": query,
        "Qformer.bert.encoder.layer.2.output_query.dense.bias": query,
        "Qformer.bert.embeddings.position_ids": torch.arange(3),
        "Qformer.cls.predictions.bias": query,
        "crm_module.output_head.0.bias": query,
        "temp": torch.tensor(0.07),
    }
    converted = from_release(state, small_config())
    assert set(converted) == {
        "vision_model.encoder.layers.3.self_attn.qkv.bias",
        "vision_model.encoder.layers.3.layer_norm2.weight",
        "vision_norm.bias",
        "qformer.encoder.layer.2.crossattention.attention.key.weight",
        "qformer.encoder.layer.2.output_query.dense.bias",
        "caam.crm.output_head.0.bias",
        "temp",
    }
    bias = converted["vision_model.encoder.layers.3.self_attn.qkv.bias"]
    assert torch.equal(bias, torch.cat([query, torch.zeros(24), value]))
    assert "caam.crm.output_head.0.bias" not in from_release(state, small_config(modulation="none"))


def test_unknown_weights_are_refused():
    with pytest.raises(OacirError, match=r"'t5_model\.encoder' is no weight of AdaFocal"):
        from_release({"t5_model.encoder": torch.ones(1)}, small_config())
