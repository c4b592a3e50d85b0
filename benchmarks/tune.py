"""What a sweep costs beside its trainings: trial start, Ray Tune, MLflow, evaluation on dev.

python -m benchmarks.tune [--trials 20] [--bare 5] [--steps 40] [--workers 1] [--concurrent 1] [--goal-s 180]

In one Ray session, on one benchmark and feature store of the procedural world: trainings by `train`, one after another
and without MLflow (the bare trial), then as many trials in a sweep with MLflow (sqlite), then a sweep that finds all
these runs and only evaluates them. Half of the bare trainings come before the sweep and half after it, so that a
machine that grows slower counts for both.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.machine import write_result
from infra.base.command import Context
from infra.base.config import load_recipe
from infra.base.versions import open_version
from training.config import TrainRecipe
from tuning.config import SweepRecipe

GOAL = 0.15
"""Share of a trial that lasts as long as `--goal-s` which a sweep may add to it."""
FIRST_BARE_SEED = 1000


def main() -> None:
    """Measure and write results/tune.json."""
    options = _options()
    with tempfile.TemporaryDirectory() as folder:
        data = measured(Path(folder), options)
    command = (
        f"python -m benchmarks.tune --trials {options.trials} --bare {options.bare} --steps {options.steps}"
        f" --workers {options.workers} --concurrent {options.concurrent}"
    )
    path = write_result("tune", {"command": command, **data})
    for name, value in data.items():
        print(f"{name}: {value}")
    print(f"written to {path}")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--bare", type=int, default=6)
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--concurrent", type=int, default=1)
    parser.add_argument("--goal-s", type=float, default=180.0)
    return parser.parse_args()


def measured(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """All figures."""
    from infra.base.ray_session import connect
    from pipelines.build import build
    from pipelines.config import BuildRecipe
    from pipelines.embed import embed
    from tuning.sweep import tune

    context = Context(root=str(folder / "root"))
    connect()
    small = [("source.world.instances_per_domain", "24"), ("source.world.scenes_per_instance", "6")]
    dataset = build(load_recipe(BuildRecipe, "world.yaml", small), context).location
    fields = [
        ("dataset", str(dataset)),
        ("name", "bench"),
        ("training.steps", str(options.steps)),
        ("scaling.workers", str(options.workers)),
    ]
    train = load_recipe(TrainRecipe, "tiny.yaml", fields)
    embed(train, context)
    half = options.bare // 2
    bare = [_bare(train, context, FIRST_BARE_SEED + n) for n in range(half)]
    began = time.perf_counter()
    swept = tune(_sweep(train, folder, options, intervals=False), context)
    sweep_s = time.perf_counter() - began
    bare += [_bare(train, context, FIRST_BARE_SEED + n) for n in range(half, options.bare)]
    began = time.perf_counter()
    found = tune(_sweep(train, folder, options, intervals=True), context)
    found_s = time.perf_counter() - began
    assert swept.figures["finished"] == found.figures["finished"] == options.trials
    each, one = sweep_s * options.concurrent / options.trials, statistics.median(bare)
    steps = open_version(str(swept.figures["best"]["run"])).table("history", ["seconds"])
    return {
        "trials": options.trials,
        "bare_trial_s": [round(s, 2) for s in bare],
        "bare_trial_median_s": round(one, 2),
        "of_which_in_steps_s": round(sum(steps["seconds"].to_pylist()), 2),
        "sweep_s": round(sweep_s, 2),
        "sweep_s_per_trial": round(each, 2),
        "overhead_s_per_trial": round(each - one, 2),
        "share_of_a_bare_trial": round((each - one) / one, 3),
        f"share_of_a_trial_of_{options.goal_s:g}_s": round((each - one) / options.goal_s, 4),
        "goal": GOAL,
        "within_goal": (each - one) / options.goal_s < GOAL,
        "found_and_evaluated_s_per_trial": round(found_s * options.concurrent / options.trials, 2),
    }


def _bare(train: TrainRecipe, context: Context, seed: int) -> float:
    from training.trainer import train as run

    recipe = train.model_copy(update={"training": train.training.model_copy(update={"seed": seed})})
    began = time.perf_counter()
    run(recipe, context)
    return time.perf_counter() - began


def _sweep(train: TrainRecipe, folder: Path, options: argparse.Namespace, *, intervals: bool) -> SweepRecipe:
    tracking = train.tracking.model_copy(update={"mlflow_uri": f"sqlite:///{folder}/mlflow.db"})
    return SweepRecipe.model_validate(
        {
            "name": "evaluated" if intervals else "bench",
            "train": train.model_copy(update={"tracking": tracking}).model_dump(),
            "space": {"training.seed": {"kind": "grid", "values": list(range(options.trials))}},
            "algorithm": {"kind": "grid"},
            "concurrent": options.concurrent,
            "intervals": intervals,
        }
    )


if __name__ == "__main__":
    main()
