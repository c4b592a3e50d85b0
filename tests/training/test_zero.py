"""ZeRO 0 to 3 on real processes: the same losses, and checkpoints that every layout goes on from."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_training import ROWS, global_batch, on_processes, part, small_model

from infra.base.errors import OacirError
from training import checkpoints
from training.checkpoints import CheckpointWriter
from training.config import TrainRecipe
from training.engine import Engine, import_deepspeed, trained_weights
from training.memory import KINDS, predicted
from training.meters import Parts
from training.task import PRECISIONS, ContrastiveTask

TOTAL = 6
HALF = 3
TOLERANCE = 2e-5
"""Relative, of losses in float32 after up to six steps that change them by a half."""
BFLOAT16_TOLERANCE = 1.5e-2
"""The same where the encoders round to eight bits: what differs in the last of them grows with every step."""
WEIGHT_TOLERANCE = 2e-3
"""Adam takes whole steps where a gradient is all rounding (biases of keys, for one)."""
PADDING = 256
"""Numbers that DeepSpeed adds to fill up parts, at most, over all parameters of the small model."""
import_deepspeed()  # before any fork, so that no child has to


def recipe_of(world_size: int, stage: int, **scaling: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "training": {
                "batch_size": ROWS, "learning_rate": 1e-2, "caam_learning_rate": 2e-2, "schedule": "constant",
                "warmup_fraction": 0.0, "clip_norm": 1.0, "ema_decay": 0.5,
            },
            "scaling": {"workers": world_size, "zero_stage": stage, **scaling},
        }
    )  # fmt: skip


def course(
    world_size: int,
    stage: int,
    steps: range,
    run: str = "",
    forget: str = "",
    precision: str = "float32",
    **scaling: Any,
) -> dict[str, Any]:
    """Losses of some steps, gradient norms, and the weights measured after them; saved in `run` at their end.

    Steps that do not begin at 0 go on from what lies in `run`, without the kind of state that is to be forgotten.
    """

    def work(rank: int) -> dict[str, Any]:
        torch.manual_seed(rank)
        task = ContrastiveTask(small_model(torch.float32), PRECISIONS[precision])
        engine = Engine(task, recipe_of(world_size, stage, **scaling))
        engine.model.train()
        if steps.start:
            saved = checkpoints.Saved.newest(run, steps.start, world_size)
            parts = (
                {k: torch.zeros_like(v) if forget and k.startswith(forget) else v for k, v in state.items()}
                for state in saved.parts(rank)
            )
            engine.restore(engine.read(parts))
        losses, norms = [], []
        for step in steps:
            output = engine.step(part(global_batch(torch.float32), rank, world_size), step, TOTAL, Parts())
            loss = output.loss_sum.clone()
            dist.all_reduce(loss)
            losses.append(float(loss) / ROWS)
            norms.append(float(engine.gradient_norm))
        if run:
            writer = CheckpointWriter(run, rank, world_size, 2)
            writer.save(steps.stop, engine.state())
            writer.close()
        with engine.measured() as model:
            weights = {n: w.clone() for n, w in trained_weights(model, engine.shapes).items()}
        counts = {f"bytes {k}": torch.tensor(v) for k, v in engine.bytes.items()}
        return {"losses": torch.tensor(losses), "norms": torch.tensor(norms), **counts, **weights}

    found: dict[str, Any] = on_processes(world_size, work)
    return found


@pytest.fixture(scope="module")
def undisturbed() -> dict[str, Any]:
    return course(1, 0, range(TOTAL))


def test_a_model_on_the_cpu_stays_there_on_a_machine_with_a_gpu() -> None:
    code = (
        "from training.engine import import_deepspeed; import_deepspeed();"
        "from deepspeed.accelerator import get_accelerator; print(get_accelerator().device_name())"
    )
    environment = os.environ | {"DS_ACCELERATOR": "cuda"}  # what DeepSpeed finds out by itself there
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.split()[-1] == "cpu"


def sizes() -> tuple[int, int]:
    """Trained and frozen parameters."""
    numbers = {True: 0, False: 0}
    for parameter in small_model(torch.float32).parameters():
        numbers[parameter.requires_grad] += parameter.numel()
    return numbers[True], numbers[False]


def close(found: Any, expected: Any) -> float:
    return float(((found - expected).norm() / expected.norm()).item())


def test_the_course_is_one_that_a_mistake_would_change(undisturbed: dict[str, Any]) -> None:
    losses = undisturbed["losses"]
    assert losses[-1] < 0.7 * losses[0]
    assert (undisturbed["norms"] > 0).all()


@pytest.mark.parametrize(
    ("world_size", "stage", "scaling"),
    [
        (2, 0, {}),
        (2, 1, {}),
        (2, 2, {}),
        (1, 3, {}),
        (4, 3, {}),
        (2, 2, {"offload_optimizer": True}),
        (2, 3, {"offload_optimizer": True}),
    ],
)
def test_stages_agree(
    world_size: int, stage: int, scaling: dict[str, Any], undisturbed: dict[str, Any]
) -> None:
    found = course(world_size, stage, range(TOTAL), **scaling)
    assert close(found["losses"], undisturbed["losses"]) < TOLERANCE
    assert close(found["norms"], undisturbed["norms"]) < 10 * TOLERANCE
    counts = {kind: int(found[f"bytes {kind}"]) for kind in KINDS}
    expected = predicted(*sizes(), stage, world_size, average=True)
    for kind, count in counts.items():
        assert expected[kind] <= count <= 1.02 * expected[kind] + 4 * PADDING, (kind, counts, expected)
    whole = [
        torch.cat([each[n].flatten() for n in sorted(found) if "." in n]) for each in (found, undisturbed)
    ]
    assert close(*whole) < WEIGHT_TOLERANCE


@pytest.mark.parametrize(
    ("before", "after"),
    [((2, 2), (1, 2)), ((1, 2), (2, 3)), ((2, 3), (4, 2)), ((4, 1), (2, 0)), ((2, 0), (3, 3))],
)
def test_a_run_goes_on_with_other_workers_and_in_another_stage(
    before: tuple[int, int], after: tuple[int, int], undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    course(*before, range(HALF), str(tmp_path))
    found = course(*after, range(HALF, TOTAL), str(tmp_path))
    assert close(found["losses"], undisturbed["losses"][HALF:]) < TOLERANCE
    whole = [
        torch.cat([each[n].flatten() for n in sorted(found) if "." in n]) for each in (found, undisturbed)
    ]
    assert close(*whole) < WEIGHT_TOLERANCE


def test_what_is_not_taken_along_shows_in_the_losses(undisturbed: dict[str, Any], tmp_path: Path) -> None:
    course(2, 2, range(HALF), str(tmp_path))
    found = course(1, 2, range(HALF, TOTAL), str(tmp_path), forget="exp_avg_sq/")
    assert close(found["losses"], undisturbed["losses"][HALF:]) > 100 * TOLERANCE


@pytest.fixture(scope="module")
def in_bfloat16() -> dict[str, Any]:
    """On two workers: parts of another size round otherwise, which shows after some steps."""
    return course(2, 0, range(TOTAL), precision="bfloat16")


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_stages_agree_in_bfloat16(
    stage: int, in_bfloat16: dict[str, Any], undisturbed: dict[str, Any]
) -> None:
    found = course(2, stage, range(TOTAL), precision="bfloat16")
    assert close(found["losses"], in_bfloat16["losses"]) < BFLOAT16_TOLERANCE
    assert close(found["losses"], undisturbed["losses"]) > TOLERANCE  # it is bfloat16


def test_a_run_in_bfloat16_goes_on_in_another_stage(in_bfloat16: dict[str, Any], tmp_path: Path) -> None:
    """Weights and moments are float32 in every stage, so nothing of a step is lost to rounding on the way."""
    expected = in_bfloat16["losses"][HALF:]
    course(2, 2, range(HALF), str(tmp_path), precision="bfloat16")
    found = course(2, 3, range(HALF, TOTAL), str(tmp_path), precision="bfloat16")
    assert close(found["losses"], expected) < BFLOAT16_TOLERANCE
    lost = course(2, 3, range(HALF, TOTAL), str(tmp_path), forget="exp_avg_sq/", precision="bfloat16")
    assert close(lost["losses"], expected) > 2 * BFLOAT16_TOLERANCE


def test_the_same_layout_goes_on_bit_for_bit(tmp_path: Path) -> None:
    whole = course(2, 3, range(TOTAL))
    course(2, 3, range(HALF), str(tmp_path))
    found = course(2, 3, range(HALF, TOTAL), str(tmp_path))
    assert found["losses"].tolist() == whole["losses"].tolist()[HALF:]


def test_a_checkpoint_of_another_model_is_refused(tmp_path: Path) -> None:
    run = str(tmp_path)
    course(1, 2, range(HALF), run)
    url = checkpoints.Saved.newest(run, HALF, 1)
    tensors = next(url.parts(0))
    writer = CheckpointWriter(run, 0, 1, 2)
    writer.save(HALF, {k: v for k, v in tensors.items() if "query_tokens" not in k})
    writer.close()

    def work(rank: int) -> str:
        engine = Engine(ContrastiveTask(small_model(torch.float32)), recipe_of(1, 2))
        try:
            engine.read(checkpoints.Saved.newest(run, HALF, 1).parts(rank))
        except OacirError as error:
            return str(error)
        return ""

    assert "does not hold all of this model" in on_processes(1, work)
