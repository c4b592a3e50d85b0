"""The order of training and what a batch holds."""

from __future__ import annotations

from types import SimpleNamespace
from typing import cast

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.data import QuerySet, Sampler, batch_groups
from training.distributed import share
from training.features import FeatureStore


@given(
    groups=st.lists(st.integers(0, 3), min_size=1, max_size=300),
    batch_size=st.integers(2, 64),
    world_size=st.integers(1, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_is_seen_exactly_once_per_epoch_in_batches_of_one_group(
    groups: list[int], batch_size: int, world_size: int, epoch: int
) -> None:
    sampler = Sampler(np.array(groups), batch_size, seed=3)
    seen: list[int] = []
    sizes: dict[int, set[int]] = {}
    batches = sampler.batches(epoch)
    for batch in batches:
        (group,) = {groups[row] for row in batch}
        sizes.setdefault(group, set()).add(len(batch))
        for rank in range(world_size):
            begin, stop = share(len(batch), rank, world_size)
            seen += batch[begin:stop].tolist()
    assert sorted(seen) == list(range(len(groups)))
    assert all(max(s) <= batch_size and max(s) - min(s) <= 1 for s in sizes.values())
    assert len(batches) == sampler.steps_per_epoch
    assert len(batches) == sum(int(np.ceil(groups.count(g) / batch_size)) for g in set(groups))


def test_epochs_and_seeds_have_orders_of_their_own_and_an_epoch_has_only_one() -> None:
    def order(seed: int, epoch: int) -> tuple[int, ...]:
        return tuple(np.concatenate(Sampler(np.zeros(50, int), 8, seed).batches(epoch)).tolist())

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    assert order(1, 1) == orders[3]


def test_batches_of_different_groups_are_mixed_over_the_epoch() -> None:
    groups = np.repeat([0, 1], 80)
    first = [int(groups[batch[0]]) for batch in Sampler(groups, 8, seed=0).batches(0)]
    assert sorted(first) == [0] * 10 + [1] * 10
    assert first not in (sorted(first), sorted(first, reverse=True))


def test_groups_are_the_domains_on_request() -> None:
    table = pa.table({"domain": ["car", "shoe", "car"]})
    assert batch_groups(table, one_domain_per_batch=True).tolist() == [0, 1, 0]
    assert batch_groups(table, one_domain_per_batch=False).tolist() == [0, 0, 0]


@pytest.fixture
def queries() -> QuerySet:
    return QuerySet(
        reference_rows=np.array([0, 2, 4]),
        target_rows=np.array([5, 3, 5]),
        input_ids=np.array([[2, 7, 3, 0, 0], [2, 7, 8, 9, 3], [2, 3, 0, 0, 0]], np.int32),
        text_lengths=np.array([3, 5, 2], np.int32),
        patch_masks=np.array([[0, 1, 0], [0, 1, 1], [0, 0, 0]], bool),
    )


def test_a_batch_holds_tokens_texts_and_regions_of_its_rows(queries: QuerySet) -> None:
    def tokens(rows: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(rows).float()[:, None, None].expand(-1, 3, 4)

    store = cast(FeatureStore, SimpleNamespace(tokens=tokens))
    batch = queries.batch(store, np.array([1, 2, 0]), 1, 3)
    assert batch.reference_tokens[:, 0, 0].tolist() == [4.0, 0.0]
    assert batch.target_tokens[:, 0, 0].tolist() == [5.0]  # both queries have this target
    assert batch.target_index.tolist() == [0, 0]
    assert batch.input_ids.tolist() == [[2, 3, 0], [2, 7, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.patch_mask.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert batch.total == 3


def test_whether_the_modulator_runs_is_decided_on_the_global_batch(queries: QuerySet) -> None:
    """The third row alone has no region; beside the first it is modulated (with zero bias), whoever holds it."""
    store = cast(FeatureStore, SimpleNamespace(tokens=lambda rows: torch.zeros(len(rows), 3, 4)))
    assert queries.batch(store, np.array([0, 2]), 1, 2).modulate
    assert not queries.batch(store, np.array([2]), 0, 1).modulate


def test_texts_are_as_long_as_the_longest_of_the_batch(queries: QuerySet) -> None:
    assert queries.texts(np.array([1]))[0].shape == (1, 5)
    assert queries.texts(np.array([2]))[0].shape == (1, 2)
    assert queries.texts(np.array([2]))[0].dtype == torch.int64
