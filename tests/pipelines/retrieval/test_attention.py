"""Where a model looked, as the report shows it."""

from __future__ import annotations

import io
from base64 import b64decode
from typing import Any

import numpy as np
import pytest
from PIL import Image

from infra.base import storage
from infra.base.command import Context
from pipelines.retrieval.attention import looks, overlay
from pipelines.retrieval.compared import compare, dataset_of
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate


def test_the_overlay_reddens_patches_by_their_share():
    """2 x 2 patches of 2 px on white: none, half and full red, and more than full."""
    picture = np.asarray(
        overlay(np.ones((4, 4, 3), np.float32), np.array([0.0, 0.1, 0.2, 0.9], np.float32), 0.2)
    )
    grey = round(255 * (0.45 + 0.55 * 0.5))
    assert picture[0, 0].tolist() == [grey] * 3
    half = [(grey + channel) / 2 for channel in (214, 40, 40)]
    assert picture[1, 3].tolist() == pytest.approx(half, abs=1)
    assert picture[2, 1].tolist() == picture[3, 3].tolist() == [214, 40, 40]


@pytest.fixture(scope="module")
def asked(context: Context) -> tuple[Any, list[Any], list[dict[str, Any]]]:
    """The benchmark, both evaluations and three of its test queries."""
    for name in ("adafocal", "beta0"):
        evaluate(EvaluateRecipe(name=name, model=name, dataset="benchmark", bootstrap_samples=100), context)
    compared = compare(context.root, ["adafocal", "beta0"], None)
    dataset = dataset_of(context.root, compared[0])
    rows = [row for row in dataset.table("quadruples").to_pylist() if row["split"] == "test"]
    return dataset, compared, rows[:3]


def test_a_look_has_two_pictures_and_the_shares_that_explain_gives(asked):
    dataset, (adafocal, _), rows = asked
    found, why = looks(dataset, adafocal, rows)
    assert why == ""
    assert set(found) == {row["query_id"] for row in rows}
    for look in found.values():
        assert 0 <= look["share_without"] < look["share"] <= 1
        assert look["with"] != look["without"]
        image = Image.open(io.BytesIO(b64decode(look["with"].split(",", 1)[1])))
        assert max(image.size) == 128


def test_a_model_without_modulator_has_nothing_to_show(asked):
    dataset, (_, baseline), rows = asked
    assert looks(dataset, baseline, rows) == ({}, "")


def test_a_lost_model_or_photo_is_told_and_costs_nothing_else(asked, monkeypatch):
    dataset, (adafocal, _), rows = asked
    real = storage.exists
    monkeypatch.setattr(storage, "exists", lambda url: not url.endswith("config.json") and real(url))
    found, why = looks(dataset, adafocal, rows)
    assert found == {}
    assert "no longer at" in why
