"""The order of training and what a batch holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data import QuerySet, Sampler
from training.distributed import share
from training.features import FeatureStore


@given(
    rows=st.integers(1, 400),
    batch_size=st.integers(2, 64),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_is_seen_exactly_once_per_epoch(
    rows: int, batch_size: int, world_size: int, epoch: int
) -> None:
    sampler = Sampler(rows, batch_size, seed=3)
    seen, sizes = [], set()
    order = sampler.order(epoch)
    for step in range(epoch * sampler.steps_per_epoch, (epoch + 1) * sampler.steps_per_epoch):
        start, end = sampler.bounds(step)
        batch = order[start:end]
        sizes.add(len(batch))
        for rank in range(world_size):
            begin, stop = share(len(batch), rank, world_size)
            seen += batch[begin:stop].tolist()
    assert sorted(seen) == list(range(rows))
    assert max(sizes) <= batch_size
    assert max(sizes) - min(sizes) <= 1
    assert sampler.steps_per_epoch == int(np.ceil(rows / batch_size))


def test_epochs_and_seeds_have_orders_of_their_own_and_a_step_has_only_one() -> None:
    orders = [tuple(Sampler(50, 8, seed).order(epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert tuple(Sampler(50, 8, 1).order(1)) == orders[3]


@pytest.fixture
def queries() -> QuerySet:
    return QuerySet(
        reference_rows=np.array([0, 2, 4]),
        target_rows=np.array([1, 3, 5]),
        input_ids=np.array([[2, 7, 3, 0, 0], [2, 7, 8, 9, 3], [2, 3, 0, 0, 0]], np.int32),
        text_lengths=np.array([3, 5, 2], np.int32),
        patch_masks=np.array([[0, 1, 0], [0, 1, 1], [0, 0, 0]], bool),
    )


def test_a_batch_holds_tokens_texts_and_regions_of_its_rows(queries: QuerySet) -> None:
    def tokens(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).float()[:, None, None].expand(-1, 3, 4)

    store = cast(FeatureStore, SimpleNamespace(tokens=tokens))
    batch = queries.batch(store, np.array([2, 0]), total=5)
    assert batch.reference_tokens[:, 0, 0].tolist() == [4.0, 0.0]
    assert batch.target_tokens[:, 0, 0].tolist() == [5.0, 1.0]
    assert batch.input_ids.tolist() == [[2, 3, 0], [2, 7, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.patch_mask.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert batch.total == 5


def test_texts_are_as_long_as_the_longest_of_the_batch(queries: QuerySet) -> None:
    assert queries.texts(np.array([1]))[0].shape == (1, 5)
    assert queries.texts(np.array([2]))[0].shape == (1, 2)
    assert queries.texts(np.array([2]))[0].dtype == torch.int64
