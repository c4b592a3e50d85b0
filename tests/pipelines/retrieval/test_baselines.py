"""Blind baselines: who lends what, and the means against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from infra.base.command import Context
from pipelines.retrieval.baselines import borrow, lenders, reference_only, text_only
from pipelines.retrieval.engine import Encoder, QuerySet, encode_queries, score
from pipelines.retrieval.inputs import StoreTokens, find_dataset, find_model, load_tasks, require_features
from training.scoring import max_over_set


def names(instances: list[str]) -> QuerySet:
    count = len(instances)
    return QuerySet(
        [f"q{i}" for i in range(count)], instances, ["r"] * count, ["t"] * count, ["x"] * count, [], []
    )


@pytest.mark.parametrize("seed", [0, 1])
def test_lenders_are_four_other_instances_and_everybody_lends_alike(seed: int) -> None:
    asked = names([f"i{n % 7}" for n in range(70)])
    lent = lenders(asked, 4, seed)
    assert lent is not None
    for found in (lent.references, lent.texts):
        for query, row in enumerate(found):
            owners = {asked.instance_ids[i] for i in row}
            assert asked.instance_ids[query] not in owners
            assert len(owners) == 4
        assert np.bincount(found.ravel(), minlength=70).tolist() == [4] * 70


def test_what_a_text_borrows_is_what_a_reference_borrows() -> None:
    lent = lenders(names([f"i{n % 5}" for n in range(40)]), 3, seed=0)
    assert lent is not None
    with_text = {(int(r), t) for t, row in enumerate(lent.references) for r in row}
    with_reference = {(r, int(t)) for r, row in enumerate(lent.texts) for t in row}
    assert with_text == with_reference
    assert len(with_text) == 120


@given(st.lists(st.integers(0, 4), min_size=2, max_size=40), st.integers(1, 6), st.integers(0, 5))
def test_never_the_own_instance_however_uneven(sizes: list[int], count: int, seed: int) -> None:
    asked = names([f"i{n}" for n in sizes])
    lent = lenders(asked, count, seed)
    assert (lent is None) == (len(set(sizes)) == 1)
    if lent is not None:
        owner = np.array(sizes)
        for found in (lent.references, lent.texts):
            assert found.shape == (len(sizes), count)
            assert (owner[found] != owner[:, None]).all()


def test_two_instances_lend_each_other_different_queries() -> None:
    lent = lenders(names(["a"] * 5 + ["b"] * 5), 4, seed=0)
    assert lent is not None
    assert min(len(set(row.tolist())) for row in lent.references) >= 3


def test_the_draw_is_seeded() -> None:
    asked = names([f"i{n}" for n in range(9)])
    one, again, other = (lenders(asked, 3, seed) for seed in (1, 1, 2))
    assert one is not None
    assert again is not None
    assert other is not None
    assert np.array_equal(one.references, again.references)
    assert not np.array_equal(one.references, other.references)


@pytest.mark.parametrize("chunk", [5, 1000])
def test_means_are_those_of_a_slow_version(context: Context, chunk: int) -> None:
    dataset, place = find_dataset(context.root, "benchmark"), find_model(context.root, "adafocal")
    (store,) = require_features(context.root, None, place, dataset, place.load()[1])
    task = load_tasks(dataset, "test")[0]
    encoder = Encoder(*place.load(), StoreTokens(store))
    targets = torch.cat(list(encoder.targets(task.gallery.image_ids)))
    prepared, lent = encoder.prepare(task.queries), lenders(task.queries, 4, seed=0)
    assert lent is not None
    borrowed = borrow(encoder, prepared, lent)
    assert len(borrowed.vectors) == 4 * len(task.queries)
    parts = text_only(max_over_set, borrowed, lent, task.queries, task.gallery, targets, chunk)
    text = np.concatenate([s for _, s in parts])
    reference = np.concatenate([s for _, s in reference_only(max_over_set, borrowed, targets, chunk)])
    for query in (0, 7, len(task.queries) - 1):
        own = np.full(4, query)
        vectors, _ = encode_queries(encoder, prepared, lent.references[query], own)
        scores = score(max_over_set, vectors, targets).astype(float)
        for column, owner in enumerate(task.gallery.instance_ids):
            foreign = [
                scores[k, column]
                for k in range(4)
                if task.queries.instance_ids[lent.references[query, k]] != owner
            ]
            assert text[query, column] == pytest.approx(np.mean(foreign), abs=1e-6)
        vectors, _ = encode_queries(encoder, prepared, own, lent.texts[query])
        assert reference[query] == pytest.approx(score(max_over_set, vectors, targets).mean(0), abs=1e-6)
        assert not np.allclose(text[query], reference[query], atol=1e-6)
