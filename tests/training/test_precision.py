"""float32, bfloat16 and float16 under the real ZeRO engine: one course of the loss, and steps that overflow."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from small_training import ROWS, global_batch, on_processes, part, small_model
from torch import Tensor

from training.config import TrainRecipe
from training.engine import Engine, import_deepspeed
from training.loss_scale import LossScale
from training.meters import Parts
from training.task import StepOutput, make_task

STEPS = 5
START = 2.0**10
"""Where the loss scale starts: on so small a batch 2¹⁶ overflows at once, and would only be halved."""


def recipe(workers: int, precision: str, stage: int = 2, **training: Any) -> TrainRecipe:
    settings = {"batch_size": ROWS, "precision": precision, "learning_rate": 1e-3, "caam_learning_rate": 1e-3}
    return TrainRecipe.model_validate(
        {
            "training": {**settings, "schedule": "constant", "warmup_fraction": 0.0, **training},
            "scaling": {"workers": workers, "zero_stage": stage},
        }
    )


def new_engine(asked: TrainRecipe) -> Engine:
    """As the loop makes it; the same start every time."""
    engine = Engine(make_task(small_model(torch.float32, dropout=0.1), asked.training), asked)
    engine.model.train()
    if engine.scale is not None:
        engine.scale.value = START
    return engine


def step(engine: Engine, number: int, rank: int, world_size: int) -> StepOutput:
    torch.manual_seed(number)
    batch = part(global_batch(torch.float32), rank, world_size)
    return engine.step(batch, number, STEPS, Parts())


def on_workers(count: int, work: Callable[[int], Any]) -> Any:
    import_deepspeed()  # before the fork, so that no child has to
    return on_processes(count, work)


@pytest.fixture(scope="module")
def float32_course() -> list[list[float]]:
    return course("float32")


def course(precision: str, **training: Any) -> list[list[float]]:
    """Loss and norm of the gradient of every step, on one worker."""

    def work(rank: int) -> list[list[float]]:
        engine = new_engine(recipe(1, precision, clip_norm=5.0, **training))
        rows = []
        for number in range(STEPS):
            loss = float(step(engine, number, rank, 1).loss_sum) / ROWS
            rows.append([loss, float(engine.gradient_norm), engine.loss_scale, float(engine.skipped)])
        return rows

    found: list[list[float]] = on_workers(1, work)
    return found


@pytest.mark.parametrize(
    ("precision", "training", "tolerance"),
    [
        ("bfloat16", {}, 0.05),  # 8 bits
        ("float16", {}, 0.01),  # 11 bits
        ("float16", {"activation_checkpointing": True}, 0.01),
    ],
)
def test_the_precisions_take_the_same_course(
    precision: str, training: dict[str, Any], tolerance: float, float32_course: list[list[float]]
) -> None:
    found, expected = course(precision, **training), float32_course
    assert expected[-1][0] < expected[0][0] - 0.1  # it learns: not the same number five times
    assert [row[2:] for row in found] == [[START if precision == "float16" else 1.0, 0.0]] * STEPS
    for (loss, norm, *_), (wanted_loss, wanted_norm, *_) in zip(found, expected, strict=True):
        assert loss == pytest.approx(wanted_loss, rel=tolerance)
        assert norm == pytest.approx(wanted_norm, rel=10 * tolerance)  # the scale is taken out again
    assert [row[0] for row in found] != [row[0] for row in expected]  # it was another arithmetic


def weights(engine: Engine) -> list[Tensor]:
    return [p.detach().clone() for p in [*engine.partitions.flats, *engine.average]]


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_gradient_that_overflows_on_one_worker_skips_the_step_on_all_and_halves_the_scale(
    stage: int,
) -> None:
    asked = recipe(2, "float16", stage, ema_decay=0.5)

    def work(rank: int) -> list[list[float]]:
        engine = new_engine(asked)
        told = []
        for number in range(STEPS):
            before = weights(engine)
            hook = None
            if number == 2 and rank == 1:
                hook = engine.model.temp.register_hook(lambda gradient: gradient * torch.inf)
            step(engine, number, rank, 2)
            if hook is not None:
                hook.remove()
            moved = [not torch.equal(a, b) for a, b in zip(before, weights(engine), strict=True)]
            counted = engine.partitions.adam.state[engine.partitions.keys[0]].get("step", 0)
            norm = float(engine.gradient_norm)
            told.append([engine.loss_scale, engine.skipped, all(moved), any(moved), float(counted), norm])
        return told

    told = on_workers(2, work)
    scales, skipped, all_moved, any_moved, counted, norms = zip(*told, strict=True)
    assert scales == (START, START, START, START / 2, START / 2)
    assert skipped == (False, False, True, False, False)
    assert all_moved == any_moved == (True, True, False, True, True)  # the average of the weights too
    assert counted == (1, 2, 2, 3, 4)  # AdamW's own
    assert [math.isinf(norm) for norm in norms] == [False, False, True, False, False]


def test_a_resumed_float16_training_is_the_one_that_was_never_stopped() -> None:
    """Also its loss scale and the steps since it last changed, in mid-course, with micro-batches."""
    asked = recipe(2, "float16", micro_batch_size=4)

    def work(rank: int) -> list[list[float]]:
        def grown(engine: Engine) -> Engine:
            assert engine.scale is not None
            engine.scale.growth_every = 3
            return engine

        def goes_on(engine: Engine, start: int) -> list[float]:
            told: list[float] = []
            for number in range(start, STEPS):
                told += [float(step(engine, number, rank, 2).loss_sum), engine.loss_scale]
            return told

        first = grown(new_engine(asked))
        for number in range(2):
            step(first, number, rank, 2)
        kept = {name: value.clone() for name, value in first.state().items()}
        uninterrupted = goes_on(first, 2)
        resumed = grown(new_engine(asked))
        resumed.restore(resumed.read([kept]))
        return [uninterrupted, goes_on(resumed, 2)]

    uninterrupted, resumed = on_workers(2, work)
    assert resumed == uninterrupted
    assert uninterrupted[1::2] == [START, 2 * START, 2 * START]  # doubled after its third step


def test_a_gradient_that_overflows_unscaled_ends_the_training() -> None:
    """Every worker sees it after the same step: nothing further down would help."""

    def work(rank: int) -> list[list[bool]]:
        engine = new_engine(recipe(1, "float16"))
        engine.scale = LossScale(value=2.0)
        engine.model.temp.register_hook(lambda gradient: gradient * torch.inf)
        told = []
        for number in range(2):
            step(engine, number, rank, 1)
            told.append([engine.skipped, engine.overflows])
        return told

    assert on_workers(1, work) == [[True, False], [True, True]]


@pytest.mark.parametrize(("precision", "stage"), [("float32", 2), ("bfloat16", 2), ("float32", 3)])
def test_without_a_scale_a_gradient_that_is_no_number_ends_the_training(precision: str, stage: int) -> None:
    """ZeRO would skip the step, and every one after it."""

    def work(rank: int) -> list[bool]:
        engine = new_engine(recipe(2, precision, stage))
        if rank:
            engine.model.temp.register_hook(lambda gradient: gradient * torch.nan)
        step(engine, 0, rank, 2)
        return [engine.skipped, engine.overflows]

    assert on_workers(2, work) == [True, True]


def test_the_scale_doubles_after_good_steps_and_halves_after_a_bad_one() -> None:
    scale = LossScale(value=8.0, growth_every=2)
    course = []
    for skipped in (
        False,
        True,
        False,
        False,
        False,
        True,
        False,
        False,
        False,
        True,
        True,
        True,
        True,
        True,
    ):
        course.append(scale.value)
        scale.update(skipped)
    assert course == [8, 8, 4, 4, 8, 8, 4, 4, 8, 8, 4, 2, 1, 1]
    assert scale.exhausted
