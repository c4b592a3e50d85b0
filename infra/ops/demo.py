"""The demo: a procedural world, AdaFocal and its β = 0 baseline trained from scratch, both evaluated, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from infra.base.command import Context, Outcome
from infra.base.config import Config, load_recipe
from infra.base.progress import duration

if TYPE_CHECKING:
    from training.config import TrainRecipe

Positive = Annotated[int, Field(gt=0)]
MODELS = {"AdaFocal": "tiny.yaml", "β = 0": "tiny_beta0.yaml"}
SHOWN = ("R_ID@1", "R@1", "R@5")


class DemoRecipe(Config):
    """What may be changed about the demo; null keeps the shipped recipe's value."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the world, the splits, the weights and the order of training."""
    instances_per_domain: Positive | None = None
    """Identities of each of the four domains."""
    scenes_per_instance: Positive | None = None
    """Scenes of each identity."""
    epochs: Positive | None = None
    """Passes over the training quadruples, for both models."""
    steps: Positive | None = None
    """Training steps at most, for both models."""
    workers: Positive = 2
    """Training workers."""


def demo(recipe: DemoRecipe, context: Context) -> Outcome:
    """Build, embed, train twice, evaluate twice, report; each stage is the command of that name.

    Every stage is a version under the root, so that a killed demo goes on and a finished one is a no-op.
    """
    from pipelines.build import build
    from pipelines.config import BuildRecipe
    from pipelines.embed import embed
    from pipelines.retrieval.config import EvaluateRecipe, ReportRecipe
    from pipelines.retrieval.evaluate import evaluate
    from pipelines.retrieval.report import report
    from training.trainer import train

    seconds: dict[str, float] = {}
    plan: list[str] = []

    def stage(name: str, function: Callable[[Any, Context], Outcome], stage_recipe: Config) -> Outcome:
        began = time.perf_counter()
        outcome = function(stage_recipe, Context(root=context.root, dry_run=context.dry_run))
        seconds[name] = round(time.perf_counter() - began, 1)
        plan.extend([*outcome.details, outcome.message])
        return outcome

    built = stage("build", build, load_recipe(BuildRecipe, "world.yaml", _world_options(recipe)))
    if context.dry_run:
        return Outcome(
            "that is the plan of the first stage; the others follow from its benchmark", details=tuple(plan)
        )
    dataset = _location(built)
    recipes = {label: _train_recipe(recipe, file, dataset) for label, file in MODELS.items()}
    stage("embed", embed, recipes["AdaFocal"])
    runs = {label: stage(f"train {label}", train, r) for label, r in recipes.items()}
    evaluations = {
        label: stage(
            f"evaluate {label}",
            evaluate,
            EvaluateRecipe(name=recipes[label].name, model=_location(run), dataset=dataset),
        )
        for label, run in runs.items()
    }
    page = stage(
        "report",
        report,
        ReportRecipe(evaluations=[_location(e) for e in evaluations.values()], labels=list(MODELS)),
    )
    scores = {label: outcome.figures["overall"] for label, outcome in evaluations.items()}
    betas = {label: outcome.figures["beta"] for label, outcome in evaluations.items()}
    return Outcome(
        f"report: {page.location}",
        page.location,
        {"seconds": seconds, "scores": scores, "beta": betas, "ratio_r_id_1": _ratio(scores)},
        (*score_table(scores), *_verdict(scores), time_line(seconds)),
    )


def _world_options(recipe: DemoRecipe) -> list[tuple[str, str]]:
    options = {
        "seed": recipe.seed,
        "source.world.seed": recipe.seed,
        "source.world.instances_per_domain": recipe.instances_per_domain,
        "source.world.scenes_per_instance": recipe.scenes_per_instance,
    }
    return [(key, str(value)) for key, value in options.items() if value is not None]


def _train_recipe(recipe: DemoRecipe, file: str, dataset: str) -> TrainRecipe:
    from training.config import TrainRecipe

    options = {
        "dataset": dataset,
        "model.seed": recipe.seed,
        "training.seed": recipe.seed,
        "training.epochs": recipe.epochs,
        "training.steps": recipe.steps,
        "scaling.workers": recipe.workers,
    }
    return load_recipe(
        TrainRecipe, file, [(key, str(value)) for key, value in options.items() if value is not None]
    )


def _location(outcome: Outcome) -> str:
    if outcome.location is None:
        raise ValueError(f"a stage ended without a location: {outcome.message}")
    return outcome.location


def score_table(scores: Mapping[str, Any]) -> list[str]:
    """The lines of the closing table: a row a model, then chance and the blind baselines of the first model.

    Args:
        scores: label → the `overall` figures of its evaluation (percent).
    """
    from pipelines.retrieval.summary import percent, with_interval

    rows = [["", *SHOWN]]
    rows += [[label, *(with_interval(part["metrics"][m]) for m in SHOWN)] for label, part in scores.items()]
    first, part = next(iter(scores.items()))
    for name, kind in (
        ("chance", "chance"),
        (f"{first}, text only", "text_only"),
        (f"{first}, reference only", "reference_only"),
    ):
        rows.append([name, *(percent(part["metrics"][m][kind]) for m in SHOWN)])
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
    queries, images = part["queries"], part["gallery"]["images"]
    return [
        *lines,
        f"percent (95 % interval by instance) over {queries:,} held-out queries of {part['instances']:,} instances,"
        f" {images:,} gallery images in all",
    ]


def time_line(seconds: Mapping[str, float]) -> str:
    """Seconds per stage and in all, as one line."""
    parts = ", ".join(f"{name} {value:.0f} s" for name, value in seconds.items())
    return f"time: {parts}; {duration(sum(seconds.values()))} in all"


def _ratio(scores: Mapping[str, Any]) -> float | None:
    """R_ID@1 of the first model over that of the second; None where the second finds nothing."""
    first, second = (part["metrics"]["R_ID@1"]["value"] for part in scores.values())
    return round(first / second, 2) if second else None


def _verdict(scores: Mapping[str, Any]) -> list[str]:
    ratio = _ratio(scores)
    first, second = (part["metrics"]["R_ID@1"] for part in scores.values())
    apart = "do not overlap" if first["low"] > second["high"] else "overlap"
    return [
        f"the box is worth a factor of {ratio or 'more than can be told'} in R_ID@1 (the intervals {apart})"
    ]
