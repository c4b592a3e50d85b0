"""How long a query takes: measured on this machine, so comparable only within one sweep on like machines."""

from __future__ import annotations

import statistics
import time

import numpy as np

from infra.base.versions import Version

WARM_UP, REPEATS = 5, 50
TOP_K = 50


def query_ms(run: Version, root: str, dataset: str) -> float:
    """Median milliseconds of one query at a time: text and region encoded with the reference's stored tokens, every dev
    image of the largest domain scored and ranked. The frozen image tower, equal for all trials, is not part of it.

    Args:
        run: finished.
        root: where dataset and features lie.
        dataset: that it was trained on.
    """
    import torch

    from pipelines.retrieval.engine import Encoder, score, top
    from pipelines.retrieval.inputs import StoreTokens, find_dataset, find_model, load_tasks, require_features
    from training.stores import joined

    benchmark, place = find_dataset(root, dataset), find_model(root, run.url)
    model, processor = place.load(with_tower=False)
    stores = require_features(root, None, place, benchmark, processor)
    encoder = Encoder(model, processor, StoreTokens(joined(stores)))
    task = max(load_tasks(benchmark, "dev"), key=lambda task: len(task.gallery))
    targets = torch.cat(list(encoder.targets(task.gallery.image_ids)))
    prepared = encoder.prepare(task.queries)
    taken = []
    for turn in range(WARM_UP + REPEATS):
        row = np.array([turn % len(task.queries)])
        began = time.perf_counter()
        vector, _ = next(encoder.queries(prepared, row, row))
        top(score(encoder.model.score, vector, targets), task.gallery, [None], TOP_K)
        taken.append(1000 * (time.perf_counter() - began))
    return round(statistics.median(taken[WARM_UP:]), 3)
