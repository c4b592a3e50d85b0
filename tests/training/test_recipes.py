"""Every shipped training recipe takes one optimizer step, in one process, on random tokens."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import torch

from infra.base.config import load_recipe
from training.config import TrainRecipe
from training.data import Batch
from training.export import build_model
from training.optim import build_optimizer, set_rates
from training.task import ContrastiveTask

SHIPPED = sorted(Path(str(resources.files("training"))).glob("recipes/*.yaml"))
# What a recipe for GPUs is stepped with here: its own switches on the small sizes of `tiny`.
SHRUNK = {"preset": "tiny", "weights": None}
ROWS = 3


def small_recipe(path: Path) -> TrainRecipe:
    """The recipe, on few and narrow layers."""
    tree = load_recipe(TrainRecipe, str(path)).model_dump()
    tree["model"] |= SHRUNK
    tree["model"]["overrides"] = {
        "qformer.hidden_size": 16, "qformer.intermediate_size": 16, "crm_feedforward": 16,
        "num_query_tokens": 4, "embed_dim": 8, "vision_config.image_size": 16,
    }  # fmt: skip
    return TrainRecipe.model_validate(tree)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_takes_a_step(path: Path) -> None:
    """Whatever is to be trained has a gradient and moves; whatever is frozen stays."""
    recipe = small_recipe(path)
    model = build_model(recipe.model, with_tower=False).train()
    generator = torch.Generator().manual_seed(0)
    references, targets = torch.randn(2, ROWS, 17, 128, generator=generator)
    ids, mask = torch.randint(5, 100, (ROWS, 6), generator=generator), torch.ones(ROWS, 6, dtype=torch.int64)
    region = (torch.rand(ROWS, 17, generator=generator) > 0.5).float()
    batch = Batch(references, targets, torch.arange(ROWS), ids, mask, region, modulate=True, total=ROWS)
    optimizer = build_optimizer(model.trainable_parameters(), recipe.training)
    set_rates(optimizer.param_groups, 5, 10, recipe.training)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}

    output = ContrastiveTask(model)(batch)
    output.objective.backward()
    optimizer.step()

    assert torch.isfinite(output.loss_sum)
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name
        moved = not torch.equal(parameter, before[name])
        assert moved == (
            parameter.requires_grad and bool(parameter.grad.abs().any() or before[name].any())
        ), name
    assert (output.beta is not None) == (recipe.model.modulation != "none")
    vector = recipe.model.modulation == "vector"
    if output.beta is not None:
        assert output.beta.shape == (ROWS, 4 if vector else 1)
