"""What the type of stored tokens does to scores and metrics: float32 against bfloat16, int8, and a tower in bfloat16.

python -m benchmarks.store_types --root oacir-data --model adafocal

Takes a finished run (of `oacir demo`, say), embeds its benchmark once for each type into a temporary root, and ranks
the test galleries with the same model. Everything is compared with tokens computed and stored in float32.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import write_result
from infra.base.command import Context
from pipelines.embed import embed
from pipelines.retrieval.engine import Encoder, encode_queries, rank, score
from pipelines.retrieval.inputs import DomainTask, StoreTokens, find_dataset, find_model, load_tasks
from training.config import TrainRecipe
from training.features import FeatureStore
from training.metrics import instance_recall_at, recall_at

VARIANTS: dict[str, dict[str, str]] = {
    "float32": {"dtype": "float32", "precision": "float32"},
    "bfloat16": {"dtype": "bfloat16", "precision": "float32"},
    "int8": {"dtype": "int8", "precision": "float32"},
    "bfloat16, tower in bfloat16": {"dtype": "bfloat16", "precision": "bfloat16"},
}
MEASURES = ("R_ID@1", "R@1", "R@5")


class Ranked(NamedTuple):
    """A domain's scores [Q, T], and the ranks of target and instance [Q]."""

    scores: NDArray[np.float32]
    target_rank: NDArray[np.int64]
    instance_rank: NDArray[np.int64]


def ranked(encoder: Encoder, task: DomainTask) -> Ranked:
    """All queries of a domain against its gallery."""
    import torch

    targets = torch.cat(list(encoder.targets(task.gallery.image_ids)))
    queries, _ = encode_queries(encoder, encoder.prepare(task.queries))
    scores = score(encoder.model.score, queries, targets)
    found = rank(scores, task.queries, slice(0, len(task.queries)), task.gallery, top_k=1)
    return Ranked(scores, found.target_rank, found.instance_rank)


def metrics(domains: dict[str, Ranked]) -> dict[str, float]:
    """Percent, mean over the domains."""
    rows = []
    for found in domains.values():
        recall = recall_at(found.target_rank, (1, 5))
        rows.append([instance_recall_at(found.instance_rank, (1,))[1], recall[1], recall[5]])
    return dict(zip(MEASURES, np.mean(rows, axis=0).round(3).tolist(), strict=True))


def compared(own: dict[str, Ranked], exact: dict[str, Ranked]) -> dict[str, Any]:
    """How far scores and ranks are from the exact ones."""
    gaps = np.concatenate([np.abs(own[d].scores - exact[d].scores).ravel() for d in exact])
    moved = np.concatenate([own[d].target_rank != exact[d].target_rank for d in exact])
    first = np.concatenate([(own[d].target_rank == 1) != (exact[d].target_rank == 1) for d in exact])
    return {
        "largest_score_difference": float(f"{gaps.max():.3g}"),
        "mean_score_difference": float(f"{gaps.mean():.3g}"),
        "queries": len(moved),
        "queries_whose_target_moved": int(moved.sum()),
        "queries_whose_first_changed": int(first.sum()),
    }


def main() -> None:
    """Measure and write results/store_types.json."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--root", default="oacir-data")
    parser.add_argument("--model", default="adafocal")
    options = parser.parse_args()
    place = find_model(options.root, options.model)
    if place.run is None:
        parser.error(f"--model {options.model}: needs a run, whose recipe says how to embed")
    recipe = TrainRecipe.model_validate(place.run.manifest.recipe)
    dataset = find_dataset(options.root, recipe.dataset)
    model, processor = place.load(with_tower=False)
    tasks = load_tasks(dataset, "test")
    found: dict[str, dict[str, Ranked]] = {}
    rows: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as work:
        for name, settings in VARIANTS.items():
            section = recipe.embed.model_copy(update=settings)
            own = recipe.model_copy(update={"embed": section, "dataset": dataset.url})
            store = FeatureStore.open(str(embed(own, Context(root=work)).location))
            encoder = Encoder(model, processor, StoreTokens(store))
            found[name] = {task.domain: ranked(encoder, task) for task in tasks}
            rows[name] = {"store_bytes": store.size_bytes, "metrics_percent": metrics(found[name])}
            rows[name] |= compared(found[name], found["float32"])
            print(name, rows[name])
    whole = np.concatenate([r.scores.ravel() for r in found["float32"].values()])
    result = {
        "command": " ".join(["python -m benchmarks.store_types", *sys.argv[1:]]),
        "preset": recipe.model.preset,
        "tokens": store.shape,
        "score_deviation": float(f"{whole.std():.3g}"),
        "galleries": {task.domain: [len(task.queries), len(task.gallery)] for task in tasks},
        "types": rows,
    }
    print(f"written to {write_result('store_types', result)}")


if __name__ == "__main__":
    main()
