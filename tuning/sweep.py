"""`oacir tune`: one benchmark and one feature store, many trainings, what is best, a page."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, RecipeError
from infra.base.hold import held
from infra.base.progress import Progress, duration
from infra.base.tracking import tracking_uri
from infra.base.versions import (
    MARKER,
    Draft,
    Version,
    content_hash,
    file_entry,
    open_version,
    resolve,
    rows_hash,
    start,
)
from pipelines.contents import SWEEP_COLUMNS
from training.logged import mending
from tuning.config import AVERAGE, LATENCY, MEASURES, SweepRecipe
from tuning.interrupts import Interrupts
from tuning.logged import PAGE, SweepLog, logged, mended
from tuning.pareto import front, ranked
from tuning.records import FOLDER, TrialRecord, anew, read, write
from tuning.space import applied, token

if TYPE_CHECKING:
    from tuning.trial import Shared

log = logging.getLogger(__name__)
RAY_FOLDER = "ray"
SHOWN = 10
"""Trials in the outcome's table, at most."""


@dataclass(frozen=True)
class Plan:
    """A sweep before it starts."""

    recipe: SweepRecipe
    """With dataset and features pinned."""
    dataset: Version
    features: Version | None
    """None where trials read pixels."""
    key: str
    concurrent: int

    @property
    def versions(self) -> dict[str, Version]:
        """Role → version that all trials read."""
        return {"dataset": self.dataset} | ({} if self.features is None else {"features": self.features})

    @property
    def parents(self) -> dict[str, str]:
        """Role → content hash of it."""
        return {role: version.manifest.content_hash for role, version in self.versions.items()}


def tune(recipe: SweepRecipe, context: Context) -> Outcome:
    """Try, compare, and write the page; finished trials are never repeated, interrupted ones go on.

    Returns:
        where the sweep lies: `trials.parquet`, `curves.parquet`, `report.html`.

    Raises:
        RecipeError: the values of a trial make no training recipe, or an objective is unknown on this data.
        OacirError: no room for a trial, no such dataset, or every trial failed.
    """
    began = time.monotonic()
    _check_trials(recipe)
    plan = _plan(recipe, context)
    if context.dry_run:
        return _told(plan)
    place = context.out or storage.join(storage.absolute(context.root), "sweeps", recipe.name, plan.key)
    if recipe.resume and not storage.exists(storage.join(storage.absolute(place), MARKER)):
        raise OacirError(
            f"{place}: nothing was begun there to go on with; leave --resume away, or give the recipe and --root of"
            " the sweep that was interrupted"
        )
    draft = start("sweeps", recipe.name, plan.key, recipe, root=context.root, out=context.out)
    if draft.finished is not None:
        figures = draft.finished.figures
        if recipe.retry_failed and (failed := figures["failed"]):
            raise OacirError(
                f"{draft.url}: was finished with {failed} failed trial{'s' * (failed > 1)} and stays as it is; a sweep"
                " of another --name tries them again and finds the runs of the others"
            )
        return Outcome(
            f"nothing to do: this sweep of {figures['trials']} trials was finished before: {draft.url}",
            draft.url,
            figures,
            mending(open_version(draft.url), tracking_uri(plan.recipe.train.tracking.mlflow_uri), mended),
        )
    draft.uses(plan.parents)
    with held(draft.url, "a sweep"), logged(plan.recipe, draft, plan.versions) as book:
        records = _run(plan, draft, context, book)
        if all(record.state == "failed" for record in records):
            reasons = sorted({record.reason for record in records})
            raise OacirError(
                f"all {len(records)} trials failed: {reasons[0]}; they lie in {draft.url}; once that is mended,"
                " --retry_failed true tries them again"
            )
        version = _commit(plan, draft, records, book)
    return _outcome(version, plan.recipe, records, time.monotonic() - began, book)


def _check_trials(recipe: SweepRecipe) -> None:
    """Refuse values that make no recipe before anything is begun, as far as they are known."""
    found = {}
    for number, values in enumerate(recipe.given or ()):
        try:
            applied(recipe.train, values)
        except ValueError as error:
            found[str(error)] = f"trial {number} {token(values)}: {error}"
    if found:
        raise RecipeError(list(found.values())[:5])


