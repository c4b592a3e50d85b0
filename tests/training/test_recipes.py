"""Every shipped training recipe takes one optimizer step from photos, boxes (or masks) and texts, in one process."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from infra.base.config import load_recipe
from training.batches import Batch
from training.config import TrainRecipe
from training.export import build_model, build_processor
from training.model.processing import AdaFocalProcessor, Inputs
from training.optim import build_optimizer, set_rates
from training.task import make_task
from training.towers import prepare_tower

SHIPPED = sorted(Path(str(resources.files("training"))).glob("recipes/*.yaml"))
# Every recipe keeps its preset, with its kind of tower, on few and narrow layers.
SMALL = {
    "vision_config.image_size": 28, "vision_config.patch_size": 7, "vision_config.hidden_size": 32,
    "vision_config.num_hidden_layers": 3, "vision_config.num_attention_heads": 4, "vision_config.intermediate_size": 32,
    "qformer.hidden_size": 16, "qformer.num_hidden_layers": 2, "qformer.num_attention_heads": 4,
    "qformer.intermediate_size": 16, "qformer.vocab_size": 200, "num_query_tokens": 4, "embed_dim": 8,
    "crm_feedforward": 16, "beta_hidden": 8,
}  # fmt: skip
TEXTS = ["place it in the snow", "on a table by the window", "at night"]
ROWS = len(TEXTS)


def small_recipe(path: Path) -> TrainRecipe:
    """The recipe on small sizes; nothing else of it is changed."""
    recipe = load_recipe(TrainRecipe, str(path))
    assert recipe.model.weights is None
    assert not recipe.model.overrides
    return recipe.model_copy(update={"model": recipe.model.model_copy(update={"overrides": SMALL})})


def asked(processor: AdaFocalProcessor) -> tuple[Inputs, torch.Tensor]:
    """Three queries on random photos with the processor's kind of region, and the pixels of their targets."""
    generator = np.random.default_rng(0)
    photos = [
        Image.fromarray(generator.integers(0, 256, (40, 48, 3), dtype=np.uint8)) for _ in range(2 * ROWS)
    ]
    mask = np.zeros((40, 48), np.bool_)
    mask[8:30, 10:20] = True
    region = mask if processor.region == "mask" else (10.0, 8.0, 20.0, 30.0)
    inputs = processor(photos[:ROWS], TEXTS, [region] * ROWS, ["mug"] * ROWS)
    return inputs, processor.pixels(photos[ROWS:])


def learns(name: str, recipe: TrainRecipe) -> bool:
    """Whether a parameter of that name is to be trained."""
    if name.startswith("vision_model."):
        assert recipe.tower.layers == 2
        last = name.startswith(("vision_model.encoder.layers.1.", "vision_model.encoder.layers.2."))
        modes = {"last": last, "lora": ".lora_" in name, "full": True}
        return modes.get(recipe.tower.mode, False)
    frozen = {
        "query_tokens": recipe.model.trainable_queries,
        "caam.probe_tokens": recipe.model.trainable_probes,
    }
    return frozen.get(name, True)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_takes_a_step(path: Path) -> None:
    """Whatever is to be trained has a gradient and moves; whatever is frozen, as a rule the tower, stays."""
    recipe = small_recipe(path)
    model = build_model(recipe.model).train()
    clip = recipe.model.preset == "vit_l"
    assert model.config.vision_config.model_type == ("clip_vision_model" if clip else "blip_2_vision_model")
    if recipe.tower.online:
        prepare_tower(model, recipe.tower, recipe.training.seed)
    inputs, target_pixels = asked(build_processor(recipe.model, model.config, lambda: TEXTS))
    region = inputs.patch_mask
    assert bool(region.any()) == (recipe.model.reference_view != "crop")
    images = [
        pixels if recipe.tower.online else model.encode_pixels(pixels)
        for pixels in (inputs.pixels, target_pixels)
    ]
    batch = Batch(
        *images, torch.arange(ROWS),
        inputs.input_ids, inputs.attention_mask, region, modulate=bool(region.any()), total=ROWS,
    )  # fmt: skip
    optimizer = build_optimizer(model.trainable_parameters(), recipe.training, recipe.tower.learning_rate)
    set_rates(optimizer.param_groups, 5, 10, recipe.training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    section = recipe.training
    if section.micro_batch_size is not None:
        section = section.model_copy(update={"micro_batch_size": 2})  # of three queries
    output = make_task(model, section)(batch)
    output.objective.backward()
    optimizer.step()

    assert torch.isfinite(output.loss_sum)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        assert parameter.requires_grad == learns(name, recipe), name
        moved = not torch.equal(parameter, before[name])
        assert moved == (
            parameter.requires_grad and bool(parameter.grad.abs().any() or before[name].any())
        ), name
    assert (output.beta is not None) == (recipe.model.modulation != "none")
    vector = recipe.model.modulation == "vector"
    if output.beta is not None:
        assert output.beta.shape == (ROWS, 4 if vector else 1)


ANNOUNCED = {
    "no modulator": {"tiny_beta0": {"modulation": "none"}, "baseline_vit_g": {"modulation": "none"}},
    "fixed β": {"fixed_beta": {"modulation": "fixed"}},
    "scalar and vector": {"tiny": {"modulation": "scalar"}, "vector": {"modulation": "vector"}},
    "CRM": {
        "crm_average": {"crm": "average", "trainable_probes": True},
        "crm_mlp": {"crm": "mlp", "trainable_probes": True},
        "crm_average_frozen": {"crm": "average", "trainable_probes": False},
        "crm_mlp_frozen": {"crm": "mlp", "trainable_probes": False},
        "probes_frozen": {"crm": "transformer", "trainable_probes": False},
        **{f"crm_depth_{depth}": {"crm_layers": depth} for depth in (1, 3, 4)},  # 2 is the preset's
    },
    "probes": {f"probes_{count}": {"probe_tokens": count} for count in (2, 8, 16, 32)},  # 4 is the preset's
    "bias": {"tiny": {"bias_scale": "released"}, "bias_scale_paper": {"bias_scale": "paper"}},
    "queries": {"queries_frozen": {"trainable_queries": False}},
    "anchors": {
        "roi_crop": {"reference_view": "crop", "modulation": "none"},
        "visual_anchor": {"reference_view": "drawn", "modulation": "none"},
        "text_entity": {"text_entity": "named", "modulation": "none"},
        "text_entity_drawn": {"text_entity": "drawn", "reference_view": "drawn", "modulation": "none"},
        "masks": {"region": "mask", "modulation": "scalar"},
    },
    "SPRC": {
        "sprc": {"method": "sprc", "modulation": "none"},
        "sprc_caam": {"method": "sprc", "modulation": "scalar"},
    },
    "real sizes": {"paper": {"preset": "vit_g"}, "adafocal_vit_l": {"preset": "vit_l"}},
}


@pytest.mark.parametrize("kind", ANNOUNCED)
def test_every_variant_of_the_paper_is_a_recipe_of_its_own(kind: str) -> None:
    """A recipe that lost its switch would train another one's model under its name."""
    by_name = {path.stem: path for path in SHIPPED}
    for name, wanted in ANNOUNCED[kind].items():
        section = load_recipe(TrainRecipe, str(by_name[name])).model.model_dump()
        assert {key: section[key] for key in wanted} == wanted, name


def test_no_two_recipes_are_the_same() -> None:
    trees = [load_recipe(TrainRecipe, str(path)).model_dump_json(exclude={"name"}) for path in SHIPPED]
    assert len(set(trees)) == len(trees)
