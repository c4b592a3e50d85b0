"""Negatives from all workers: on 1, 2 and 4 real processes the gradient is the one of a single process.

The processes are forked, so they need no import of their own; each talks gloo on loopback.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_training import (
    ROWS,
    VARIANTS,
    Gradients,
    global_batch,
    largest_relative_error,
    on_processes,
    part,
    small_model,
    variant,
)
from torch import Tensor

from training import distributed
from training import task as task_module
from training.batches import Batch
from training.config import TrainRecipe
from training.distributed import gather_rows, share
from training.losses import info_nce
from training.model.adafocal import AdaFocalModel
from training.model.sprc import SprcModel
from training.scoring import max_over_set
from training.task import ContrastiveTask

Found = dict[str, tuple[float, Gradients]]
"""Loss and gradients by variant."""


def reference_gradients(model: AdaFocalModel) -> tuple[float, Gradients]:
    """One process, plain losses over the whole batch; no code of the distributed path."""
    query, targets = model(**global_batch(model.dtype))
    labels = torch.arange(ROWS)
    loss = info_nce(max_over_set(query.embedding, targets), model.temp, labels)
    if isinstance(model, SprcModel):
        text, fused, prompts = (query.extras[name] for name in ("text_only", "fused", "prompts"))
        rtc = info_nce(max_over_set(text, targets), model.temp, labels)
        align = (fused - prompts.detach()).square().mean()
        loss = loss + model.config.rtc_weight * rtc + model.config.align_weight * align
    loss.backward()
    return loss.item(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def averaged_gradients(world_size: int, names: Sequence[str]) -> Found:
    """Loss and gradients as data parallelism gets them: each worker its own part, then the mean over workers."""

    def one(name: str, rank: int) -> tuple[float, Gradients]:
        model = variant(name)
        output = ContrastiveTask(model)(part(global_batch(torch.float64), rank, world_size))
        output.objective.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size
        loss = output.loss_sum.clone()
        dist.all_reduce(loss)
        return loss.item() / ROWS, {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    # the processes of a world size start once for all variants
    found: Found = on_processes(world_size, lambda rank: {name: one(name, rank) for name in names})
    return found


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_loss_and_gradient_of_every_variant_are_those_of_one_process(world_size: int) -> None:
    results = averaged_gradients(world_size, list(VARIANTS))
    for name in VARIANTS:
        loss, expected = reference_gradients(variant(name))
        found_loss, found = results[name]
        assert found_loss == pytest.approx(loss, abs=1e-12), name
        assert largest_relative_error(found, expected) <= 1e-9, name


class LocalOnly(torch.autograd.Function):
    """The usual mistake: each worker differentiates its own block and drops what others have for it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, count: int) -> Tensor:
        ctx.bounds = share(count, dist.get_rank(), dist.get_world_size())
        with torch.no_grad():
            return gather_rows(rows, count).clone()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0][ctx.bounds[0] : ctx.bounds[1]], None


def test_a_gather_that_is_differentiable_in_its_own_block_only_would_be_noticed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(task_module, "gather_rows", LocalOnly.apply)
    results = averaged_gradients(2, list(VARIANTS))
    for name in VARIANTS:
        loss, expected = reference_gradients(variant(name))
        found_loss, found = results[name]
        assert found_loss == pytest.approx(loss, abs=1e-12)  # the loss alone would not tell
        assert largest_relative_error(found, expected) > 0.01, name


def test_a_missing_world_size_factor_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    right = ContrastiveTask.forward

    def without_factor(self: ContrastiveTask, batch: Batch) -> task_module.StepOutput:
        output = right(self, batch)
        return output._replace(objective=output.objective / dist.get_world_size())

    monkeypatch.setattr(ContrastiveTask, "forward", without_factor)
    _, expected = reference_gradients(variant("scalar"))
    _, found = averaged_gradients(2, ["scalar"])["scalar"]
    assert largest_relative_error(found, expected) == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("world_size", "stage", "names"),
    [
        (2, 2, ("scalar",)),
        (4, 1, ("scalar",)),
        *(
            pytest.param(n, stage, tuple(VARIANTS), marks=pytest.mark.long, id=f"{n}-{stage}-every variant")
            for n, stage in ((1, 2), (2, 0), (2, 1), (2, 2), (2, 3), (4, 1), (4, 2), (4, 3))
        ),
    ],
)
def test_deepspeed_takes_the_mean_that_the_loss_expects(
    world_size: int, stage: int, names: tuple[str, ...]
) -> None:
    """The real engine: gradients as ZeRO hands them to the optimizer."""
    from training.engine import import_deepspeed, make_engine

    import_deepspeed()  # before the fork, so that no child has to

    recipe = TrainRecipe.model_validate(
        {"training": {"batch_size": ROWS}, "scaling": {"workers": world_size, "zero_stage": stage}}
    )

    def one(name: str, rank: int) -> Gradients:
        from deepspeed.utils import safe_get_full_grad

        engine = make_engine(ContrastiveTask(small_model(torch.float32, **VARIANTS[name])), recipe)
        engine.train()
        output = engine(part(global_batch(torch.float32), rank, world_size))
        engine.backward(output.objective)
        found = {
            n: p.grad if stage == 0 else safe_get_full_grad(p)
            for n, p in engine.module.model.named_parameters()
            if p.requires_grad
        }
        return {n: g.clone() for n, g in found.items() if g is not None}

    results = on_processes(world_size, lambda rank: {name: one(name, rank) for name in names})
    for name in names:
        _, expected = reference_gradients(small_model(torch.float32, **VARIANTS[name]))
        found = results[name]
        # ZeRO has zeros for a parameter that the variant does not use
        assert all(n in expected or not g.any() for n, g in found.items()), name
        # as one vector: single parameters with tiny gradients are all rounding in float32
        whole = [torch.cat([g[n].flatten() for n in expected]) for g in (found, expected)]
        assert float((whole[0] - whole[1]).norm() / whole[1].norm()) <= 1e-3, name


def test_shares_cover_all_rows_in_order() -> None:
    assert [share(11, r, 4) for r in range(4)] == [(0, 3), (3, 6), (6, 9), (9, 11)]
    assert [share(2, r, 4) for r in range(4)] == [(0, 1), (1, 2), (2, 2), (2, 2)]


def test_one_process_without_a_group_gathers_its_own_rows() -> None:
    rows = torch.ones(3, 2, requires_grad=True)
    assert distributed.gather_rows(rows, 3) is rows
