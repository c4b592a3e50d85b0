"""The recipe of a reproduction: which world, which training, how much of the matrix, over how many seeds."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.base.config import Config, Name
from pipelines.config import BuildRecipe
from training.config import TrainRecipe
from tuning.reproduce.rows import matrix
from tuning.space import applied

Positive = Annotated[int, Field(gt=0)]


class ReproduceRecipe(Config):
    """The ablation matrix of the paper on one benchmark, and what of its orderings shows there."""

    name: Name = "reproduction"
    """Name of the reproduction; its trials and its report lie in reproductions/<name> under the root."""
    title: str = "The paper's orderings on a procedural world"
    """Heading of the report."""
    build: BuildRecipe
    """The benchmark that all trials share; may extend a shipped recipe."""
    train: TrainRecipe = Field(default_factory=TrainRecipe)
    """What every trial trains, where its row says nothing else; may extend a shipped recipe. `train.dataset` and
    `train.features` are those that are made here."""
    rows: Literal["gated", "all"] = "gated"
    """gated: what the demanded orderings [S] speak of; all: the reported ones [W] and the other baselines too."""
    only: tuple[str, ...] = ()
    """Names of rows to train alone, to look at some of them; empty takes all of `rows`."""
    betas: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=3)] = (1, 2, 4, 8, 16)
    """Constants of the fixed-β sweep."""
    seeds: Positive = 3
    """Trainings of each row; weights (but the tower's), order and dropout differ."""
    minutes: Annotated[float, Field(gt=0)] | None = None
    """Begin no further trial after so many minutes; the same command then goes on. null goes through all of them, and
    next to nothing writes the report of those that are there."""
    concurrent: Positive | None = None
    """Trials at a time; null takes as many as the session has room for."""
    driver_gib: Annotated[float, Field(gt=0)] = 1.0
    """Memory that Ray reserves for a trial beside its workers."""
    max_failures: Annotated[int, Field(ge=0)] = 1
    """Losses of a trial's process or machine after which it goes on; a training that fails is not repeated."""
    blind: Annotated[int, Field(ge=1)] = 4
    """Foreign references (or texts) over which AdaFocal's blind baselines average."""
    demanded: bool = True
    """End with exit code 3 where an ordering [S] fails or not all of its trials are there."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        found = []
        if self.train.model.modulation != "scalar" or self.train.model.method != "adafocal":
            found.append(
                "train.model: the first row is AdaFocal; set modulation to scalar and method to adafocal"
            )
        if self.train.tower.online:
            found.append(
                f"train.tower.mode {self.train.tower.mode!r}: all trials share stored features; set stored"
            )
        rows = matrix(self.betas, self.rows == "all")
        known = [row.name for row in rows]
        if unknown := [name for name in self.only if name not in known]:
            found.append(f"only: no row {', '.join(unknown)}; there are {', '.join(known)}")
        if len(set(self.betas)) < len(self.betas):
            found.append("betas: one of them twice")
        if not found:
            for row in rows:
                try:
                    applied(self.train, row.values)
                except ValueError as error:
                    found.append(f"row {row.name} does not fit train: {error}")
        if found:
            raise ValueError("; ".join(found))
        return self
