"""The exact search over a gallery that Ray workers share: each encodes and searches a part, the driver merges.

Nothing depends on the number of parts (`search`). A lost worker's part is done again by another one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from pipelines.retrieval.search import Best, Ints, merge, search

if TYPE_CHECKING:
    from torch import Tensor

LOST_WORKERS = 3
"""How often a part is begun anew."""


def search_on_workers(
    model_url: str,
    store_urls: Sequence[str],
    image_ids: Sequence[str],
    queries: Tensor,
    k: int,
    removed: Ints,
    workers: int,
    batch_size: int = 256,
) -> Best:
    """The K best images of each query.

    Args:
        model_url: a run or a directory of an exported model; its score is the best of a target's set of vectors.
        store_urls: the feature stores that the model needs for these images (`inputs.require_features`).
        image_ids: the gallery; columns are places in it.
        queries: vectors, float32 [Q, d].
        k: how many.
        removed: the column taken out of each query's ranking, -1 for none, [Q].
        workers: processes of one CPU each, of the Ray session or a local one.
        batch_size: images per forward.
    """
    import ray

    from infra.base.ray_session import connect

    connect(workers)
    task = ray.remote(search_part).options(num_cpus=1, max_retries=LOST_WORKERS)
    shared, gone = ray.put(queries.cpu().numpy()), ray.put(removed)
    ask = partial(
        task.remote, model_url, list(store_urls), queries=shared, k=k, removed=gone, batch_size=batch_size
    )
    parts = [
        ask(list(image_ids[start:end]), first=start)
        for start, end in shares(len(image_ids), workers, batch_size)
    ]
    return merge(ray.get(parts))


def shares(count: int, workers: int, batch_size: int) -> Iterator[tuple[int, int]]:
    """Start and end of each worker's part of a gallery, in whole batches; empty parts are left out.

    A vector may differ in its last bits with the batch it is encoded in, so the batches are those of one worker.
    """
    batches = -(-count // batch_size)
    ends = [min(count, batches * n // workers * batch_size) for n in range(workers + 1)]
    for start, end in pairwise(ends):
        if start < end:
            yield start, end


def search_part(
    model_url: str,
    store_urls: list[str],
    image_ids: list[str],
    queries: Ints,
    k: int,
    removed: Ints,
    first: int,
    batch_size: int,
) -> Best:
    """What a worker does: see `search_on_workers`; `first` is the column of its first image."""
    import torch

    from pipelines.retrieval.engine import Encoder
    from pipelines.retrieval.inputs import StoreTokens
    from training.export import open_model
    from training.features import FeatureStore
    from training.stores import joined

    model, processor = open_model(model_url, with_tower=False)
    source = StoreTokens(joined([FeatureStore.open(url) for url in store_urls]))
    encoder = Encoder(model, processor, source, batch_size)
    vectors = torch.tensor(queries, device=encoder.device)
    return search(vectors, encoder.targets(image_ids), k, removed, first)
