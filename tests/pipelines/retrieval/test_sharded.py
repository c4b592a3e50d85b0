"""A gallery that Ray workers share gives the answers of one process, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infra.base import versions
from infra.base.command import Context
from pipelines.retrieval.engine import Encoder, encode_queries
from pipelines.retrieval.inputs import StoreTokens, find_model, load_tasks, require_features
from pipelines.retrieval.search import search
from pipelines.retrieval.sharded import search_on_workers, shares
from training.stores import joined


def test_shares_are_whole_batches_and_cover_the_gallery_once() -> None:
    assert list(shares(7, 3, 2)) == [(0, 2), (2, 4), (4, 7)]
    assert list(shares(2, 5, 1)) == [(0, 1), (1, 2)]
    assert list(shares(9, 4, 20)) == [(0, 9)]
    for count in range(1, 12):
        for workers in range(1, 6):
            for batch in (1, 2, 5):
                parts = list(shares(count, workers, batch))
                assert [n for a, b in parts for n in range(a, b)] == list(range(count))
                assert all(a % batch == 0 for a, _ in parts)


@pytest.mark.ray
def test_workers_change_no_bit(context: Context, ray_session: None) -> None:
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    task = load_tasks(dataset, "test")[0]
    place = find_model(context.root, "adafocal")
    model, processor = place.load(with_tower=False)
    stores = require_features(context.root, None, place, dataset, processor)
    encoder = Encoder(model, processor, StoreTokens(joined(stores)), 5)
    vectors, _ = encode_queries(encoder, encoder.prepare(task.queries))
    removed = np.array([task.gallery.image_ids.index(i) for i in task.queries.reference_ids])
    whole = search(vectors, torch.cat(list(encoder.targets(task.gallery.image_ids))), 6, removed)
    assert place.run is not None
    for workers in (1, 3):
        urls = [store.version.url for store in stores]
        found = search_on_workers(
            place.run.url, urls, task.gallery.image_ids, vectors, 6, removed, workers, batch_size=5
        )
        assert np.array_equal(found.columns, whole.columns)
        assert np.array_equal(found.scores.view(np.int32), whole.scores.view(np.int32))
    assert not (whole.columns == removed[:, None]).any()
