"""The learning rate as a function of the step, against values worked out by hand."""

from __future__ import annotations

import pytest
import torch

from training.config import TrainingSection
from training.optim import build_optimizer, rate_factor, set_rates


def section(**changes: object) -> TrainingSection:
    return TrainingSection.model_validate({"warmup_fraction": 0.2, **changes})


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # 10 steps, 2 of warm-up: 1/2, 2/2, then eight steps from 1 towards 0
        ("linear", [0.5, 1.0, 1.0, 0.875, 0.75, 0.625, 0.5, 0.375, 0.25, 0.125]),
        ("constant", [0.5] + [1.0] * 9),
        ("cosine", [0.5, 1.0, 1.0, 0.961940, 0.853553, 0.691342, 0.5, 0.308658, 0.146447, 0.038060]),
    ],
)
def test_course_of_the_rate(schedule: str, expected: list[float]) -> None:
    course = [rate_factor(step, 10, section(schedule=schedule)) for step in range(10)]
    assert course == pytest.approx(expected, abs=1e-6)


def test_without_warm_up_the_first_step_has_the_full_rate() -> None:
    assert rate_factor(0, 10, section(warmup_fraction=0.0)) == 1.0


def test_each_group_has_its_own_peak() -> None:
    groups = {"caam": [torch.nn.Parameter(torch.ones(2))], "rest": [torch.nn.Parameter(torch.ones(3))]}
    settings = section(learning_rate=1e-5, caam_learning_rate=1e-4, schedule="linear")
    optimizer = build_optimizer(groups, settings)
    set_rates(optimizer.param_groups, 6, 10, settings)
    assert {g["name"]: g["lr"] for g in optimizer.param_groups} == pytest.approx({"caam": 5e-5, "rest": 5e-6})
    assert {g["weight_decay"] for g in optimizer.param_groups} == {0.05}
    assert {g["betas"] for g in optimizer.param_groups} == {(0.9, 0.98)}


def test_a_model_without_caam_has_one_group() -> None:
    optimizer = build_optimizer({"caam": [], "rest": [torch.nn.Parameter(torch.ones(1))]}, section())
    assert [g["name"] for g in optimizer.param_groups] == ["rest"]
