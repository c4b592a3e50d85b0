"""FLOPs by formula against torch's counter over a real forward and backward pass."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from training.batches import Batch
from training.config import TrainingSection
from training.flops import Shapes, peak_flops, step_flops, tower_flops
from training.model.auto import random_model
from training.model.config import preset
from training.task import make_task
from training.tower_config import TowerSection
from training.towers import prepare_tower

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other

SMALL: dict[str, Any] = {
    "vision_config.image_size": 32,
    "vision_config.patch_size": 8,
    "qformer.num_hidden_layers": 4,
    "qformer.cross_attention_frequency": 2,
    "qformer.vocab_size": 50,
}
LENGTHS = (3, 7, 5)
STORED = TowerSection()
TARGETS = 2
"""Two of the three queries have one target."""


def batch(model: Any, modulate: bool = True) -> Batch:
    generator = torch.Generator().manual_seed(0)
    count, longest = len(LENGTHS), max(LENGTHS)
    image = (model.config.num_image_tokens, model.config.vision_config.hidden_size)
    mask = (torch.arange(longest)[None] < torch.tensor(LENGTHS)[:, None]).long()
    region = torch.zeros(count, image[0])
    region[:, 2:5] = 1.0
    return Batch(
        torch.randn(count, *image, generator=generator),
        torch.randn(TARGETS, *image, generator=generator),
        torch.tensor([0, 1, 0]),
        torch.randint(5, 50, (count, longest), generator=generator) * mask,
        mask,
        region,
        modulate,
        count,
    )


def counted(model: Any, given: Batch) -> int:
    task = make_task(model.train(), TrainingSection())
    # the plain kernel, which is made of products that the counter knows
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        task(given).objective.backward()
    return counter.get_total_flops()


SHAPES = Shapes(len(LENGTHS), TARGETS, len(LENGTHS), sum(LENGTHS), max(LENGTHS), True)


@pytest.mark.parametrize(
    "method",
    [
        {"modulation": "scalar"},
        {"modulation": "vector"},
        {"modulation": "none"},
        {"modulation": "fixed", "fixed_beta": 2.0},
        {"crm": "mlp"},
        {"crm": "average"},
        {"crm_layers": 3, "num_probe_tokens": 2},
        {"qformer.cross_attention_frequency": 1, "qformer.num_hidden_layers": 3},
        {"method": "sprc", "modulation": "none"},
        {"method": "sprc", "modulation": "scalar"},
    ],
    ids=str,
)
def test_a_step_takes_as_many_flops_as_torch_counts(method: dict[str, Any]) -> None:
    model = random_model(preset("tiny", **{**SMALL, **method}), seed=0, with_tower=False)
    assert step_flops(model.config, SHAPES, STORED) == counted(model, batch(model))


def test_without_a_region_the_modulator_costs_nothing() -> None:
    model = random_model(preset("tiny", **SMALL), seed=0, with_tower=False)
    plain = SHAPES._replace(modulate=False)
    assert step_flops(model.config, plain, STORED) == counted(model, batch(model, modulate=False))


@pytest.mark.parametrize("mode", ["frozen", "last", "full"])
@pytest.mark.parametrize("name", ["tiny", "vit_l"])
def test_a_step_on_pixels_takes_as_many_flops_as_torch_counts(name: str, mode: str) -> None:
    vision = {
        "image_size": 28,
        "patch_size": 14,
        "hidden_size": 32,
        "num_hidden_layers": 3,
        "intermediate_size": 40,
    }
    config = preset(name, **{f"vision_config.{key}": value for key, value in vision.items()}, **{
        "qformer.hidden_size": 32, "qformer.num_attention_heads": 4, "qformer.num_hidden_layers": 2,
        "qformer.intermediate_size": 48, "num_query_tokens": 5, "crm_feedforward": 40,
        "qformer.hidden_dropout_prob": 0.0, "qformer.attention_probs_dropout_prob": 0.0, "crm_dropout": 0.0,
    })  # fmt: skip
    section = TowerSection.model_validate({"mode": mode} | ({"layers": 1} if mode == "last" else {}))
    model = random_model(config, seed=0)
    prepare_tower(model, section, 0)
    pixels = torch.rand(5, 3, 28, 28)
    given = batch(model)._replace(reference_tokens=pixels[:3], target_tokens=pixels[3:])
    assert step_flops(config, SHAPES, section) == counted(model, given)


def test_adapters_are_not_counted() -> None:
    assert step_flops(preset("tiny"), SHAPES, TowerSection(mode="lora")) is None


@pytest.mark.parametrize("name", ["tiny", "vit_l"])
def test_the_tower_takes_as_many_flops_as_torch_counts(name: str) -> None:
    sizes = {"vision_config.num_hidden_layers": 2, "vision_config.hidden_size": 32}
    config = preset(name, **{"vision_config.image_size": 28, "vision_config.patch_size": 14, **sizes})
    model = random_model(config, seed=0)
    pixels = torch.randn(2, 3, 28, 28)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        model.encode_pixels(pixels)
    assert 2 * tower_flops(config) == counter.get_total_flops()


def test_the_towers_of_real_size_take_what_others_count() -> None:
    """EVA ViT-g/14 at 224 px with BLIP-2's 39 blocks: 521 GFLOP."""
    assert tower_flops(preset("vit_g")) / 1e9 == pytest.approx(521, rel=0.01)


def test_a_method_that_is_not_known_has_no_number() -> None:
    config = preset("tiny")
    config.model_type = "another"
    assert step_flops(config, SHAPES, STORED) is None


@pytest.mark.parametrize(
    ("name", "precision", "tflops"),
    [
        ("NVIDIA H200", "bfloat16", 989.5),
        ("NVIDIA H200", "float32", 67.0),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA L40S", "float16", 362.0),
        ("NVIDIA L4", "bfloat16", 121.0),
    ],
)
def test_peaks_of_known_devices(name: str, precision: str, tflops: float) -> None:
    assert peak_flops(name, precision) == tflops * 1e12


def test_no_peak_is_made_up() -> None:
    assert peak_flops("Tesla T4", "bfloat16") is None
    assert peak_flops("NVIDIA L40", "bfloat16") is None  # neither an L4 nor an L40S
    assert peak_flops("NVIDIA H200 NVL", "bfloat16") is None
    assert peak_flops("AMD Instinct MI300X", "bfloat16") is None