def _plan(recipe: SweepRecipe, context: Context) -> Plan:
    """Resolve the benchmark, embed it if it is not, and see what the session has room for."""
    from infra.base.ray_session import connect
    from pipelines.embed import embed
    from training.data import read_quadruples
    from training.room import require_workers_fit

    train = recipe.train
    dataset = resolve(context.root, "datasets", train.dataset, holding="quadruples")
    dev = read_quadruples(dataset, "dev", train.training.leave_out_domains)
    if not len(dev):
        raise OacirError(
            f"{dataset.url}: has no dev quadruples, and trials are judged on dev; build with a dev split"
        )
    domains = sorted(set(dev["domain"].to_pylist()))
    unknown = [o for o in recipe.objectives if "/" in o and o.rpartition("/")[0] not in domains]
    if unknown:
        raise RecipeError([f"objectives: {', '.join(unknown)}: dev has the domains {', '.join(domains)}"])
    connect()
    room = require_workers_fit(train.scaling, "train.")
    fitting = max(1, min(room // train.scaling.workers, _drivers(recipe)))
    if recipe.scheduler.kind == "pbt" and fitting < recipe.trials:
        raise OacirError(
            f"scheduler pbt trains all {recipe.trials} trials at once, the session has room for {fitting}; lower"
            " algorithm.trials or train.scaling.workers, or join more machines (RAY_ADDRESS)"
        )
    pinned: dict[str, Any] = {"dataset": dataset.url}
    features, key = None, ""
    if not train.tower.online:
        if train.features is None and not context.dry_run:
            location = embed(train.model_copy(update=pinned), Context(root=context.root)).location
            assert location is not None
            features = resolve(context.root, "features", location)
        elif train.features is not None:
            features = resolve(context.root, "features", train.features)
        if features is not None:
            pinned["features"], key = features.url, features.manifest.content_hash
    concurrent = min(fitting, recipe.concurrent or fitting, recipe.trials)
    whole = recipe.model_copy(update={"train": train.model_copy(update=pinned)})
    return Plan(whole, dataset, features, recipe.identity(dataset.manifest.content_hash, key), concurrent)


def _drivers(recipe: SweepRecipe) -> int:
    """How many processes that drive a trial fit into the session's memory.

    Raises:
        OacirError: not one.
    """
    import ray

    from training.room import room

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    fitting = room(nodes, {"memory": recipe.driver_gib * 2**30})
    if not fitting:
        largest = max((node.get("memory", 0.0) for node in nodes), default=0.0) / 2**30
        raise OacirError(
            f"driver_gib {recipe.driver_gib:g}: no machine of the Ray session has so much memory to reserve"
            f" (largest: {largest:.1f} GiB); lower driver_gib"
        )
    return fitting


def _told(plan: Plan) -> Outcome:
    from training.room import needs

    recipe, scaling = plan.recipe, plan.recipe.train.scaling
    each = ", ".join(f"{amount:g} {kind}" for kind, amount in needs(scaling).items())
    lines = (
        f"{recipe.trials} trials by {recipe.algorithm.kind}, scheduler {recipe.scheduler.kind}, judged by"
        f" {' and '.join(recipe.objectives)} on dev",
        f"{plan.concurrent} at a time, each {scaling.workers} workers of {each}",
        *(
            f"{name}: {dimension.kind} {dimension.model_dump(exclude={'kind'})}"
            for name, dimension in recipe.space.items()
        ),
    )
    figures = {"trials": recipe.trials, "concurrent": plan.concurrent, "workers": scaling.workers}
    return Outcome(f"dry run: would search {recipe.name} on {plan.dataset.url}", None, figures, lines)


def _run(plan: Plan, draft: Draft, context: Context, book: SweepLog) -> list[TrialRecord]:
    """Bring every trial to its end; its records."""
    from tuning.schedulers import compares
    from tuning.search import Proposals, open_trials
    from tuning.trial import Shared

    recipe = plan.recipe
    records = read(draft.url)
    if recipe.retry_failed:
        records = [anew(record) for record in records]
    for record in records:
        if record.ended:  # a driver that was killed may have kept and not told it
            book.ended(record)
    open_already = sum(not r.ended for r in records) or recipe.trials - len(records)
    replay = compares(recipe) and bool(open_already)
    waiting = open_trials(recipe, records, replay=replay)
    proposals = Proposals(recipe, records, waiting)
    if proposals.left:
        tracking = recipe.train.tracking.model_copy(update={"parent": book.spool_id})
        shared = Shared(
            base=recipe.train.model_copy(update={"tracking": tracking}),
            root=storage.absolute(context.root),
            sweep=recipe.name,
            mlflow_uri=tracking_uri(recipe.train.tracking.mlflow_uri),
            objectives=recipe.objectives,
            intervals=recipe.intervals,
            ended={r.number: r for r in records if r.ended},
            origins={r.number: r.origin for r in records if r.origin},
        )
        _tune(plan, draft, proposals, shared, records, book)
        records = read(draft.url)
    open_ = [r.number for r in records if not r.ended]
    if open_ or len(records) < recipe.trials:
        raise OacirError(
            f"{draft.url}: {len(open_) or recipe.trials - len(records)} trials did not end; the same command goes on"
        )
    if LATENCY in recipe.objectives:
        records = _quiet_latency(records, draft, context, recipe)
    return records


def _tune(
    plan: Plan,
    draft: Draft,
    proposals: Any,
    shared: Shared,
    records: Sequence[TrialRecord],
    book: SweepLog,
) -> None:
    """Run Ray Tune over the trials that are left.

    Raises:
        KeyboardInterrupt: the user stopped it.
    """
    from ray import tune as ray_tune

    from tuning.ledger import Ledger
    from tuning.schedulers import scheduler
    from tuning.trial import Trial

    recipe = plan.recipe
    for name in ("ray.tune", "ray.train"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    filesystem, folder = storage.arrow_filesystem(draft.path(RAY_FOLDER))
    done = {r.number: r for r in records}
    with Progress("tune", recipe.trials, "trials", done=sum(r.ended for r in records)) as progress:
        ledger = Ledger(draft.url, done, progress, recipe.objectives[0], book.ended)
        # no CPU: what trains are the workers, which Ray Train places
        needed = ray_tune.PlacementGroupFactory([{"memory": int(recipe.driver_gib * 2**30)}])
        trial = ray_tune.with_resources(ray_tune.with_parameters(Trial, shared=shared), needed)
        mutates = recipe.scheduler.kind == "pbt"  # and takes no searcher
        listed = [{"number": number, "values": values} for number, values in proposals.waiting]
        tuner = ray_tune.Tuner(
            trial,
            param_space={"trial": ray_tune.grid_search(listed)} if mutates else None,
            tune_config=ray_tune.TuneConfig(
                search_alg=None if mutates else proposals,
                scheduler=scheduler(recipe),
                num_samples=1 if mutates else proposals.left,
                max_concurrent_trials=plan.concurrent,
                reuse_actors=True,
            ),
            run_config=ray_tune.RunConfig(
                name=f"{draft.name}-{time.time_ns()}",
                storage_path=folder,
                storage_filesystem=filesystem,
                callbacks=[ledger],
                failure_config=ray_tune.FailureConfig(max_failures=recipe.max_failures),
                verbose=0,
            ),
        )
        with Interrupts():
            tuner.fit()
    storage.remove(draft.path(RAY_FOLDER))


def _quiet_latency(
    records: Sequence[TrialRecord], draft: Draft, context: Context, recipe: SweepRecipe
) -> list[TrialRecord]:
    """Measure all finished trials again, one after another: while trials trained, other ones took their share of the
    machine."""
    from tuning.latency import query_ms

    found = []
    for record in records:
        if record.state == "finished":
            value = query_ms(open_version(record.run), context.root, recipe.train.dataset)
            record = record.model_copy(update={"figures": {**record.figures, LATENCY: value}})
            write(draft.url, record)
        found.append(record)
    return found


def _commit(plan: Plan, draft: Draft, records: Sequence[TrialRecord], book: SweepLog) -> Version:
    import pyarrow as pa

    from tuning.report import page

    recipe = plan.recipe
    figures = summary(records, recipe)
    text = page(recipe, plan.dataset, records, figures)
    trials = pa.Table.from_pylist([_row(record) for record in records], schema=_schema())
    curves = pa.Table.from_pylist(
        [
            {"number": record.number, "step": item.step, "metric": metric, "value": value}
            for record in records
            for item in record.readings
            for metric, value in item.figures.items()
        ],
        schema=pa.schema(
            [("number", pa.int64()), ("step", pa.int64()), ("metric", pa.string()), ("value", pa.float64())]
        ),
    )
    files = []
    for name, table in (("trials", trials), ("curves", curves)):
        storage.write_table(draft.path(f"{name}.parquet"), table)
        files.append(file_entry(draft.url, f"{name}.parquet", len(table)))
    storage.write_bytes(draft.path(PAGE), text.encode())
    files.append(file_entry(draft.url, PAGE))
    rows = trials.select(SWEEP_COLUMNS).to_pylist()
    version = draft.commit(
        content_hash=content_hash({"trials": rows_hash(rows)}),
        files=files,
        parents=plan.parents | {f"trial {r.number}": r.run_hash for r in records if r.run_hash},
        figures=figures,
    )
    storage.remove(draft.path(FOLDER))
    book.finished(figures, text, version.manifest.content_hash)
    return version


def _schema() -> Any:
    import pyarrow as pa

    text = ("state", "values", "run_hash", "dev", "record")
    return pa.schema([("number", pa.int64()), *((name, pa.string()) for name in text)])


def _row(record: TrialRecord) -> dict[str, Any]:
    dev = {
        name: value
        for name, value in record.figures.items()
        if name.rpartition("/")[2] in (AVERAGE, *MEASURES)
    }
    return {
        "number": record.number,
        "state": record.state,
        "values": token(record.values),
        "run_hash": record.run_hash,
        "dev": token(dev),
        "record": token(record.model_dump(mode="json")),
    }


def summary(records: Sequence[TrialRecord], recipe: SweepRecipe) -> dict[str, Any]:
    """The figures of a sweep: counts, the best trial by the first objective, the front of two."""
    from tuning.importance import importances

    best = ranked(records, recipe.objectives[0])[:1]
    states = [record.state for record in records]
    figures: dict[str, Any] = {
        "trials": len(records),
        **{state: states.count(state) for state in ("finished", "stopped", "failed")},
        "objectives": list(recipe.objectives),
        "selected_on": "dev",
        "importance": [one._asdict() for one in importances(records, recipe.space, recipe.objectives[0])],
    }
    if best:
        figures["best"] = {
            "number": best[0].number,
            "values": best[0].values,
            "run": best[0].run,
            **{name: best[0].figures[name] for name in recipe.objectives},
        }
    if len(recipe.objectives) > 1:
        figures["front"] = [record.number for record in front(records, recipe.objectives)]
    return figures


def _outcome(
    version: Version, recipe: SweepRecipe, records: Sequence[TrialRecord], seconds: float, book: SweepLog
) -> Outcome:
    figures = version.manifest.figures
    best = figures.get("best")
    told = [f"trial {r.number} failed: {r.reason}" for r in records if r.state == "failed"]
    lines = [*_table(records, recipe), *told]
    if "front" in figures:
        lines.append(
            f"no other trial beats: {', '.join(map(str, figures['front']))} (by {' and '.join(recipe.objectives)})"
        )
    if best is not None:
        lines.append(
            f"chosen on dev; on test: oacir evaluate --model {best['run']} --dataset {recipe.train.dataset}"
        )
    lines += [f"page: {version.path(PAGE)}", *book.line()]
    counts = ", ".join(f"{figures[s]} {s}" for s in ("finished", "stopped", "failed") if figures[s])
    said = ""
    if best is not None:
        objective = recipe.objectives[0]
        said = f", best {objective} {best[objective]:.2f} (trial {best['number']})"
    return Outcome(
        f"{figures['trials']} trials ({counts}) in {duration(seconds)}{said}: {version.url}",
        version.url,
        figures,
        tuple(lines),
    )


def _table(records: Sequence[TrialRecord], recipe: SweepRecipe) -> list[str]:
    """The best trials as lines of text."""
    shown = ranked(records, recipe.objectives[0])[:SHOWN]
    if not shown:
        return []
    metrics = list(dict.fromkeys((*recipe.objectives, *MEASURES)))
    rows = [["trial", *recipe.space, *metrics]]
    rows += [
        [
            str(r.number),
            *(_short(r.values[name]) for name in recipe.space),
            *(f"{r.figures[m]:.2f}" if m in r.figures else "" for m in metrics),
        ]
        for r in shown
    ]
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    finished = sum(r.state == "finished" for r in records)
    more = [f"… and {finished - SHOWN} more, see the page"] if finished > SHOWN else []
    return [*lines, *more]


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
