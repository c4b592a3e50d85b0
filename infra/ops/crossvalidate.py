"""`oacir crossvalidate`: a small benchmark in folds over instances, a model for each, and all their answers as one."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.config import Config, load_recipe
from infra.base.errors import RefusedError
from pipelines.retrieval.folds.config import CrossvalidateRecipe

if TYPE_CHECKING:
    from infra.base.versions import Version
    from training.config import TrainRecipe


def crossvalidate(recipe: CrossvalidateRecipe, context: Context) -> Outcome:
    """Deal, train, evaluate and pool; each step is the command of that name, so that a killed one goes on.

    Raises:
        OacirError: too few instances for the folds, or a step failed.
    """
    from pipelines.retrieval.folds.deal import make_folds
    from pipelines.retrieval.folds.pool import pool, table
    from pipelines.retrieval.inputs import find_dataset
    from pipelines.retrieval.protocols.known import stated_in

    dataset = find_dataset(context.root, recipe.dataset)
    url = _place(recipe, context)
    if context.dry_run:
        trained = f"train {recipe.train} for each" if recipe.train else f"ask {recipe.model}"
        return Outcome(f"would cut {dataset.url} into {recipe.folds} folds, {trained}, and write {url}")
    folds = make_folds(dataset, recipe.folds, recipe.seed, context.root)
    evaluations = [
        _evaluate(recipe, context, fold, f"{recipe.name}-{number}") for number, fold in enumerate(folds, 1)
    ]
    figures = pool(folds, evaluations, recipe.bootstrap_samples, recipe.seed)
    benchmark = stated_in(evaluations[0].manifest.figures)
    figures |= {
        "dataset": {"url": dataset.url, "content_hash": dataset.manifest.content_hash},
        "folds": [fold.url for fold in folds],
        "evaluations": [evaluation.url for evaluation in evaluations],
        "perturbed": recipe.perturb.stated(),
        "benchmark": benchmark,
    }
    storage.write_bytes(url, json.dumps(figures, indent=1, ensure_ascii=False).encode())
    overall = figures["overall"]
    return Outcome(
        f"{overall['queries']:,} queries of {overall['instances']:,} instances, each asked once in {recipe.folds}"
        f" folds: {url}",
        url,
        figures,
        (*table(figures, benchmark), *(f"note: {text}" for text in figures["notes"])),
    )


def _evaluate(recipe: CrossvalidateRecipe, context: Context, fold: Version, name: str) -> Version:
    """The evaluation of a fold, by a model that was trained on the others or by the one that is given."""
    from pipelines.embed import embed
    from pipelines.retrieval.config import EvaluateRecipe
    from pipelines.retrieval.evaluate import evaluate
    from training.trainer import train

    model = recipe.model
    if model is None:
        wanted = _training(recipe, fold, name)
        _step(embed, wanted, context)
        model = _step(train, wanted, context)
    asked = EvaluateRecipe(
        name=name,
        model=model,
        dataset=fold.url,
        bootstrap_samples=recipe.bootstrap_samples,
        perturb=recipe.perturb,
        seed=recipe.seed,
    )
    return versions.open_version(_step(evaluate, asked, context))


def _training(recipe: CrossvalidateRecipe, fold: Version, name: str) -> TrainRecipe:
    from training.config import TrainRecipe

    options = {
        "name": name,
        "dataset": fold.url,
        "training.epochs": recipe.epochs,
        "scaling.workers": recipe.workers,
    }
    given = [(key, str(value)) for key, value in options.items() if value is not None]
    return load_recipe(TrainRecipe, recipe.train, given)


def _step(function: Callable[[Any, Context], Outcome], step: Config, context: Context) -> str:
    outcome = function(step, Context(root=context.root))
    if outcome.refused:
        raise RefusedError(f"{function.__name__}: {outcome.refused}")
    if outcome.location is None:
        raise ValueError(f"{function.__name__} ended without a location: {outcome.message}")
    return outcome.location


def _place(recipe: CrossvalidateRecipe, context: Context) -> str:
    if context.out is None:
        return storage.join(storage.absolute(context.root), "reports", f"{recipe.name}.json")
    out = storage.absolute(context.out)
    return out if out.endswith(".json") else storage.join(out, f"{recipe.name}.json")
