"""Cross-validation: the pooled figures are those of all queries, with what they are worth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from small_root import make_run

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.ops.crossvalidate import crossvalidate
from pipelines.retrieval.folds.config import CrossvalidateRecipe
from pipelines.retrieval.folds.pool import notes, pool
from training.config import TrainRecipe

RECIPE = CrossvalidateRecipe(name="cv", dataset="benchmark", model="adafocal", folds=4, bootstrap_samples=200)


@pytest.fixture(scope="module")
def figures(context: Context) -> dict[str, Any]:
    plan = crossvalidate(RECIPE, Context(root=context.root, dry_run=True))
    assert "would cut" in plan.message
    outcome = crossvalidate(RECIPE, context)
    assert outcome.location is not None
    assert json.loads(storage.read_bytes(outcome.location)) == outcome.figures
    details = "\n".join(outcome.details)
    assert "note: car: 32 queries and 8 instances: too few to rank models" in details
    return outcome.figures


def test_the_pooled_figures_are_those_of_all_queries(context: Context, figures: dict[str, Any]) -> None:
    """A given model asked in folds ranks as one that is asked everything: galleries hold every image."""
    found: dict[str, list[int]] = {"car": [], "product": []}
    for url in figures["evaluations"]:
        for row in versions.open_version(url).table("rankings").to_pylist():
            found[row["gallery_id"].split("/")[0]].append(row["target_rank"])
    assert [len(ranks) for ranks in found.values()] == [32, 32]
    for domain, ranks in found.items():
        part = figures["domains"][domain]
        assert (part["queries"], part["instances"], part["gallery"]) == (32, 8, 32)
        measure = part["metrics"]["R@5"]
        assert measure["value"] == pytest.approx(100 * np.mean([r <= 5 for r in ranks]))
        assert measure["chance"] == pytest.approx(100 * 5 / 31)  # the reference is removed
        assert measure["low"] <= measure["value"] <= measure["high"]
        # 3 other images of the instance among 31
        assert part["metrics"]["R_ID@1"]["chance"] == pytest.approx(100 * 3 / 31)
    both = [figures["domains"][d]["metrics"]["R@5"]["value"] for d in found]
    assert figures["overall"]["metrics"]["R@5"]["value"] == pytest.approx(np.mean(both))
    assert figures["overall"]["gallery"] == 64


def test_a_recipe_gives_each_fold_a_model_of_its_own(
    make_root: Callable[..., Context], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Embedding and training, which start Ray, are stood in for by untrained models; what they are told counts."""
    context = make_root(tmp_path)
    told: list[tuple[str, TrainRecipe]] = []

    def embed(recipe: TrainRecipe, _: Context) -> Outcome:
        told.append(("embed", recipe))
        return Outcome("embedded", "features")

    def train(recipe: TrainRecipe, here: Context) -> Outcome:
        told.append(("train", recipe))
        run = make_run(
            here.root, versions.open_version(recipe.dataset), recipe.name, "scalar", seed=int(recipe.name[-1])
        )
        return Outcome("trained", run.url)

    monkeypatch.setattr("pipelines.embed.embed", embed)
    monkeypatch.setattr("training.trainer.train", train)
    recipe = CrossvalidateRecipe(
        name="own",
        dataset="benchmark",
        train="tiny.yaml",
        folds=3,
        epochs=2,
        workers=1,
        bootstrap_samples=100,
    )
    found = crossvalidate(recipe, context).figures
    assert [what for what, _ in told] == ["embed", "train"] * 3
    assert [r.dataset for _, r in told] == [url for url in found["folds"] for _ in range(2)]
    assert {(r.training.epochs, r.scaling.workers, r.model.preset) for _, r in told} == {(2, 1, "tiny")}
    models = [versions.open_version(u).manifest.figures["model"] for u in found["evaluations"]]
    assert [model["name"] for model in models] == ["own-1", "own-2", "own-3"]
    assert len({model["content_hash"] for model in models}) == 3
    assert crossvalidate(recipe, context).figures == found  # evaluations that are there are taken


def test_it_says_what_is_too_few() -> None:
    few, many = {"queries": 99, "instances": 30}, {"queries": 1000, "instances": 30}
    assert notes({"a": few}, many) == [
        "a: 99 queries: too few to rank models",
        "too few: fewer than 100 queries or 20 instances",
    ]
    assert notes({"a": many}, many) == []
    assert notes({}, {"queries": 1000, "instances": 19})[0].startswith("all domains together: 19 instances")


def test_evaluations_of_other_folds_are_refused(context: Context, figures: dict[str, Any]) -> None:
    folds, evaluations = ([versions.open_version(u) for u in figures[k]] for k in ("folds", "evaluations"))
    with pytest.raises(OacirError, match="is no evaluation of"):
        pool(folds, evaluations[::-1], 100, 0)


@pytest.mark.parametrize("options", [{}, {"model": "m", "train": "t"}, {"model": "m", "epochs": 2}])
def test_a_model_or_a_recipe(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--train"):
        CrossvalidateRecipe(**options)
