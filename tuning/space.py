"""What a sweep searches: kinds of dimension, what is drawn from them, and a training recipe with the values put in."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import Field, ValidationError, model_validator

from infra.base.config import Config
from infra.base.fields import find_field
from infra.base.problems import problems
from training.config import TrainRecipe

Values = dict[str, Any]
"""Dotted name of a field of `TrainRecipe` → its value."""
Listed = Annotated[tuple[Any, ...], Field(min_length=1)]


class Choice(Config):
    """One of some values."""

    kind: Literal["choice"] = "choice"
    values: Listed
    """Of any type that the field takes."""


class Grid(Config):
    """Every one of some values, each with all of every other grid."""

    kind: Literal["grid"] = "grid"
    values: Listed
    """Of any type that the field takes."""


class Uniform(Config):
    """A number, all equally likely."""

    kind: Literal["uniform"] = "uniform"
    low: float
    """Smallest."""
    high: float
    """Largest."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high {self.high} is not above low {self.low}")
        return self


class LogUniform(Config):
    """A number whose logarithm is equally likely everywhere."""

    kind: Literal["loguniform"] = "loguniform"
    low: Annotated[float, Field(gt=0)]
    """Smallest."""
    high: float
    """Largest."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high {self.high} is not above low {self.low}")
        return self


class Int(Config):
    """A whole number, both ends among them."""

    kind: Literal["int"] = "int"
    low: int
    """Smallest."""
    high: int
    """Largest."""
    step: Annotated[int, Field(gt=0)] = 1
    """From one to the next."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.high <= self.low:
            raise ValueError(f"high {self.high} is not above low {self.low}")
        return self


Dimension = Annotated[Choice | Grid | Uniform | LogUniform | Int, Field(discriminator="kind")]

IDLE = (
    "name", "dataset", "features", "embed", "tracking", "scaling", "training.checkpoint_every_steps",
    "training.checkpoints_kept", "training.activation_checkpointing", "tower.readers",
)  # fmt: skip
"""Fields that change no result of a training (`TrainRecipe.identity`), or what all trials share."""
OF_THE_STORE = (
    "model.preset", "model.weights", "model.reference_view", "model.overrides.vision_config",
    "model.overrides.pad_ratio", "tower.mode",
)  # fmt: skip
"""Fields that need a feature store of their own for each value."""


def listed(dimension: Dimension) -> list[Any] | None:
    """All values of a dimension in order; None where it has no end of them."""
    if isinstance(dimension, (Choice, Grid)):
        return list(dimension.values)
    if isinstance(dimension, Int):
        return list(range(dimension.low, dimension.high + 1, dimension.step))
    return None


def draw(dimension: Dimension, generator: np.random.Generator) -> Any:
    """One value of a dimension, by its kind."""
    found = listed(dimension)
    if found is not None:
        return found[int(generator.integers(len(found)))]
    assert isinstance(dimension, (Uniform, LogUniform))
    if isinstance(dimension, Uniform):
        return float(generator.uniform(dimension.low, dimension.high))
    drawn = math.exp(generator.uniform(math.log(dimension.low), math.log(dimension.high)))
    return min(max(drawn, dimension.low), dimension.high)  # exp(log(x)) may lie beside x


def every(space: Mapping[str, Dimension]) -> list[Values]:
    """Every combination of dimensions that can be listed, the last name turning fastest."""
    columns = [listed(dimension) or [] for dimension in space.values()]
    return [dict(zip(space, row, strict=True)) for row in itertools.product(*columns)]


def drawn(space: Mapping[str, Dimension], count: int, seed: int) -> list[Values]:
    """Random values: `count` draws, each with every combination of the grids. More draws begin with the same ones."""
    grids = every({name: d for name, d in space.items() if isinstance(d, Grid)})
    others = {name: d for name, d in space.items() if not isinstance(d, Grid)}
    found = []
    for number in range(count):
        generator = np.random.default_rng([seed, number])
        values = {name: draw(dimension, generator) for name, dimension in others.items()}
        found += [{name: (values | grid)[name] for name in space} for grid in grids]
    return found


def applied(base: TrainRecipe, values: Mapping[str, Any]) -> TrainRecipe:
    """The recipe with these values in place of its own.

    Raises:
        ValueError: what does not fit, one line.
    """
    tree = base.model_dump(mode="json")
    for name, value in values.items():
        _, path = find_field(TrainRecipe, name.split("."), tree)
        place = tree
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = value
    try:
        return TrainRecipe.model_validate(tree)
    except ValidationError as error:
        raise ValueError("; ".join(problems(TrainRecipe, tree, error, None))) from error


def refusals(base: TrainRecipe, space: Mapping[str, Dimension]) -> Iterator[str]:
    """Why a space cannot be searched over this recipe, a line each: names, and values taken one at a time."""
    tree = base.model_dump(mode="json")
    if not space:
        yield (
            "space is empty; name fields of the training recipe"
            " (space: {training.seed: {kind: grid, values: [0, 1]}})"
        )
    fine: list[str] = []
    for name in space:
        annotation, _ = find_field(TrainRecipe, name.split("."), tree)
        if annotation is None:
            yield f"space.{name}: no field of a training recipe; `oacir train --help` lists them"
        elif _is(name, IDLE):
            yield f"space.{name}: changes no result of a training, or is what all trials share; leave it out"
        elif _is(name, OF_THE_STORE) and not base.tower.online:
            yield f"space.{name}: needs a feature store for each value, and trials share one; make a sweep for each"
        elif name == "model.seed" and base.model.weights is None:
            yield (
                "space.model.seed: decides over the random image tower, too, and trials share its features; vary"
                " training.seed, or set train.model.weights"
            )
        else:
            fine.append(name)
    for name in fine:
        dimension = space[name]
        for value in listed(dimension) or [dimension.low, dimension.high]:  # type: ignore[union-attr]
            if trouble := _alone(base, space, name, value):
                yield f"space.{name}: {trouble}"
                break


def _alone(base: TrainRecipe, space: Mapping[str, Dimension], name: str, value: Any) -> str | None:
    """What is wrong with a value whatever the other dimensions are; None where some combination takes it."""
    firsts = {n: (listed(d) or [getattr(d, "low", None)]) for n, d in space.items() if n != name}
    few = itertools.islice(itertools.product(*firsts.values()), 64)
    trouble = None
    for row in few:
        try:
            applied(base, {**dict(zip(firsts, row, strict=True)), name: value})
        except ValueError as error:
            trouble = str(error)
            continue
        return None
    return trouble


def _is(name: str, fields: Sequence[str]) -> bool:
    return any(name == field or name.startswith(f"{field}.") for field in fields)


def token(values: Any) -> str:
    """Values as a text: equal for equal ones."""
    return json.dumps(values, sort_keys=True, ensure_ascii=False)
