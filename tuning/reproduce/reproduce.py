"""`oacir reproduce`: one benchmark, shared features, the matrix as trials of Ray Tune, and what of the paper shows."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.config import recipe_hash
from infra.base.errors import OacirError, RefusedError
from infra.base.progress import Progress, duration
from infra.base.versions import Version, open_version
from tuning.interrupts import Interrupts
from tuning.reproduce.config import ReproduceRecipe
from tuning.reproduce.kept import TrialKept, find
from tuning.reproduce.rows import BOX_IOUS, FULL, Row, Trial, matrix, trials
from tuning.reproduce.trial import Cell, Ledger, Queue, Shared, Task
from tuning.space import applied

log = logging.getLogger(__name__)
FOLDER, REPORT, FIGURES = "reproductions", "report.md", "figures.json"
RAY_FOLDER = "ray"


@dataclass(frozen=True)
class Plan:
    """A reproduction once its benchmark and its features are there."""

    recipe: ReproduceRecipe
    """With dataset pinned."""
    rows: list[Row]
    trials: list[Trial]
    dataset: Version
    domains: list[str]
    features: list[str]
    """Content hashes of the stores."""
    place: str

    def task(self, trial: Trial) -> Task:
        """What a trial does."""
        recipe = applied(self.recipe.train, trial.values)
        recipe = recipe.model_copy(update={"name": f"{self.recipe.name}-{trial.row.name.replace('_', '-')}"})
        own = trial.row.name == FULL
        blind, ious = (self.recipe.blind, BOX_IOUS) if own else (0, ())
        identity = recipe.identity(self.dataset.manifest.content_hash, "/".join(self.features))
        key = recipe_hash({"blind": blind, "ious": list(ious), "without": trial.without}, identity)
        domains = None if trial.without is None else (trial.without,)
        return Task(trial.name, key, recipe, domains, ious, blind)


def reproduce(recipe: ReproduceRecipe, context: Context) -> Outcome:
    """Train and measure what is not there yet, then write the report of what is.

    Returns:
        where the report lies; refused where an ordering [S] fails or cannot be judged yet, if that is demanded.

    Raises:
        OacirError: no trial of the matrix could be trained.
    """
    rows = [
        row
        for row in matrix(recipe.betas, recipe.rows == "all")
        if not recipe.only or row.name in recipe.only
    ]
    if context.dry_run:
        return _told(recipe, rows, context)
    began = time.monotonic()
    plan = _plan(recipe, rows, context)
    tasks = {trial: plan.task(trial) for trial in plan.trials}
    waiting = [t for t in tasks.values() if find(plan.place, t.name, t.key) is None]
    failed: dict[str, str] = {}
    until = None if recipe.minutes is None else began + 60 * recipe.minutes
    if waiting and (until is None or time.monotonic() < until):
        failed = _run(plan, waiting, until, context)
    found = {trial: find(plan.place, task.name, task.key) for trial, task in tasks.items()}
    kept = {trial: one for trial, one in found.items() if one is not None}
    if not kept:
        why = f": {next(iter(failed.values()))}" if failed else ""
        raise OacirError(
            f"{plan.place}: none of {len(tasks)} trials was finished{why}; the same command goes on"
        )
    return _reported(plan, kept, failed, len(waiting), time.monotonic() - began)


def _told(recipe: ReproduceRecipe, rows: Sequence[Row], context: Context) -> Outcome:
    from pipelines.build import build

    planned = build(recipe.build, Context(root=context.root, dry_run=True))
    crossed = sum(row.crossed for row in rows)
    lines = (
        *planned.details,
        planned.message,
        f"then {len(rows)} rows × {recipe.seeds} seeds, {crossed} of them trained once without each domain:",
        *(f"{row.name}: {row.label}" for row in rows),
    )
    return Outcome(f"dry run: would reproduce {recipe.name}", None, {"rows": len(rows)}, lines)


def _plan(recipe: ReproduceRecipe, rows: list[Row], context: Context) -> Plan:
    """Build the benchmark and embed it, once for each way in which a row sees the reference."""
    from pipelines.build import build
    from pipelines.embed import embed

    inner = Context(root=context.root)
    built = build(recipe.build, inner)
    if built.refused or built.location is None:
        raise RefusedError(f"build: {built.refused or built.message}")
    dataset = open_version(built.location)
    train = recipe.train
    # a random tower is the same for all seeds, so that they read the same features
    tower_seed = train.model.seed if train.model.tower_seed is None else train.model.tower_seed
    model = train.model.model_copy(update={"tower_seed": tower_seed if train.model.weights is None else None})
    train = train.model_copy(update={"dataset": dataset.url, "features": None, "model": model})
    stores = []
    for view in dict.fromkeys(str(row.values.get("model.reference_view", "full")) for row in rows):
        values = {} if view == "full" else {"model.modulation": "none", "model.reference_view": view}
        outcome = embed(applied(train, values), inner)
        stores += [outcome.location, outcome.figures.get("views", {}).get("location")]
    features = sorted({open_version(url).manifest.content_hash for url in stores if url})
    domains = _domains(dataset)
    whole = recipe.model_copy(update={"train": train})
    place = context.out or storage.join(storage.absolute(context.root), FOLDER, recipe.name)
    return Plan(whole, rows, trials(rows, recipe.seeds, domains), dataset, domains, features, place)


def _domains(dataset: Version) -> list[str]:
    """Domains that are trained on and tested.

    Raises:
        OacirError: there are none.
    """
    splits: dict[str, set[str]] = {}
    for row in dataset.table("quadruples", ["domain", "split"]).to_pylist():
        splits.setdefault(row["domain"], set()).add(row["split"])
    found = sorted(domain for domain, there in splits.items() if {"train", "test"} <= there)
    if not found:
        raise OacirError(
            f"{dataset.url}: no domain has both train and test queries; build a larger benchmark"
        )
    return found


def _run(plan: Plan, waiting: Sequence[Task], until: float | None, context: Context) -> dict[str, str]:
    """Bring the trials to their ends, as far as the time goes; name → why it failed."""
    from ray import tune as ray_tune

    from infra.base.ray_session import connect
    from training.room import require_workers_fit

    connect()
    recipe, scaling = plan.recipe, plan.recipe.train.scaling
    room = max(1, require_workers_fit(scaling, "train.") // scaling.workers)
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    filesystem, folder = storage.arrow_filesystem(storage.join(plan.place, RAY_FOLDER))
    shared = Shared(storage.absolute(context.root), plan.place, plan.dataset.url)
    # no CPU: what trains are the workers, which Ray Train places
    needed = ray_tune.PlacementGroupFactory([{"memory": int(recipe.driver_gib * 2**30)}])
    done = len(plan.trials) - len(waiting)
    with Progress("reproduce", len(plan.trials), "trials", done=done) as progress:
        ledger = Ledger(progress)
        tuner = ray_tune.Tuner(
            ray_tune.with_resources(ray_tune.with_parameters(Cell, shared=shared), needed),
            tune_config=ray_tune.TuneConfig(
                search_alg=Queue(waiting, until),
                num_samples=len(waiting),
                max_concurrent_trials=min(room, recipe.concurrent or room),
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=f"{recipe.name}-{time.time_ns()}",
                storage_path=folder,
                storage_filesystem=filesystem,
                callbacks=[ledger],
                failure_config=ray_tune.FailureConfig(max_failures=recipe.max_failures),
                verbose=0,
            ),
        )
        with Interrupts():
            tuner.fit()
    storage.remove(storage.join(plan.place, RAY_FOLDER))
    return ledger.failed


def _reported(
    plan: Plan, kept: dict[Trial, TrialKept], failed: dict[str, str], waited: int, seconds: float
) -> Outcome:
    from tuning.reproduce.figures import Results
    from tuning.reproduce.kept import ranks_of
    from tuning.reproduce.page import Reported, page

    recipe = plan.recipe
    tables = {trial: ranks_of(plan.place, one.name) for trial, one in kept.items()}
    results = Results(plan.rows, tables, recipe.seeds, plan.domains)
    missing = [trial.name for trial in plan.trials if trial not in kept]
    whole = Reported.of(recipe, plan.dataset, results, kept, missing, failed)
    storage.write_bytes(storage.join(plan.place, REPORT), page(whole).encode())
    figures = whole.figures()
    text = json.dumps(figures, indent=1, ensure_ascii=False)
    storage.write_bytes(storage.join(plan.place, FIGURES), text.encode())
    lost = [name for (level, name), passed in whole.verdicts.items() if level == "S" and not passed]
    refused = None
    if recipe.demanded and (lost or missing):
        said = [f"fails: {name}" for name in lost]
        said += [f"{len(missing)} of {len(plan.trials)} trials are not there yet"] if missing else []
        refused = "; ".join(said)
    url = storage.join(plan.place, REPORT)
    lines = list(whole.lines())
    if missing and (done := waited - len(missing)) > 0:
        # benchmark and features are part of this sitting alone
        left = duration(len(missing) * seconds / done)
        lines.append(f"{len(missing)} trials to go, {left} or less at this sitting's pace")
    return Outcome(
        f"{len(kept)} of {len(plan.trials)} trials in {duration(seconds)}: {url}",
        url,
        figures,
        tuple(lines),
        refused,
    )
