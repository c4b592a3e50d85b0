"""The order of training and what a batch holds."""

from __future__ import annotations

import itertools

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.batches import QuerySet, Sampler
from training.data import batch_groups
from training.distributed import share


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


@pytest.mark.parametrize("steps", [0, 1, 7, 8, 9, 20])
def test_it_knows_how_many_rows_some_steps_see(steps: int) -> None:
    sampler = Sampler(np.repeat([0, 1, 2], [40, 17, 3]), batch_size=8, seed=3)
    batches = [batch for epoch in range(3) for batch in sampler.batches(epoch)]
    assert sampler.rows_seen(steps) == sum(len(batch) for batch in batches[:steps])


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


def runs_of(order: list[int]) -> list[int]:
    """Lengths of the runs of equal neighbours."""
    return [len(list(run)) for _, run in itertools.groupby(order)]


def test_queries_of_an_instance_keep_together_in_runs_that_change_with_the_epoch() -> None:
    instances = np.repeat(np.arange(12), 7)
    sampler = Sampler(np.zeros(84, int), 21, 0, instances, together=3)
    orders = [np.concatenate(sampler.batches(epoch)) for epoch in (0, 1)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(84))
    assert orders[0].tolist() != orders[1].tolist()
    # seven queries of an instance are dealt as 3 + 3 + 1; neighbours of one instance make longer runs now and then
    (whole,) = Sampler(np.zeros(84, int), 84, 0, instances, together=3).batches(0)
    lengths = runs_of(instances[whole].tolist())
    assert sum(lengths) / len(lengths) > 2
    loose = runs_of(instances[Sampler(np.zeros(84, int), 84, 0, instances).batches(0)[0]].tolist())
    assert sum(loose) / len(loose) < 1.5
    # which of them are together is drawn anew
    first = [frozenset(w.tolist()) for w in np.split(whole, np.cumsum(lengths)[:-1])]
    (again,) = Sampler(np.zeros(84, int), 84, 1, instances, together=3).batches(0)
    second = [
        frozenset(w.tolist()) for w in np.split(again, np.cumsum(runs_of(instances[again].tolist()))[:-1])
    ]
    assert set(first) != set(second)


def test_keeping_instances_together_changes_nothing_where_each_has_one_query() -> None:
    groups = np.zeros(30, int)
    alone = Sampler(groups, 8, 0, np.arange(30), together=4)
    assert all(len(set(runs_of(batch.tolist()))) == 1 for batch in alone.batches(0))
    assert sorted(np.concatenate(alone.batches(2)).tolist()) == list(range(30))


def test_texts_are_as_long_as_the_longest_of_the_batch(queries: QuerySet) -> None:
    assert queries.texts(np.array([1]))[0].shape == (1, 5)
    assert queries.texts(np.array([2]))[0].shape == (1, 2)
    assert queries.texts(np.array([2]))[0].dtype == torch.int64


def test_keeping_together_what_is_not_said_to_belong_together_is_refused() -> None:
    with pytest.raises(ValueError, match="which instance each row shows has to be given"):
        Sampler(np.zeros(4, int), 2, 0, together=2).batches(0)
