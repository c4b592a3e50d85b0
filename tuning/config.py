"""The recipe of a sweep: what is searched over which training, how, and by what trials are judged. No torch here."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.base.config import Config, Name, recipe_hash
from training.config import TrainRecipe
from tuning.space import Dimension, Grid, Values, drawn, every, listed, refusals, token

Positive = Annotated[int, Field(gt=0)]

AVERAGE = "avg"
"""Mean of `MEASURES` over the domains, on dev."""
MEASURES = ("R_ID@1", "R@1", "R@5")
LATENCY = "query_ms"
AFTERWARDS = {
    LATENCY: "milliseconds of a query: its text and region encoded, all dev targets of the largest domain ranked",
    "trained_parameters": "parameters that are trained",
    "ms_per_step": "milliseconds of a training step",
}
"""Metrics that are known when a trial ends; less is better."""


class Random(Config):
    """Independent draws."""

    kind: Literal["random"] = "random"
    trials: Positive = 10
    """Draws; each is tried with every combination of the grids."""
    seed: int = 0
    """Of the draws."""


class Exhaustive(Config):
    """Every combination of all values."""

    kind: Literal["grid"] = "grid"


class Tpe(Config):
    """Optuna's tree-structured Parzen estimator: where earlier trials did well."""

    kind: Literal["tpe"] = "tpe"
    trials: Positive = 20
    """In all."""
    seed: int = 0
    """Of the estimator's draws."""
    startup: Positive = 10
    """Random trials before it."""


class NoScheduler(Config):
    """Every trial runs to its end."""

    kind: Literal["none"] = "none"


class Asha(Config):
    """Asynchronous successive halving: at each rung only the best part goes on."""

    kind: Literal["asha"] = "asha"
    grace: Positive = 1
    """Dev measurements before a trial may be stopped."""
    reduction: Annotated[int, Field(ge=2)] = 3
    """Of so many trials at a rung one goes on; rungs lie at grace · reduction^n measurements."""


class Median(Config):
    """A trial whose best is worse than the median of the others' means is stopped."""

    kind: Literal["median"] = "median"
    grace: Positive = 1
    """Dev measurements before a trial may be stopped."""
    least: Positive = 3
    """Trials to compare with."""


class Pbt(Config):
    """Population based training: the worst go on from the best one's checkpoint with changed values."""

    kind: Literal["pbt"] = "pbt"
    interval: Positive = 1
    """Dev measurements between changes."""
    quantile: Annotated[float, Field(gt=0, le=0.5)] = 0.25
    """Share of the trials that counts as the worst, and as the best."""
    resample: Annotated[float, Field(ge=0, le=1)] = 0.25
    """How often a value is drawn anew instead of moved by a fifth."""
    seed: int = 0
    """Of the changes."""


MUTABLE = (
    "model.fixed_beta", "training.learning_rate", "training.caam_learning_rate", "training.weight_decay",
    "training.eps", "training.clip_norm", "tower.learning_rate",
)  # fmt: skip
"""What may change between two steps of a training."""


