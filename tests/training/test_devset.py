"""Dev measurement: ranks worked out by hand, whatever the batch size; galleries of the right images."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from small_benchmark import write_benchmark
from torch import Tensor

from training.batches import QuerySet
from training.config import ModelSection
from training.devset import DEV_COLUMNS, Gallery, load_dev, mean_by_step, measure
from training.export import build_model, build_processor

VECTORS = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.8, 0.6], [-1.0, 0.0]])


class Store:
    """Four images of one token each; row n of the store is vector n."""

    def tokens(self, rows: Any) -> Tensor:
        return VECTORS[torch.as_tensor(np.asarray(rows))][:, None]


class Model:
    """A query means its reference, whatever the text; a target is one vector."""

    target_shape = (1, 2)
    training = True

    def eval(self) -> None:
        self.training = False

    def train(self, mode: bool) -> None:
        self.training = mode

    def encode_target(self, tokens: Tensor) -> Tensor:
        assert not self.training
        return tokens

    def score(self, queries: Tensor, targets: Tensor) -> Tensor:
        return queries @ targets[:, 0].T

    def encode_query(self, tokens: Tensor, *_: Tensor) -> SimpleNamespace:
        assert not self.training
        return SimpleNamespace(embedding=tokens[:, 0])


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_measures_by_hand(batch_size: int) -> None:
    # query 0 looks like image a, its reference, and means c: of the others c scores 0.8, b 0, d -1: rank 1
    # query 1 looks like image b and means a: c scores 0.6, a and d both 0, the tie goes to a: rank 2, and c is of
    # its instance: rank 1
    queries = QuerySet(
        np.array([0, 1]),
        np.array([2, 0]),
        np.ones((2, 1), np.int32),
        np.ones(2, np.int32),
        np.ones((2, 1), bool),
    )
    gallery = Gallery(
        "d",
        queries,
        ["a", "b"],
        ["c", "a"],
        ["i", "i"],
        np.arange(4),
        ["a", "b", "c", "d"],
        ["i", "j", "i", "j"],
    )
    model = Model()
    found = measure(cast(Any, model), cast(Any, Store()), [gallery, gallery], torch.device("cpu"), batch_size)
    assert found == [(2.0, 100.0, 50.0, 100.0)] * 2  # queries, R_ID@1, R@1, R@5
    assert model.training


def test_the_mean_over_galleries_at_each_step() -> None:
    def row(step: int, gallery: int, *measures: float) -> tuple[float, ...]:
        return (step, 0, gallery, 10, *measures, 0.5)

    assert DEV_COLUMNS[4:7] == ("R_ID@1", "R@1", "R@5")
    rows = [row(3, 0, 30, 10, 20), row(3, 1, 60, 0, 0), row(6, 0, 90, 90, 90), row(6, 1, 0, 0, 0)]
    assert mean_by_step(rows) == {3: 20.0, 6: 45.0}
    assert mean_by_step([]) == {}


def test_galleries_are_those_of_the_dev_split_by_domain(tmp_path: Path) -> None:
    dataset = write_benchmark(tmp_path, identities=6)
    section = ModelSection(
        overrides={"vision_config.hidden_size": 16, "vision_config.num_attention_heads": 2}
    )
    config = build_model(section, with_tower=False).config
    processor = build_processor(section, config, lambda: ["put it on a red background"])
    ids = sorted(dataset.table("images")["image_id"].to_pylist())
    store = SimpleNamespace(
        shape=(config.num_image_tokens, 16), rows=lambda wanted: np.array([ids.index(i) for i in wanted])
    )
    galleries = load_dev(dataset, cast(Any, store), processor)
    assert [g.domain for g in galleries] == ["a", "b"]
    members = dataset.table("gallery").to_pylist()
    asked = [q for q in dataset.table("quadruples").to_pylist() if q["split"] == "dev"]
    for gallery in galleries:
        own = [m for m in members if m["gallery_id"] == f"{gallery.domain}/dev"]
        assert gallery.candidate_ids == sorted(m["image_id"] for m in own)
        assert [ids[r] for r in gallery.candidate_rows] == gallery.candidate_ids
        mine = sorted((q for q in asked if q["domain"] == gallery.domain), key=lambda q: q["query_id"])
        assert gallery.target_ids == [q["target_ids"][0] for q in mine]
        assert [ids[r] for r in gallery.queries.reference_rows] == [q["reference_id"] for q in mine]
        assert set(gallery.target_ids) <= set(gallery.candidate_ids)
