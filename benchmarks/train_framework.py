"""Ray Train + DeepSpeed against the bare loop: the same store, batches, task and optimizer, with dropout.

A part of `benchmarks.train --framework`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch

from benchmarks.train import SCALED
from infra.base.command import Context
from infra.base.config import load_recipe
from infra.base.versions import open_version
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.embed import embed
from training.batches import Sampler
from training.config import TrainRecipe
from training.data import batch_groups, image_sizes, load_queries, read_quadruples, training_texts
from training.export import build_model, build_processor
from training.features import FeatureStore
from training.feed import Feed
from training.optim import build_optimizer, set_rates
from training.task import ContrastiveTask
from training.trainer import train

STEPS, SETTLED = 40, 10
"""Steps of the bare loop, and those at its start that are not counted."""
TRAINED, SETTLED_CHECKPOINTS = 100, 70
"""The same of the training: beyond the checkpoints of its start, which lie as close as they can be written
(`checkpoints.FREE_S`)."""
WORLD = {"source.world.instances_per_domain": "12"}
ONE_BLOCK = {"vision_config.num_hidden_layers": 1}
"""Of the tower: tokens of the right size are all that these loops read of it."""


def recipe_of(options: argparse.Namespace, dataset: str, workers: int) -> TrainRecipe:
    """The scaled model (or the preset's) for as many steps as are measured."""
    scaled = options.preset == "scaled"
    return TrainRecipe.model_validate(
        {
            "name": f"workers-{workers}",
            "dataset": dataset,
            "model": {
                "preset": "vit_g" if scaled else options.preset,
                "overrides": ONE_BLOCK | (SCALED if scaled else {}),
            },
            "training": {
                "epochs": 1000, "steps": TRAINED, "batch_size": options.batch, "precision": options.precision,
                "dev_every_epochs": None,
            },
            "scaling": {
                "workers": workers, "threads_per_worker": max(1, options.threads // workers),
                "use_gpu": options.device == "cuda",
            },
        }
    )  # fmt: skip


def bare(recipe: TrainRecipe, features: str, options: argparse.Namespace) -> float:
    """Median seconds of a step in this process: feed, task, backward, AdamW."""
    dataset, store = open_version(recipe.dataset), FeatureStore.open(features)
    quadruples = read_quadruples(dataset, "train")
    model = build_model(recipe.model, with_tower=False).to(options.device).train()
    processor = build_processor(recipe.model, model.config, lambda: training_texts(quadruples, "none"))
    queries = load_queries(quadruples, image_sizes(dataset), store, processor)
    sampler = Sampler(batch_groups(quadruples, False), recipe.training.batch_size, recipe.training.seed)
    task = ContrastiveTask(model, getattr(torch, recipe.training.precision))
    optimizer = build_optimizer(model.trainable_parameters(), recipe.training)
    seconds: list[float] = []
    with Feed(store, queries, sampler, 0, 1, torch.device(options.device), 0, STEPS) as feed:
        for step, fed in enumerate(feed):
            began = time.perf_counter()
            set_rates(optimizer.param_groups, step, STEPS, recipe.training)
            optimizer.zero_grad()
            task(fed.batch).objective.backward()
            optimizer.step()
            if options.device == "cuda":
                torch.cuda.synchronize()
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[SETTLED:])


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The bare loop before and after Ray Train with one worker; what a step costs in each."""
    with tempfile.TemporaryDirectory(prefix="oacir-train-") as root:
        context = Context(root=root)
        built = build(load_recipe(BuildRecipe, "world.yaml", list(WORLD.items())), context)
        recipe = recipe_of(options, str(built.location), 1)
        features = str(embed(recipe, context).location)
        before = bare(recipe, features, options)
        outcome = train(recipe, context)
        after = bare(recipe, features, options)
        history = open_version(str(outcome.location)).table("history")
        rows = history.slice(SETTLED_CHECKPOINTS).to_pylist()
    ours = statistics.median(row["seconds"] for row in rows)
    waited = sum(row["data_seconds"] for row in rows) / sum(row["seconds"] for row in rows)
    base = (before + after) / 2
    parts = outcome.figures["ms_per_step"]
    result = {
        "batch": options.batch,
        "steps": {"bare": STEPS - SETTLED, "trained": TRAINED - SETTLED_CHECKPOINTS},
        "bare_seconds_per_step": [round(before, 4), round(after, 4)],
        "ray_train_deepspeed_seconds_per_step": round(ours, 4),
        "overhead": round(ours / base - 1, 4),
        "data_wait_share": round(waited, 4),
        "ms_per_step": parts,
    }
    print(
        f"Ray Train + DeepSpeed (1 worker, ZeRO-{recipe.scaling.zero_stage}): {ours:.3f} s a step, the bare loop"
        f" {base:.3f} s: {100 * result['overhead']:+.1f} %; waits for data {100 * waited:.1f} % of the time"
    )
    return result