class SweepRecipe(Config):
    """Trainings that differ in some fields, and what is best."""

    name: Name = "sweep"
    """Name of the sweep."""
    title: str = "Hyper-parameter sweep"
    """Heading of its page."""
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    """What every trial trains, where the space says nothing else; may extend a shipped recipe. `train.scaling` is what
    each trial takes, `train.tracking` where trials and sweep are logged."""
    space: dict[str, Dimension] = Field(default_factory=dict)
    """Dotted name of a field of the training recipe → what is searched of it: choice, grid (values), uniform,
    loguniform (low, high), int (low, high, step)."""
    algorithm: Annotated[Random | Exhaustive | Tpe, Field(discriminator="kind")] = Field(
        default_factory=Random
    )
    """What is tried next."""
    scheduler: Annotated[NoScheduler | Asha | Median | Pbt, Field(discriminator="kind")] = Field(
        default_factory=NoScheduler
    )
    """What ends early, judged by the first objective on dev."""
    objectives: Annotated[tuple[str, ...], Field(min_length=1, max_length=2)] = (AVERAGE,)
    """What counts: avg, R_ID@1, R@1, R@5 (means over the domains, on dev), one domain's (domain/R@1), query_ms,
    trained_parameters, ms_per_step (less is better). Two give a Pareto front."""
    concurrent: Positive | None = None
    """Trials at a time; null takes as many as the session has room for."""
    driver_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory that Ray reserves for a trial beside its workers: it loads the model once."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """Losses of a trial's process or machine after which it goes on; a training that fails is not repeated."""
    intervals: bool = True
    """Evaluate every finished trial on dev, for 95 % intervals by instance; not where the tower is trained."""
    retry_failed: bool = False
    """Try trials again that failed when the sweep was begun, from the last checkpoint of their runs."""
    resume: bool = False
    """Refuse to begin: only go on with what lies there."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = [*refusals(self.train, self.space), *self._misfits()]
        if found:
            raise ValueError("; ".join(found))
        return self

    def _misfits(self) -> list[str]:
        found = []
        kind, grids = self.algorithm.kind, [n for n, d in self.space.items() if isinstance(d, Grid)]
        endless = [name for name, dimension in self.space.items() if listed(dimension) is None]
        if kind == "grid" and endless:
            found.append(
                f"algorithm grid cannot list {', '.join(endless)}; use kind choice, grid or int there"
            )
        if isinstance(self.algorithm, Random) and self.algorithm.trials > 1 and self.space.keys() == {*grids}:
            found.append(
                f"algorithm random would try the same combinations of grids {self.algorithm.trials} times; set"
                " algorithm.kind to grid"
            )
        if kind == "tpe" and grids:
            found.append(f"algorithm tpe chooses for itself; use kind choice for {', '.join(grids)}")
        if len(set(self.objectives)) < len(self.objectives):
            found.append(f"objectives {self.objectives[0]} twice; name two, or one")
        for name in self.objectives:
            if name not in (AVERAGE, *MEASURES, *AFTERWARDS) and name.rpartition("/")[2] not in MEASURES:
                known = ", ".join((AVERAGE, *MEASURES, *AFTERWARDS))
                found.append(f"objectives: {name!r} is unknown; take one of {known}, or domain/R@1")
        if self.train.training.dev_every_epochs is None:
            found.append(
                "train.training.dev_every_epochs is null: trials are judged on dev; set it to 1 or more"
            )
        if self.train.tower.online and LATENCY in self.objectives:
            found.append(f"objectives: {LATENCY} reads stored tokens; leave it out with a trained tower")
        if self.scheduler.kind != "none" and self.objectives[0] in AFTERWARDS:
            found.append(
                f"scheduler {self.scheduler.kind} judges by the first objective while trials train, and"
                f" {self.objectives[0]} is known at the end; put another one first"
            )
        if self.scheduler.kind == "pbt":
            fixed = [name for name in self.space if name not in MUTABLE]
            if fixed:
                found.append(
                    f"scheduler pbt cannot change {', '.join(fixed)} while a model trains; it takes"
                    f" {', '.join(MUTABLE)}"
                )
            if kind == "tpe":
                found.append("scheduler pbt chooses for itself; set algorithm.kind to random or grid")
            elif len({token(values) for values in self.given or ()}) < self.trials:
                found.append(
                    f"scheduler pbt trains all {self.trials} trials at once, and some have the same values, so that"
                    " they are the same run; take uniform, loguniform or more values, or lower algorithm.trials"
                )
        return found

    @property
    def given(self) -> list[Values] | None:
        """The values of every trial, in their order; None where they depend on results."""
        if isinstance(self.algorithm, Random):
            return drawn(self.space, self.algorithm.trials, self.algorithm.seed)
        return every(self.space) if isinstance(self.algorithm, Exhaustive) else None

    @property
    def trials(self) -> int:
        """How many there are in all."""
        return self.algorithm.trials if isinstance(self.algorithm, Tpe) else len(self.given or ())

    def identity(self, dataset_hash: str, features_hash: str) -> str:
        """The key of a sweep: equal for recipes whose trials are the same on this data."""
        tree = self.model_dump(mode="json")
        for place in ("name", "title", "concurrent", "driver_gib", "max_failures", "retry_failed", "resume"):
            del tree[place]
        tree["train"] = self.train.identity(dataset_hash, features_hash)
        return recipe_hash(tree)


def better(metric: str) -> int:
    """1 where more of a metric is better, -1 where less is."""
    return -1 if metric in AFTERWARDS else 1
