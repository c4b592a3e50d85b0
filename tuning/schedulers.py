"""What Ray Tune ends early: its own schedulers, counting dev measurements."""

from __future__ import annotations

import random
from typing import Any

from ray.tune.schedulers import (
    ASHAScheduler,
    FIFOScheduler,
    MedianStoppingRule,
    PopulationBasedTraining,
    TrialScheduler,
)

from tuning.config import Asha, Median, Pbt, SweepRecipe, better
from tuning.space import LogUniform, Uniform, listed

TIME = "training_iteration"
"""Dev measurements of a trial, counted by Ray Tune."""
NEVER = 10_000
REPLAYED = "replayed"
"""Marks a result that was measured in an earlier run of the sweep."""


class _Lenient:
    """Learns from a trial that ended before, and lets it come to its end."""

    def on_trial_result(self, controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """The decision, which does not concern what is only replayed."""
        decision: str = super().on_trial_result(controller, trial, result)  # type: ignore[misc]
        return TrialScheduler.CONTINUE if result.get(REPLAYED) else decision


class LenientAsha(_Lenient, ASHAScheduler):
    """Successive halving over old and new trials."""


class LenientMedian(_Lenient, MedianStoppingRule):
    """Median stopping over old and new trials."""


class Population(PopulationBasedTraining):
    """Population based training whose values stay inside the space; Ray's own leaves it by its factors of 0.8 and 1.2,
    and would give a trial the number of the one that it copies."""

    def __init__(self, recipe: SweepRecipe, **options: Any) -> None:
        super().__init__(**options)
        self.recipe = recipe

    def _get_new_config(self, trial: Any, trial_to_clone: Any) -> Any:
        config, operations = super()._get_new_config(trial, trial_to_clone)
        values = within(self.recipe, config["trial"]["values"])
        number = trial.config["trial"]["number"]
        return {**config, "trial": {"number": number, "values": values}}, operations


def compares(recipe: SweepRecipe) -> bool:
    """Whether the scheduler judges a trial by those that ended before it."""
    return isinstance(recipe.scheduler, (Asha, Median))


def scheduler(recipe: SweepRecipe) -> Any:
    """Ray Tune's scheduler for a recipe."""
    section, metric = recipe.scheduler, recipe.objectives[0]
    judged = {"time_attr": TIME, "metric": metric, "mode": "max" if better(metric) > 0 else "min"}
    if isinstance(section, Asha):
        return LenientAsha(
            **judged, max_t=NEVER, grace_period=section.grace, reduction_factor=section.reduction
        )
    if isinstance(section, Median):
        # its pauses would throw away what a trial has trained since its last checkpoint
        return LenientMedian(
            **judged,
            grace_period=section.grace,
            min_samples_required=section.least,
            min_time_slice=float("inf"),
        )
    if isinstance(section, Pbt):
        random.seed(section.seed)  # Ray's draws are the module's
        return Population(
            recipe,
            **judged,
            perturbation_interval=section.interval,
            quantile_fraction=section.quantile,
            resample_probability=section.resample,
            hyperparam_mutations={"trial": {"values": _mutations(recipe)}},
            require_attrs=False,
            log_config=False,
        )
    return FIFOScheduler()


def _mutations(recipe: SweepRecipe) -> dict[str, Any]:
    from ray import tune

    found: dict[str, Any] = {}
    for name, dimension in recipe.space.items():
        values = listed(dimension)
        if values is not None:
            found[name] = values
        elif isinstance(dimension, LogUniform):
            found[name] = tune.loguniform(dimension.low, dimension.high)
        elif isinstance(dimension, Uniform):
            found[name] = tune.uniform(dimension.low, dimension.high)
    return found


def within(recipe: SweepRecipe, values: dict[str, Any]) -> dict[str, Any]:
    """Values moved by population based training, back inside the space."""
    found = dict(values)
    for name, dimension in recipe.space.items():
        if isinstance(dimension, (Uniform, LogUniform)):
            found[name] = min(max(float(found[name]), dimension.low), dimension.high)
    return found
