"""The recipe of a cross-validation."""

from __future__ import annotations

from typing import Annotated, Self

from pydantic import Field, model_validator

from infra.base.config import Config, Name
from pipelines.retrieval.robustness.config import PerturbSection


class CrossvalidateRecipe(Config):
    """Every instance of a small benchmark is asked once: k folds over instances."""

    name: Name = "crossvalidation"
    """Name of the runs and evaluations (with the number of the fold), and of reports/<name>.json under the root."""
    dataset: str = "photos"
    """The benchmark: a path or URL of a version, name/key, or name (the newest of it)."""
    folds: Annotated[int, Field(ge=3, le=100)] = 5
    """How many: each is asked once, with the next one as dev and the others trained on."""
    train: str | None = None
    """Recipe (a file, or a shipped one's name) that is embedded and trained for each fold; null with a model."""
    model: str | None = None
    """A trained model, asked as it is: a run (path or URL, name/key, or name) or a directory of an exported model; null
    with train. Whether it was trained on these photos is not known here."""
    epochs: Annotated[int, Field(gt=0)] | None = None
    """Passes over the training quadruples; null keeps the recipe's."""
    workers: Annotated[int, Field(gt=0)] | None = None
    """Training workers; null keeps the recipe's."""
    perturb: PerturbSection = Field(default_factory=PerturbSection)
    """What is changed about the queries, as in evaluate."""
    bootstrap_samples: Annotated[int, Field(ge=100)] = 1000
    """Resamples for the 95 % intervals."""
    seed: int = 0
    """Of the deal of the instances, the blind baselines' draws and the bootstrap."""

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        if (self.train is None) == (self.model is None):
            raise ValueError(
                "give either --train RECIPE (a model for each fold) or --model RUN (one for all)"
            )
        if self.model is not None and (self.epochs is not None or self.workers is not None):
            raise ValueError("epochs and workers are of --train; with --model nothing is trained")
        return self
