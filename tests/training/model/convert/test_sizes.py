from __future__ import annotations

import pytest
import torch

from training.model.adafocal import AdaFocalModel
from training.model.config import preset
from training.model.convert import to_release
from training.model.convert.sizes import Shapes, release_config


def shapes_of(name: str, **changes: object) -> Shapes:
    with torch.device("meta"):
        model = AdaFocalModel(preset(name, **changes))
    return {n: tuple(w.shape) for n, w in to_release(model.state_dict(), model.config).items()}


@pytest.mark.parametrize("modulation", ["scalar", "vector", "none"])
@pytest.mark.parametrize("name", ["vit_g", "vit_l"])
def test_the_real_sizes_need_no_word(name, modulation):
    """Heads, the length of texts and everything else as in the presets, from names and shapes alone."""
    found = release_config(shapes_of(name, modulation=modulation), {})
    assert found.to_dict() == preset(name, modulation=modulation).to_dict()


def test_sizes_that_differ_are_found():
    changes = {
        "num_probe_tokens": 4,
        "crm_layers": 3,
        "embed_dim": 128,
        "qformer.cross_attention_frequency": 3,
    }
    found = release_config(shapes_of("vit_l", **changes), {})
    assert found.to_dict() == preset("vit_l", **changes).to_dict()


def test_one_odd_weight_does_not_decide():
    shapes = dict(shapes_of("vit_g"))
    for name, wrong in (
        ("Qformer.bert.encoder.layer.3.attention.output.LayerNorm.weight", (5,)),
        ("Qformer.bert.encoder.layer.0.intermediate.dense.weight", (7, 768)),
        ("visual_encoder.blocks.0.norm1.weight", ()),
        ("query_tokens", (32, 768)),
    ):
        shapes[name] = wrong
    found = release_config(shapes, {"num_query_tokens": 32})
    assert found.to_dict() == preset("vit_g").to_dict()


def test_without_its_tower_the_layer_norm_behind_it_tells_which():
    for name in ("vit_g", "vit_l"):
        shapes = {n: s for n, s in shapes_of(name).items() if not n.startswith("visual_encoder.")}
        assert release_config(shapes, {}).to_dict() == preset(name).to_dict()
