"""Compiled layers: the same loss and gradients, graphs for every length of text, a refusal without a compiler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_training import ROWS, Gradients, global_batch, part, small_model
from torch._dynamo.utils import counters
from torch._inductor import config as inductor

from infra.base.command import Context
from infra.base.errors import OacirError
from training.batches import Batch
from training.compiled import compile_layers, require_compiler
from training.config import TrainRecipe
from training.task import ContrastiveTask
from training.trainer import train


def has_compiler() -> bool:
    try:
        require_compiler()
    except OacirError:
        return False
    return True


def test_without_a_compiler_one_line_refuses_before_anything_is_read(tmp_path: Path) -> None:
    recipe = TrainRecipe.model_validate({"training": {"compile": True}})
    told = r"^training\.compile needs a C\+\+ compiler .*: install g\+\+, or set training\.compile to false$"
    with inductor.patch({"cpp.cxx": ("no-such-compiler",)}):
        with pytest.raises(OacirError, match=told):
            train(recipe, Context(root=str(tmp_path)))
        with pytest.raises(OacirError, match=told):
            compile_layers(small_model(torch.float32))


def shorter(batch: Batch) -> Batch:
    """Fewer rows, and texts of another length."""
    rows = 7
    return batch._replace(
        reference_tokens=batch.reference_tokens[:rows], target_index=batch.target_index[:rows],
        input_ids=batch.input_ids[:rows, :5], attention_mask=batch.attention_mask[:rows, :5],
        patch_mask=batch.patch_mask[:rows], total=rows,
    )  # fmt: skip


def gradients(compiled: bool, batches: list[Batch]) -> tuple[list[float], Gradients, list[int]]:
    """Losses of the batches, the sum of their gradients, and how many graphs there were after each."""
    sizes: dict[str, Any] = {
        "qformer.num_hidden_layers": 1,
        "modulation": "none",
    }  # few graphs: each takes long
    model = small_model(torch.float32, **sizes)
    if compiled:
        compile_layers(model)
    task, losses, graphs = ContrastiveTask(model, micro_batch=8), [], []
    for batch in batches:
        output = task(batch)
        output.objective.backward()
        losses.append(float(output.loss_sum) / batch.total)
        graphs.append(counters["stats"]["unique_graphs"])
    return losses, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, graphs


@pytest.mark.long
@pytest.mark.skipif(not has_compiler(), reason="torch.compile needs a C++ compiler, and there is none")
def test_compiled_layers_train_as_the_others_do() -> None:
    whole = part(global_batch(torch.float32), 0, 1)
    batches = [whole, shorter(whole)]
    assert ROWS > 8  # the first is cut into micro-batches
    expected_losses, expected, none = gradients(False, batches)
    counters.clear()
    losses, found, graphs = gradients(True, batches)
    assert none == [0, 0]
    assert graphs[0] > 0
    assert graphs[1] == graphs[0]  # nothing was compiled anew
    assert losses == pytest.approx(expected_losses, rel=1e-5)
    both = [torch.cat([g[n].flatten() for n in expected]) for g in (found, expected)]
    assert float((both[0] - both[1]).norm() / both[1].norm()) <= 1e-4
    assert found.keys() == expected.keys()  # the names of the weights are those of the model
