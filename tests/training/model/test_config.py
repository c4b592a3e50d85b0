from __future__ import annotations

import pytest

from infra.base.errors import OacirError
from training.model.config import AdaFocalConfig, preset


def test_vit_g_is_the_papers_model():
    config = preset("vit_g")
    vision, qformer = config.vision_config, config.qformer
    assert (vision.hidden_size, vision.num_hidden_layers, vision.num_attention_heads) == (1408, 39, 16)
    assert (vision.intermediate_size, vision.image_size, vision.patch_size, vision.layer_norm_eps) == (
        6144,
        224,
        14,
        1e-6,
    )
    assert (qformer.hidden_size, qformer.num_hidden_layers, qformer.num_attention_heads) == (768, 12, 12)
    assert (qformer.vocab_size, qformer.layer_norm_eps, qformer.hidden_dropout_prob) == (30523, 1e-12, 0.1)
    assert (config.num_query_tokens, config.num_probe_tokens, config.embed_dim) == (32, 8, 256)
    assert (config.crm_layers, config.crm_heads, config.crm_feedforward, config.beta_hidden) == (
        2,
        8,
        2048,
        512,
    )
    assert (config.initial_temperature, config.vision_norm_eps, config.num_image_tokens) == (0.07, 1e-5, 257)
    assert config.bias_scale == "released"
    assert qformer.encoder_hidden_size == 1408


def test_overrides_reach_nested_fields_and_leave_the_preset_alone():
    config = preset(
        "tiny", modulation="vector", **{"qformer.hidden_size": 64, "vision_config.hidden_size": 48}
    )
    assert (config.modulation, config.qformer.hidden_size, config.qformer.encoder_hidden_size) == (
        "vector",
        64,
        48,
    )
    assert preset("tiny").qformer.hidden_size == 96


def test_save_and_load(tmp_path):
    config = preset("tiny", modulation="fixed", fixed_beta=1.5, trainable_queries=False)
    config.save_pretrained(tmp_path)
    loaded = AdaFocalConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.vision_config.hidden_size == 128


def test_all_problems_are_reported_together():
    with pytest.raises(OacirError) as error:
        preset(
            "tiny", modulation="strong", bias_scale="mine", num_query_tokens=0, **{"qformer.hidden_size": 50}
        )
    for part in (
        "modulation 'strong'",
        "bias_scale 'mine'",
        "num_query_tokens 0",
        "50 is no multiple of 4 heads",
    ):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"fixed_beta": 2.0}, "no effect with modulation 'scalar'"),
        ({"modulation": "fixed", "fixed_beta": -1.0}, "negative"),
        ({"max_text_tokens": 33}, "exceeds qformer.max_position_embeddings 32"),
        ({"vision_config.image_size": 71}, "no multiple of patch_size"),
        ({"vision_config.patch_size": 0}, "no multiple of patch_size 0"),
        ({"crm_heads": 0}, "crm_heads 0 is not positive"),
        ({"qformer.num_attention_heads": 0}, "no multiple of 0 heads"),
        ({"qformer.hiden_size": 64}, "'qformer.hiden_size' is unknown"),
        ({"text.hidden_size": 64}, "is unknown"),
    ],
)
def test_wrong_values(overrides, message):
    with pytest.raises(OacirError, match=message):
        preset("tiny", **overrides)


def test_unknown_preset():
    with pytest.raises(OacirError, match=r"'huge' is unknown, choose one of \['tiny', 'vit_g', 'vit_l'\]"):
        preset("huge")
