"""The demo: a procedural world, AdaFocal and its β = 0 baseline trained from scratch, both evaluated, one report."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field

from infra.base.command import Context, Outcome
from infra.base.config import Config, load_recipe
from infra.base.errors import RefusedError
from infra.base.progress import duration

if TYPE_CHECKING:
    from training.config import TrainRecipe

Positive = Annotated[int, Field(gt=0)]
MODELS = {"AdaFocal": "tiny.yaml", "β = 0": "tiny_beta0.yaml"}
SHOWN = ("R_ID@1", "R@1", "R@5")
LEAST_RATIO, LEAST_TIMES_CHANCE, LEAST_GALLERY = 1.5, 20, 150
R_1_RANGE = (10.0, 95.0)
"""Percent: below, the world is too hard for the models; above, too easy to tell them apart."""


class DemoRecipe(Config):
    """What may be changed about the demo; null keeps the shipped recipe's value."""

    seed: Annotated[int, Field(ge=0)] = 0
    """Of the world, the splits, the weights and the order of training."""
    instances_per_domain: Positive | None = None
    """Identities of each of the four domains; null keeps world.yaml's."""
    scenes_per_instance: Positive | None = None
    """Scenes of each identity; null keeps world.yaml's."""
    epochs: Positive | None = None
    """Passes over the training quadruples, for both models; null keeps their recipes'."""
    steps: Positive | None = None
    """Training steps at most, for both models; null keeps their recipes'."""
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
        if outcome.refused:
            raise RefusedError(f"{name}: {outcome.refused}")
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
    figures: dict[str, Any] = {"seconds": seconds, "scores": scores, "beta": betas}
    figures["ratio_r_id_1"] = _ratio(scores)
    checked, missed = "what the demo has to show is checked at full size only, so not here", []
    if full_size(recipe):
        missed = check_demo({label: outcome.figures for label, outcome in evaluations.items()})
        checked = f"what the demo has to show: {len(missed) or 'none'} of its demands missed"
        figures["missed"] = missed
    return Outcome(
        f"report: {page.location}",
        page.location,
        figures,
        (*score_table(scores), verdict(scores), checked, time_line(seconds)),
        f"the demo does not show what it has to: {'; '.join(missed)}" if missed else None,
    )


def full_size(recipe: DemoRecipe) -> bool:
    """Whether nothing is made smaller or shorter than shipped; seed and workers are free."""
    changed = (recipe.instances_per_domain, recipe.scenes_per_instance, recipe.epochs, recipe.steps)
    return all(value is None for value in changed)


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


def verdict(scores: Mapping[str, Any]) -> str:
    """What the box is worth, as one line: the factor in R_ID@1, or what is so where there is no factor.

    Args:
        scores: label → the `overall` figures of its evaluation: AdaFocal, then its baseline.
    """
    (label, other), (first, second) = scores, (part["metrics"]["R_ID@1"] for part in scores.values())
    if not first["value"]:
        beside = f"{other} does so for {second['value']:.1f} %" if second["value"] else f"nor does {other}"
        return f"the box is worth nothing here: {label} ranks the right instance first for no query, {beside}"
    apart = "do not overlap" if _apart(first, second) else "overlap"
    if not second["value"]:
        return (
            f"only {label} ever ranks the right instance first, {other} for no query (the intervals {apart})"
        )
    return f"the box is worth a factor of {_ratio(scores)} in R_ID@1 (the intervals {apart})"


def check_demo(figures: Mapping[str, Any]) -> list[str]:
    """Which demands the demo misses, one line each; none where it shows what it has to.

    Args:
        figures: label → the figures of its evaluation (`pipelines.retrieval.summary.figures`): AdaFocal, then β = 0.
    """
    full, bare = (part["overall"]["metrics"] for part in figures.values())
    problems = []
    mine, theirs = full["R_ID@1"], bare["R_ID@1"]
    if not mine["value"] or mine["value"] < LEAST_RATIO * theirs["value"]:
        problems.append(
            f"R_ID@1 {mine['value']:.1f} % is below {LEAST_RATIO} times the {theirs['value']:.1f} % without the box"
        )
    if not _apart(mine, theirs):
        problems.append("the 95 % intervals of both models' R_ID@1 overlap")
    found = full["R@1"]
    value, chance = found["value"], found["chance"]
    if value < LEAST_TIMES_CHANCE * chance:
        problems.append(f"R@1 {value:.1f} % is below {LEAST_TIMES_CHANCE} times chance ({chance:.2f} %)")
    if not R_1_RANGE[0] <= value <= R_1_RANGE[1]:
        problems.append(f"R@1 {value:.1f} % lies outside {R_1_RANGE[0]:.0f} to {R_1_RANGE[1]:.0f} %")
    for domain, part in next(iter(figures.values()))["domains"].items():
        if part["gallery"]["images"] < LEAST_GALLERY:
            problems.append(
                f"the gallery of {domain} holds {part['gallery']['images']} images, fewer than {LEAST_GALLERY}"
            )
    for kind, words in (("text_only", "the text"), ("reference_only", "the reference")):
        blind = found[kind]
        if blind is None or 2 * blind >= value:
            said = "is unknown" if blind is None else f"{blind:.1f} % is not below half of {value:.1f} %"
            problems.append(f"R@1 from {words} alone {said}")
    return problems


def _apart(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether the first interval lies wholly above the second; False where one of them is unknown."""
    low, high = first["low"], second["high"]
    return low is not None and high is not None and low > high
