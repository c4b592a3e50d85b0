"""Sweeps of trainings of seconds on the small benchmark, and records of trials that never ran."""

from __future__ import annotations

from typing import Any

from tuning.config import SweepRecipe
from tuning.records import Reading, TrialRecord

SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32,
}  # fmt: skip
EPOCHS, STEPS = 3, 9
"""64 quadruples in 3 steps per epoch, measured on dev after each."""


def sweep(
    space: dict[str, Any], train: dict[str, dict[str, Any]] | None = None, **fields: Any
) -> SweepRecipe:
    """A sweep over the small model; `train` changes sections of the training."""
    tree: dict[str, Any] = {
        "name": "small", "dataset": "small",
        "model": {"overrides": SMALL, "modulation": "fixed"},
        "embed": {"images_per_shard": 32, "workers": 1},
        "training": {"epochs": EPOCHS, "batch_size": 24, "learning_rate": 3e-3},
        "scaling": {"workers": 1},
    }  # fmt: skip
    for section, values in (train or {}).items():
        tree[section] = tree.get(section, {}) | values if isinstance(values, dict) else values
    return SweepRecipe.model_validate(
        {"name": "sweep", "space": space, "train": tree, "driver_gib": 0.5} | fields
    )


def ended(number: int, values: dict[str, Any], state: str = "finished", **figures: float) -> TrialRecord:
    """A trial that ended with these figures after two measurements."""
    readings = [
        Reading(step=step, figures={name: v * step / 2 for name, v in figures.items()}) for step in (1, 2)
    ]
    return TrialRecord.model_validate(
        {
            "number": number,
            "values": values,
            "state": state,
            "run": f"/root/runs/small/{number:016x}",
            "run_hash": f"{number:064x}" if state == "finished" else "",
            "reason": "" if state == "finished" else "the loss is nan",
            "readings": readings if state != "failed" else [],
            "figures": figures if state != "failed" else {},
        }
    )
