from __future__ import annotations

import pytest
import torch

from infra.base.errors import OacirError
from tests.training.model.conftest import small_config, small_model
from tests.training.model.convert.conftest import DEPTH, QUERIES, released_state
from training.model.config import AdaFocalConfig
from training.model.convert import from_huggingface, from_release, to_huggingface, to_release

TOWERS = {"eva": "blip_2_vision_model", "clip": "clip_vision_model"}


def config_of(modulation: str, tower: str) -> AdaFocalConfig:
    sizes = {
        "vision_config.model_type": TOWERS[tower],
        "vision_config.num_hidden_layers": DEPTH,
        "vision_config.intermediate_size": 52,
        "qformer.max_position_embeddings": 20,
        "max_text_tokens": 20,
        "num_query_tokens": QUERIES,
    }
    return small_config(modulation=modulation, **sizes)


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


def test_the_joint_projection_of_clip_is_taken_apart_in_order():
    joint = torch.arange(6.0).repeat_interleave(4).view(6, 4)
    ours = from_release({"visual_encoder.transformer.resblocks.1.attn.in_proj_weight": joint}, small_config())
    prefix = "vision_model.encoder.layers.1.self_attn"
    assert {name: weight[:, 0].tolist() for name, weight in ours.items()} == {
        f"{prefix}.q_proj.weight": [0, 1],
        f"{prefix}.k_proj.weight": [2, 3],
        f"{prefix}.v_proj.weight": [4, 5],
    }


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("modulation", ["scalar", "vector", "none"])
def test_there_and_back_every_weight_is_the_same(modulation, tower):
    """All but BLIP-2's language head, which AdaFocal does not have."""
    state = released_state(modulation, tower)
    config = config_of(modulation, tower)
    ours = from_release(state, config)
    back = to_release(ours, config)
    assert set(back) == {name for name in state if not name.startswith("Qformer.cls.")}
    for name, weight in back.items():
        assert torch.equal(weight, state[name]), name
        assert weight.dtype == state[name].dtype
        assert weight.untyped_storage().nbytes() == weight.nbytes  # what is saved drags nothing else along
    again = from_release(back, config)
    assert set(again) == set(ours)
    assert all(weight.untyped_storage().nbytes() == weight.nbytes for weight in ours.values())
    assert all(torch.equal(again[name], weight) for name, weight in ours.items())


def test_unknown_weights_are_refused_all_at_once():
    state = {
        "t5_model.encoder": torch.ones(1),
        "temp": torch.ones(()),
        "visual_encoder.blocks.0.attn.q_bias": torch.ones(2),
    }
    with pytest.raises(OacirError) as error:
        from_release(state, small_config())
    assert str(error.value) == (
        "released weights: AdaFocal has no 't5_model.encoder', 'visual_encoder.blocks.0.attn.q_bias without its"
        " counterpart'; give the state dict of one of its models"
    )


def test_what_the_released_layout_cannot_hold_is_refused_all_at_once():
    model = small_model(crm="mlp")
    state = model.state_dict()
    state["vision_model.encoder.layers.0.self_attn.qkv.bias"][24 + 5] = 0.1  # of a key
    with pytest.raises(OacirError) as error:
        to_release(state, model.config)
    for part in (
        "caam.crm.mlp.weight",
        "caam.crm.mlp.bias",
        "layers.0.self_attn.qkv.bias (its keys have a bias)",
    ):
        assert part in str(error.value)


def test_hugging_face_differs_in_one_name():
    state = {
        "vision_model.post_layernorm.weight": torch.ones(1),
        "qformer.layernorm.weight": torch.ones(2),
        "query_tokens": torch.ones(3),
        "itm_head.weight": torch.ones(4),
        "embeddings.position_ids": torch.arange(3),
    }
    ours = from_huggingface(state)
    assert {name: len(weight) for name, weight in ours.items()} == {
        "vision_norm.weight": 1,
        "qformer.layernorm.weight": 2,
        "query_tokens": 3,
    }
    back = to_huggingface(ours | {"temp": torch.ones(()), "caam.probe_tokens": torch.ones(1)})
    assert set(back) == {"vision_model.post_layernorm.weight", "qformer.layernorm.weight", "query_tokens"}


def test_a_scale_of_beta_has_no_place_in_the_released_layout() -> None:
    model = small_model(beta_scale=2.0)
    with pytest.raises(OacirError, match="no place for beta_scale 2"):
        to_release(model.state_dict(), model.config)
