"""AdamW with the CAAM's own learning rate, and the course of the rate as a pure function of the step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from training.config import TrainingSection

RATES = {"caam": "caam_learning_rate", "rest": "learning_rate"}
"""Parameter group of the model → the field with its peak learning rate."""


def build_optimizer(
    groups: Mapping[str, Sequence[nn.Parameter]], section: TrainingSection
) -> torch.optim.AdamW:
    """AdamW over the model's parameter groups; a group without parameters (no CAAM) is left out."""
    parameters: list[dict[str, Any]] = [
        {"params": list(members), "lr": peak, "peak": peak, "name": name}
        for name, members in groups.items()
        if members and (peak := getattr(section, RATES[name]))
    ]
    return torch.optim.AdamW(
        parameters, betas=section.betas, eps=section.eps, weight_decay=section.weight_decay
    )


def set_rates(
    param_groups: Sequence[dict[str, Any]], step: int, total: int, section: TrainingSection
) -> None:
    """Set every group's rate for the step with index `step` (from 0) of `total`."""
    factor = rate_factor(step, total, section)
    for group in param_groups:
        group["lr"] = group["peak"] * factor


def rate_factor(step: int, total: int, section: TrainingSection) -> float:
    """Share of the peak rate at the step with index `step` (from 0) of `total`.

    The rate rises linearly over the first `warmup_fraction` of the steps, is at its peak once, then follows the
    schedule; cosine and linear reach zero one step after the last.
    """
    warmup = round(section.warmup_fraction * total)
    if step < warmup:
        return (step + 1) / warmup
    if section.schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1.0 - done if section.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
