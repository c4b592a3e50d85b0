"""AdamW with rates of their own for CAAM and image tower, and the course of the rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from training.config import TrainingSection

RATES = {"caam": "caam_learning_rate", "rest": "learning_rate"}
"""Parameter group of the model → the field with its peak learning rate."""

ONE_CYCLE_START, ONE_CYCLE_END = 100.0, 1e4
"""The peak rate by the first one, and the first by the last."""
CYCLED_BETAS = (0.85, 0.95)


def build_optimizer(
    groups: Mapping[str, Sequence[nn.Parameter]], section: TrainingSection, tower_rate: float = 0.0
) -> torch.optim.AdamW:
    """AdamW over the model's parameter groups; a group without parameters (no CAAM) is left out.

    Args:
        groups: `AdaFocalModel.trainable_parameters()`.
        section: how the model learns.
        tower_rate: peak rate of the group "tower", what is trained of the image tower.
    """
    peaks = {name: getattr(section, field) for name, field in RATES.items()} | {"tower": tower_rate}
    parameters: list[dict[str, Any]] = [
        {"params": list(members), "lr": peaks[name], "peak": peaks[name], "name": name}
        for name, members in groups.items()
        if members
    ]
    return torch.optim.AdamW(
        parameters, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )


def set_rates(
    param_groups: Sequence[dict[str, Any]], step: int, total: int, section: TrainingSection
) -> None:
    """Set every group's rate (of onecycle also its first beta) for the step with index `step` (from 0) of `total`."""
    factor = rate_factor(step, total, section)
    for group in param_groups:
        group["lr"] = group["peak"] * factor
        if section.schedule == "onecycle":
            low, high = CYCLED_BETAS
            group["betas"] = (
                _one_cycle(step, total, section.warmup_fraction, high, low, high),
                group["betas"][1],
            )


def rate_factor(step: int, total: int, section: TrainingSection) -> float:
    """Share of the peak rate at the step with index `step` (from 0) of `total`.

    The rate rises linearly over the first `warmup_fraction` of the steps, is at its peak once, then follows the
    schedule; cosine and linear reach zero one step after the last. onecycle is `torch.optim.lr_scheduler.OneCycleLR`
    with its defaults but for the start, 1/100 of the peak (the release).
    """
    if section.schedule == "onecycle":
        start = 1 / ONE_CYCLE_START
        return _one_cycle(step, total, section.warmup_fraction, start, 1.0, start / ONE_CYCLE_END)
    warmup = round(section.warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    if section.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1.0 - done if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


def _one_cycle(step: int, total: int, rising: float, first: float, middle: float, last: float) -> float:
    """From `first` to `middle` over the `rising` share of the steps, then to `last` at the last one, in cosines."""
    top, end = rising * total - 1, total - 1
    if step <= top:
        return _cosine(first, middle, step / top if top else 1.0)
    return _cosine(middle, last, (step - top) / (end - top))


def _cosine(first: float, last: float, done: float) -> float:
    return last + (first - last) / 2 * (1 + math.cos(math.pi * done))
