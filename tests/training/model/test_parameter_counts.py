"""The real sizes, counted on the meta device (nothing is allocated) against arithmetic by hand."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from transformers import Blip2Config, Blip2ForImageTextRetrieval

from training.model.adafocal import AdaFocalModel
from training.model.config import preset

# A Q-Former layer without cross-attention: self-attention (4 maps of 768 x 768 and their biases, a LayerNorm), and two
# feed-forwards (768 x 3072 both ways, biases, a LayerNorm): 2,363,904 + 2 * 4,723,968.
QFORMER_LAYER = 4 * (768 * 768 + 768) + 2 * 768 + 2 * (2 * 768 * 3072 + 3072 + 768 + 2 * 768)
# Keys and values from tokens of width D, queries and output within 768, a LayerNorm.
CROSS_ATTENTION = {width: 2 * (width * 768 + 768) + 2 * (768 * 768 + 768) + 2 * 768 for width in (1408, 1024)}
EMBEDDINGS = 30523 * 768 + 512 * 768
# Patches 3 x 14 x 14, class token, 257 positions; a block: qkv with one joined bias, output, two LayerNorms, MLP 6144.
EVA = (3 * 14 * 14 * 1408 + 1408) + 1408 + 257 * 1408 + 39 * (
    (3 * 1408 * 1408 + 3 * 1408) + (1408 * 1408 + 1408) + 4 * 1408 + (2 * 1408 * 6144 + 6144 + 1408)
)  # fmt: skip
# No bias of the patches; a LayerNorm in front; a block: four maps with biases, two LayerNorms, MLP 4096.
CLIP = 3 * 14 * 14 * 1024 + 1024 + 257 * 1024 + 2 * 1024 + 23 * (
    4 * (1024 * 1024 + 1024) + 4 * 1024 + (2 * 1024 * 4096 + 4096 + 1024)
)  # fmt: skip
# [CLS], 8 probes, two post-norm layers with feed-forward 2048, head 768 → 512 → outputs.
CRM_LAYER = 4 * (768 * 768 + 768) + (2 * 768 * 2048 + 2048 + 768) + 4 * 768


def caam(outputs: int) -> int:
    return 768 + 8 * 768 + 2 * CRM_LAYER + (768 * 512 + 512) + (512 * outputs + outputs)


def count(module: nn.Module, part: str = "") -> int:
    return sum(p.numel() for name, p in module.named_parameters() if part in name)


@pytest.fixture(scope="module", params=["vit_g", "vit_l"])
def model(request: pytest.FixtureRequest) -> tuple[str, AdaFocalModel]:
    with torch.device("meta"):
        return request.param, AdaFocalModel(preset(request.param))


def test_every_part(model):
    name, built = model
    width, tower = {"vit_g": (1408, EVA), "vit_l": (1024, CLIP)}[name]
    qformer = 12 * QFORMER_LAYER + 6 * CROSS_ATTENTION[width] + 2 * 768
    parts = {
        "vision_model": tower,
        "vision_norm": 2 * width,
        "embeddings": EMBEDDINGS,
        "qformer": qformer,
        "query_tokens": 32 * 768,
        "vision_projection": 768 * 256 + 256,
        "text_projection": 768 * 256 + 256,
        "temp": 1,
        "caam": caam(1),
    }
    for part, expected in parts.items():
        module = getattr(built, part)
        assert (module.numel() if isinstance(module, nn.Parameter) else count(module)) == expected, part
    assert count(built) == sum(parts.values())
    assert count(built.qformer, "crossattention") == 6 * CROSS_ATTENTION[width]
    layers = [i for i, layer in enumerate(built.qformer.encoder.layer) if layer.crossattention is not None]
    assert layers == [0, 2, 4, 6, 8, 10]


def test_the_sums_are_those_that_were_measured():
    """Of the published BLIP-2 in millions; CLIP ViT-L/14 has 303.2 with its 24th block and last LayerNorm."""
    qformer = 12 * QFORMER_LAYER + 6 * CROSS_ATTENTION[1408] + 2 * 768
    assert pytest.approx(986.0e6, abs=0.05e6) == EVA + 2 * 1408
    assert qformer == pytest.approx(161.8e6, abs=0.05e6)
    assert 6 * CROSS_ATTENTION[1408] == pytest.approx(20.1e6, abs=0.05e6)
    assert pytest.approx(23.8e6, abs=0.05e6) == EMBEDDINGS
    assert CLIP == 290_581_504
    assert pytest.approx(303.2e6, abs=0.05e6) == CLIP + 12_596_224 + 2 * 1024


def test_hugging_faces_retrieval_model_is_ours_but_for_heads():
    """1,172 M: ours without CAAM and temperature, with the matching head."""
    with torch.device("meta"):
        config = Blip2Config(qformer_config={"vocab_size": 30523, "use_qformer_text_input": True})
        theirs = Blip2ForImageTextRetrieval(config)
        ours = AdaFocalModel(preset("vit_g", modulation="none"))
        vector = AdaFocalModel(preset("vit_g", modulation="vector"), with_tower=False)
    assert count(theirs) == pytest.approx(1172e6, abs=0.5e6)
    assert count(theirs) == count(ours) - 1 + (2 * 768 + 2)
    assert count(vector.caam) == caam(32)
