"""Batches made ahead: what they hold, their order, and what becomes of the thread."""

from __future__ import annotations

import dataclasses
import threading
from typing import cast

import numpy as np
import pytest
import torch

from training.batches import Batch, QuerySet, Rows, Sampler
from training.features import FeatureStore
from training.feed import AHEAD, Feed, make_batch

CPU = torch.device("cpu")


class Store:
    """Tokens that say their row, and a count of the rows asked for."""

    def __init__(self, broken: int = -1) -> None:
        self.asked: list[list[int]] = []
        self.broken = broken

    def gather(self, rows: Rows, device: torch.device) -> torch.Tensor:
        if self.broken in rows:
            raise OSError("the disk is gone")
        self.asked.append(rows.tolist())
        return torch.from_numpy(rows).bfloat16()[:, None, None].expand(-1, 3, 4).to(device)


def store(broken: int = -1) -> FeatureStore:
    return cast(FeatureStore, Store(broken))


def batch_of(queries: QuerySet, tokens: FeatureStore, rows: list[int], start: int, end: int) -> Batch:
    return make_batch(queries, tokens, np.array(rows), start, end, CPU)


def many(count: int) -> QuerySet:
    """Query n leads from image n to image n + 1."""
    rows = np.arange(count)
    return QuerySet(
        rows,
        rows + 1,
        np.full((count, 2), 3, np.int32),
        np.full(count, 2, np.int32),
        np.ones((count, 3), bool),
    )


def test_a_batch_holds_tokens_texts_and_regions_of_its_rows(queries: QuerySet) -> None:
    batch = batch_of(queries, store(), [1, 2, 0], 1, 3)
    assert batch.reference_tokens.dtype == torch.float32
    assert batch.reference_tokens[:, 0, 0].tolist() == [4.0, 0.0]
    assert batch.target_tokens[:, 0, 0].tolist() == [5.0]  # both queries have this target
    assert batch.target_index.tolist() == [0, 0]
    assert batch.input_ids.tolist() == [[2, 3, 0], [2, 7, 3]]
    assert batch.attention_mask.tolist() == [[1, 1, 0], [1, 1, 1]]
    assert batch.patch_mask.tolist() == [[0, 0, 0], [0, 1, 0]]
    assert batch.total == 3


def test_whether_the_modulator_runs_is_decided_on_the_global_batch(queries: QuerySet) -> None:
    """The third row alone has no region; beside the first it is modulated (with zero bias), whoever holds it."""
    assert batch_of(queries, store(), [0, 2], 1, 2).modulate
    assert not batch_of(queries, store(), [2], 0, 1).modulate


def test_an_image_that_several_queries_show_is_read_once() -> None:
    tokens = Store()
    batch = batch_of(many(6), cast(FeatureStore, tokens), [3, 0, 1, 2], 0, 4)
    assert tokens.asked == [[0, 1, 2, 3, 4]]  # 1, 2 and 3 are references and targets
    assert batch.reference_tokens[:, 0, 0].tolist() == [3.0, 0.0, 1.0, 2.0]
    assert batch.target_tokens[batch.target_index][:, 0, 0].tolist() == [4.0, 1.0, 2.0, 3.0]


@pytest.mark.parametrize("start", [0, 3, 7])
def test_the_feed_goes_on_in_the_middle_of_an_epoch_with_the_samplers_order(start: int) -> None:
    queries, sampler = many(10), Sampler(np.zeros(10, int), 4, seed=1)
    expected = [rows for epoch in range(4) for rows in sampler.batches(epoch)]
    with Feed(store(), queries, sampler, 1, 2, CPU, start, 11) as feed:
        found = list(feed)
    assert [fed.epoch for fed in found] == [step // 3 for step in range(start, 11)]
    for fed, rows in zip(found, expected[start:11], strict=True):
        assert fed.rows.tolist() == rows.tolist()
        own = rows[-(len(rows) // 2) :]
        assert fed.batch.reference_tokens[:, 0, 0].tolist() == own.tolist()
    assert feed.waited_s > 0


def test_it_works_ahead_but_not_without_bound() -> None:
    tokens = Store()
    sampler = Sampler(np.zeros(40, int), 4, seed=0)
    feed = Feed(cast(FeatureStore, tokens), many(40), sampler, 0, 1, CPU, 0, 10)
    with feed:
        reader = iter(feed)
        next(reader)
        while not feed._ready.full():
            pass
        assert len(tokens.asked) in (
            1 + AHEAD,
            2 + AHEAD,
        )  # read, waiting, and perhaps one in the thread's hands
    assert not feed._thread.is_alive()
    assert len(tokens.asked) <= 2 + AHEAD


def test_what_breaks_in_the_thread_stops_the_reader() -> None:
    before = threading.active_count()
    sampler = Sampler(np.zeros(12, int), 4, seed=0)
    queries = many(12)
    apart = dataclasses.replace(queries, target_rows=queries.target_rows + 100)
    feed = Feed(store(broken=int(sampler.batches(0)[1][0])), apart, sampler, 0, 1, CPU, 0, 3)
    with feed:
        reader = iter(feed)
        next(reader)
        with pytest.raises(OSError, match="the disk is gone"):
            next(reader)
    assert threading.active_count() == before
