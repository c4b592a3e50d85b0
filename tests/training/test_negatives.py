"""False negatives left out, references and earlier targets as negatives: exact on 1, 2 and 4 real processes.

All of it at once, for every variant of the model, against loops over queries and columns on one process.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_training import (
    REFERENCE_IMAGES,
    RIGHT_IMAGES,
    ROWS,
    TARGET_IMAGES,
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

from training import checkpoints, negatives
from training.bank import IMAGES, TARGETS, MemoryBank
from training.checkpoints import CheckpointWriter
from training.config import TrainRecipe
from training.engine import Engine, import_deepspeed
from training.losses import false_negatives
from training.meters import Parts
from training.model.adafocal import AdaFocalModel
from training.model.sprc import SprcModel
from training.scoring import max_over_set
from training.task import ContrastiveTask, make_task

BANK = 7
"""Fewer than the first step has targets."""
SECOND = torch.tensor([6, 2, 9, 0, 4, 10, 1, 8, 3, 7, 5])
"""The order of the rows in the second step, so that its columns are not those of the bank."""
Found = dict[str, tuple[float, Gradients]]
import_deepspeed()  # before any fork, so that no child has to


def expected(name: str) -> tuple[float, Gradients]:
    """Loss and gradients of the second step, the weights those of the first."""
    model, whole = variant(name), global_batch(torch.float64)
    with torch.no_grad():
        bank = model.encode_target(whole["target_tokens"])[-BANK:]
    batch = {key: rows[SECOND] for key, rows in whole.items()}
    query, targets = model(**batch)
    columns = torch.cat([targets, model.encode_target(batch["reference_tokens"]), bank])
    order = SECOND.tolist()
    images = [TARGET_IMAGES[row] for row in order] + [REFERENCE_IMAGES[row] for row in order]
    images += TARGET_IMAGES[-BANK:]

    def info_nce(embedding: Tensor) -> Tensor:
        losses = []
        for i, row in enumerate(order):
            kept = [c for c, image in enumerate(images) if c == i or image not in RIGHT_IMAGES[row]]
            scores = max_over_set(embedding[i : i + 1], columns[kept])[0] / model.temp
            losses.append(scores.logsumexp(0) - scores[kept.index(i)])
        return torch.stack(losses).mean()

    loss = info_nce(query.embedding)
    if isinstance(model, SprcModel):
        align = (query.extras["fused"] - query.extras["prompts"].detach()).square().mean()
        text = info_nce(query.extras["text_only"])
        loss = loss + model.config.rtc_weight * text + model.config.align_weight * align
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model: AdaFocalModel) -> Gradients:
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def second_step(name: str, rank: int, world_size: int, micro_batch: int | None) -> tuple[float, Gradients]:
    """What the workers have together after a first step that only fills the bank."""
    model = variant(name)
    bank = MemoryBank(BANK, model.target_shape, model.temp)
    task = ContrastiveTask(model, micro_batch=micro_batch, bank=bank)
    batch = partial(part, global_batch(torch.float64), rank, world_size, references=True, numbered=True)
    task(batch())
    bank.take(applied=True)
    output = task(batch(rows=SECOND))
    output.objective.backward()
    found, loss = gradients(model), output.loss_sum
    for gradient in [*found.values(), loss]:
        dist.all_reduce(gradient)
    return loss.item() / ROWS, {n: g / world_size for n, g in found.items()}


def on_workers(world_size: int, names: list[str], micro_batch: int | None = None) -> Found:
    """By variant; the processes start once for all of them."""
    found: Found = on_processes(
        world_size, lambda rank: {name: second_step(name, rank, world_size, micro_batch) for name in names}
    )
    return found


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, None), (2, None), (4, None), (2, 4)])
def test_gradients_of_every_variant_are_those_of_loops_on_one_process(
    world_size: int, micro_batch: int | None
) -> None:
    results = on_workers(world_size, list(VARIANTS), micro_batch)
    for name in VARIANTS:
        loss, wanted = expected(name)
        found_loss, found = results[name]
        assert found_loss == pytest.approx(loss, abs=1e-12), name
        assert largest_relative_error(found, wanted) <= 1e-9, name


def shifted(images: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """Each worker leaves out what its neighbour should."""
    return false_negatives(images.roll(len(right)), right, labels)


def with_its_own_target(images: Tensor, right: Tensor, labels: Tensor) -> Tensor:
    """The label's column is left out, too."""
    return (images == right.T[:, :, None]).any(0)


@pytest.mark.parametrize("plant", [shifted, with_its_own_target])
def test_a_wrong_mask_would_be_noticed(plant: Callable[..., Tensor], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "false_negatives", plant)
    loss, _ = expected("scalar")
    found, _ = on_workers(2, ["scalar"])["scalar"]
    assert found != pytest.approx(loss, rel=1e-3)


