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


@pytest.mark.parametrize("total", [40, 200])
def test_one_cycle_is_torchs_with_the_releases_settings(total: int) -> None:
    """50 epochs with 1.5 of warm-up: div 100, and a first beta that goes 0.95 → 0.85 → 0.95."""
    settings = section(schedule="onecycle", learning_rate=1e-5, caam_learning_rate=1e-5, warmup_fraction=0.03)
    ours = build_optimizer({"rest": [torch.nn.Parameter(torch.ones(1))]}, settings)
    theirs = torch.optim.AdamW([torch.nn.Parameter(torch.ones(1))], betas=(0.9, 0.98))
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        theirs, 1e-5, total_steps=total, pct_start=0.03, div_factor=100, final_div_factor=1e4
    )
    for step in range(total):
        set_rates(ours.param_groups, step, total, settings)
        mine, other = ours.param_groups[0], theirs.param_groups[0]
        assert mine["lr"] == pytest.approx(other["lr"], rel=1e-9)
        assert mine["betas"] == pytest.approx(other["betas"], rel=1e-9)
        theirs.step()
        cycle.step() if step + 1 < total else None
    assert ours.param_groups[0]["lr"] == pytest.approx(1e-11)


def test_one_cycle_leaves_no_room_for_another_first_beta() -> None:
    with pytest.raises(ValueError, match="cycles the first of betas"):
        section(schedule="onecycle", betas=(0.8, 0.98))
