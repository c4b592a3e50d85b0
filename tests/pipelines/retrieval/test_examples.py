"""The shown queries: drawn by seed, marked as the benchmark knows them, small enough for the page."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from infra.base import storage
from infra.base.command import Context
from infra.base.versions import Version
from pipelines.retrieval.compared import Compared, compare, dataset_of
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.examples import SHOWN, cards

PLENTY = 10_000_000


def compared_in(context: Context) -> tuple[Version, list[Compared]]:
    evaluate(
        EvaluateRecipe(name="adafocal", model="adafocal", dataset="benchmark", bootstrap_samples=100), context
    )
    found = compare(context.root, ["adafocal"], ["AdaFocal"])
    return dataset_of(context.root, found[0]), found


@pytest.fixture(scope="module")
def made(context: Context) -> tuple[Version, list[Compared]]:
    return compared_in(context)


def test_a_card_shows_the_query_and_marks_what_was_found(made: tuple[Version, list[Compared]]) -> None:
    dataset, compared = made
    shown, unreadable = cards(dataset, compared, "test", 12, 0, PLENTY)
    assert (len(shown), unreadable) == (12, 0)
    asked = {q["query_id"]: q for q in dataset.table("quadruples").to_pylist()}
    owner = {g["image_id"]: g["instance_id"] for g in dataset.table("gallery").to_pylist()}
    for card in shown:
        query, ranking = asked[card["id"]], compared[0].rankings[card["id"]]
        assert (card["text"], card["category"]) == (query["modification_text"], query["category"])
        (model,) = card["models"]
        assert [hit["rank"] for hit in model["hits"]] == list(range(1, SHOWN + 1))
        for hit, image_id in zip(model["hits"], ranking["candidate_ids"], strict=False):
            own = owner[image_id] == query["instance_id"]
            target = image_id == query["target_ids"][0]
            assert hit["verdict"] == ("target" if target else "instance" if own else "other")
            assert (hit["rank"] == ranking["target_rank"]) == target
        assert model["beta"] == (min(ranking["beta"]), max(ranking["beta"]))
    assert {hit["verdict"] for card in shown for hit in card["models"][0]["hits"]} >= {"instance", "other"}


def test_a_small_budget_makes_smaller_thumbnails(made: tuple[Version, list[Compared]]) -> None:
    def size(budget: int) -> int:
        return len(json.dumps(cards(*made, "test", 8, 0, budget)[0]))

    assert size(120_000) < size(PLENTY)


def test_a_split_without_queries_shows_none(made: tuple[Version, list[Compared]]) -> None:
    assert cards(*made, "dev", 8, 0, PLENTY) == ([], 0)


def test_images_that_are_gone_are_blanks_counted_once(
    make_root: Callable[..., Context], tmp_path: Path
) -> None:
    dataset, compared = compared_in(make_root(tmp_path))
    before, _ = cards(dataset, compared, "test", 4, 0, PLENTY)
    lost = next(q for q in dataset.table("quadruples").to_pylist() if q["query_id"] == before[0]["id"])
    uris = {row["image_id"]: row["uri"] for row in dataset.table("images").to_pylist()}
    storage.remove(uris[lost["reference_id"]])
    after, unreadable = cards(dataset, compared, "test", 4, 0, PLENTY)
    assert unreadable == 1
    assert before[0]["reference"] is not None
    assert after[0]["reference"] is None
    assert after[0]["target"] == before[0]["target"]