def test_a_bank_with_a_gradient_would_be_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def attached(self: MemoryBank, targets: Tensor, images: Tensor) -> None:
        self._waiting.append((targets, images))

    monkeypatch.setattr(MemoryBank, "offer", attached)
    loss, wanted = expected("scalar")
    found_loss, found = on_workers(2, ["scalar"])["scalar"]
    assert found_loss == pytest.approx(loss, abs=1e-12)  # the loss alone would not tell
    assert largest_relative_error(found, wanted) > 0.01


TOTAL, HALF = 6, 3
TOLERANCE = 2e-5
"""Relative, of losses in float32 after up to six steps."""


def course(
    world_size: int, stage: int, steps: range, run: str = "", forget: str = "", **training: Any
) -> list[float]:
    """Losses of some steps of the real engine; those that do not begin at 0 go on from what lies in `run`, without what
    is to be forgotten."""
    tree = {
        "batch_size": ROWS, "learning_rate": 1e-2, "caam_learning_rate": 2e-2, "schedule": "constant",
        "warmup_fraction": 0.0, "false_negatives": "equivalent", "reference_negatives": True, "memory_bank": 17,
    }  # fmt: skip
    recipe = TrainRecipe.model_validate(
        {"training": tree | training, "scaling": {"workers": world_size, "zero_stage": stage}}
    )

    def work(rank: int) -> Tensor:
        torch.manual_seed(rank)
        engine = Engine(make_task(small_model(torch.float32), recipe.training), recipe)
        engine.model.train()
        if steps.start:
            saved = checkpoints.Saved.newest(run, steps.start, world_size)
            parts = (
                {k: v[:0] if forget and k in (TARGETS, IMAGES) else v for k, v in state.items()}
                for state in saved.parts(rank)
            )
            engine.restore(engine.read(parts))
        losses = []
        for step in steps:
            rows = torch.randperm(ROWS, generator=torch.Generator().manual_seed(step))
            own = part(
                global_batch(torch.float32), rank, world_size, rows=rows,
                references=recipe.training.reference_negatives, numbered=recipe.training.false_negatives != "keep",
            )  # fmt: skip
            losses.append(engine.step(own, step, TOTAL, Parts()).loss_sum)
        if run:
            writer = CheckpointWriter(run, rank, world_size, 2)
            writer.save(steps.stop, engine.state())
            writer.close()
        whole = torch.stack(losses)
        dist.all_reduce(whole)
        return whole / ROWS

    found: list[float] = on_processes(world_size, work).tolist()
    return found


@pytest.fixture(scope="module")
def undisturbed() -> list[float]:
    return course(1, 0, range(TOTAL))


def apart(found: list[float], wanted: list[float]) -> float:
    assert len(found) == len(wanted)
    return max(abs(f - w) / w for f, w in zip(found, wanted, strict=True))


@pytest.mark.parametrize(
    ("world_size", "stage", "training"),
    [(2, 2, {}), (4, 2, {}), (2, 3, {}), (2, 2, {"micro_batch_size": 4})],
)
def test_zero_has_the_losses_of_one_process(
    world_size: int, stage: int, training: dict[str, Any], undisturbed: list[float]
) -> None:
    assert apart(course(world_size, stage, range(TOTAL), **training), undisturbed) < TOLERANCE


@pytest.mark.parametrize(
    "off", [{"false_negatives": "keep"}, {"reference_negatives": False}, {"memory_bank": 0}]
)
def test_each_option_changes_the_losses(off: dict[str, Any], undisturbed: list[float]) -> None:
    found = course(1, 0, range(2), **off)
    assert apart(found, undisturbed[:2]) > 0.01


@pytest.mark.parametrize(("before", "after"), [(2, 2), (2, 1), (1, 4)])
def test_a_run_goes_on_with_its_bank_on_any_number_of_workers(
    before: int, after: int, undisturbed: list[float], tmp_path: Path
) -> None:
    course(before, 2, range(HALF), str(tmp_path))
    kept = [TARGETS in checkpoints.load(str(tmp_path), HALF, rank, before) for rank in range(before)]
    assert kept == [True] + [False] * (before - 1)
    found = course(after, 2, range(HALF, TOTAL), str(tmp_path))
    assert apart(found, undisturbed[HALF:]) < TOLERANCE


def test_a_bank_that_is_forgotten_shows_in_the_losses(undisturbed: list[float], tmp_path: Path) -> None:
    course(2, 2, range(HALF), str(tmp_path))
    found = course(2, 2, range(HALF, TOTAL), str(tmp_path), forget="bank")
    assert apart(found, undisturbed[HALF:]) > 100 * TOLERANCE


def test_every_worker_has_the_same_bank() -> None:
    """Also one that took it over from rank 0."""

    def work(rank: int) -> Tensor:
        bank = MemoryBank(3, (1,), torch.zeros(()))
        if rank == 0:
            bank.restore({TARGETS: torch.tensor([[1.0], [2.0]]), IMAGES: torch.tensor([4, 5])})
        bank.broadcast()
        seen = torch.cat([bank.targets.flatten(), bank.images])
        both = [torch.empty_like(seen) for _ in range(2)]
        dist.all_gather(both, seen)
        return torch.stack(both)

    assert on_processes(2, work).tolist() == [[1, 2, 4, 5]] * 2
