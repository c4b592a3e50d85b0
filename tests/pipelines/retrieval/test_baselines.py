"""Blind baselines: who lends what, and the means against a slow version."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from infra.base.command import Context
from pipelines.retrieval.baselines import lenders, reference_only, text_only
from pipelines.retrieval.engine import Encoder, QuerySet, encode_queries, score
from pipelines.retrieval.inputs import StoreTokens, find_dataset, find_features, find_model, load_tasks


def names(instances: list[str]) -> QuerySet:
    count = len(instances)
    return QuerySet(
        [f"q{i}" for i in range(count)], instances, ["r"] * count, ["t"] * count, ["x"] * count, [], []
    )


def test_lenders_are_other_instances_each_once() -> None:
    asked = names([f"i{n % 7}" for n in range(70)])
    drawn = lenders(asked, 4, seed=0)
    assert drawn is not None
    for query, row in enumerate(drawn):
        lent = [asked.instance_ids[i] for i in row]
        assert asked.instance_ids[query] not in lent
        assert len(set(lent)) == 4
    assert len({int(i) for i in drawn.flat}) > 60


def test_lenders_repeat_an_instance_only_where_there_are_too_few() -> None:
    drawn = lenders(names(["a", "a", "b"]), 4, seed=0)
    assert drawn is not None
    assert drawn[:2].tolist() == [[2] * 4] * 2
    assert set(drawn[2].tolist()) <= {0, 1}
    assert lenders(names(["a", "a"]), 4, seed=0) is None


def test_a_draw_depends_on_seed_and_query_not_on_the_others() -> None:
    asked = names([f"i{n}" for n in range(9)])
    drawn = lenders(asked, 3, seed=1)
    assert drawn is not None
    assert np.array_equal(drawn, lenders(asked, 3, seed=1))
    assert not np.array_equal(drawn, lenders(asked, 3, seed=2))
    renamed = QuerySet(["z", *asked.query_ids[1:]], *list(vars(asked).values())[1:])
    again = lenders(renamed, 3, seed=1)
    assert again is not None
    assert np.array_equal(again[1:], drawn[1:])


@pytest.mark.parametrize("chunk", [5, 1000])
def test_means_are_those_of_a_slow_version(context: Context, chunk: int) -> None:
    dataset, place = find_dataset(context.root, "benchmark"), find_model(context.root, "adafocal")
    store = find_features(context.root, None, place, dataset)
    assert store is not None
    task = load_tasks(dataset, "test")[0]
    encoder = Encoder(*place.load(), StoreTokens(store))
    targets = torch.cat(list(encoder.targets(task.gallery.image_ids)))
    prepared, drawn = encoder.prepare(task.queries), lenders(task.queries, 4, seed=0)
    assert drawn is not None
    parts = text_only(encoder, prepared, task.queries, task.gallery, targets, drawn, chunk)
    text = np.concatenate([s for _, s in parts])
    reference = np.concatenate(
        [s for _, s in reference_only(encoder, prepared, task.queries, targets, drawn, chunk)]
    )
    own, _ = encode_queries(encoder, prepared)
    for query in (0, 7, len(task.queries) - 1):
        own_text = np.full(4, query)
        lent, _ = encode_queries(encoder, prepared, drawn[query], own_text)
        scores = score(lent, targets).astype(float)
        for column in range(len(task.gallery)):
            foreign = [
                scores[k, column]
                for k in range(4)
                if task.queries.instance_ids[drawn[query, k]] != task.gallery.instance_ids[column]
            ]
            assert text[query, column] == pytest.approx(np.mean(foreign), abs=1e-6)
        lent, _ = encode_queries(encoder, prepared, own_text, drawn[query])
        assert reference[query] == pytest.approx(score(lent, targets).mean(0), abs=1e-6)
        assert not np.allclose(text[query], score(own[query : query + 1], targets)[0], atol=1e-6)
