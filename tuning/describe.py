"""What is said of a finished trial: its measurements, the figures of what it exported, intervals on dev."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from infra.base.command import Context
from infra.base.versions import Version, open_version
from training.config import TrainRecipe
from tuning.config import AVERAGE, LATENCY, MEASURES
from tuning.records import Measured, Reading

OVERALL = "all"
"""In place of a domain: the mean over them."""


def described(
    run_url: str, recipe: TrainRecipe, root: str, objectives: Sequence[str], intervals: bool
) -> dict[str, Any]:
    """Fields of a `TrialRecord`, JSON-able.

    Args:
        run_url: of the finished run.
        recipe: that trained it.
        root: where versions lie.
        objectives: metrics; what has to be measured for them is measured now.
        intervals: whether to evaluate on dev.
    """
    run = open_version(run_url)
    readings = of_run(run)
    exported = run.manifest.figures["exported_step"]
    chosen = [r for r in readings if r.step == exported] or readings[-1:]
    figures = dict(chosen[0].figures) if chosen else {}
    figures["loss"] = float(run.manifest.figures["loss"])
    if costs := run.manifest.figures["ms_per_step"]:
        figures["ms_per_step"] = float(sum(costs.values()))
    if {LATENCY, "trained_parameters"} & set(objectives):
        from training.export import open_model
        from tuning.latency import query_ms

        model, _ = open_model(run.url, with_tower=False)
        figures["trained_parameters"] = float(sum(p.numel() for p in model.parameters() if p.requires_grad))
        if LATENCY in objectives:
            figures[LATENCY] = query_ms(run, root, recipe.dataset)
    found: dict[str, Any] = {
        "run_hash": run.manifest.content_hash,
        "readings": [item.model_dump(mode="json") for item in readings],
        "figures": figures,
    }
    if intervals and not recipe.tower.online:
        found |= _evaluated(run, recipe, root)
    return found


def of_run(run: Version) -> list[Reading]:
    """Every dev measurement of a finished run, in order."""
    by_step: dict[int, dict[str, dict[str, float]]] = {}
    for row in run.table("dev").to_pylist():
        by_step.setdefault(row["step"], {})[row["domain"]] = {m: row[m] for m in MEASURES}
    found = []
    for step, domains in sorted(by_step.items()):
        means = {m: sum(values[m] for values in domains.values()) / len(domains) for m in MEASURES}
        figures = {f"{name}/{m}": value for name, values in domains.items() for m, value in values.items()}
        average = sum(means.values()) / len(means)
        found.append(Reading(step=step, figures={**figures, **means, AVERAGE: average}))
    return found


def _evaluated(run: Version, recipe: TrainRecipe, root: str) -> dict[str, Any]:
    """Intervals and β from `oacir evaluate` on dev, which is a version of its own."""
    from pipelines.retrieval.config import EvaluateRecipe
    from pipelines.retrieval.evaluate import evaluate
    from pipelines.retrieval.protocols.base import AVERAGE as AVERAGE_OF_ALL

    wanted = EvaluateRecipe(
        name=f"{recipe.name}-dev", model=run.url, dataset=recipe.dataset, split="dev", blind_references=1
    )
    figures = evaluate(wanted, Context(root=root)).figures
    parts = {**figures["domains"], OVERALL: figures["overall"]}
    domains = {
        name: {
            metric: Measured(**{k: part["metrics"][theirs][k] for k in ("value", "low", "high")}).model_dump()
            for metric, theirs in ((AVERAGE, AVERAGE_OF_ALL), *zip(MEASURES, MEASURES, strict=True))
        }
        for name, part in parts.items()
    }
    beta = figures["beta"]
    return {"domains": domains, "beta": None if beta is None else {k: beta[k] for k in ("mean", "std")}}
