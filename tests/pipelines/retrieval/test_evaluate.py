"""Evaluation from end to end on a small root, against an independent slow version."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.errors import OacirError, VersionError
from pipelines.records import RANKINGS
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate

RECIPE = EvaluateRecipe(name="adafocal", model="adafocal", dataset="benchmark", bootstrap_samples=200)


@pytest.fixture(scope="module")
def evaluation(context: Context) -> versions.Version:
    location = evaluate(RECIPE, context).location
    assert location is not None
    return versions.open_version(location)


def slow_scores(context: Context, row: dict[str, Any], ids: list[str]) -> np.ndarray[Any, Any]:
    """Scores of one query against images, one image at a time, straight from the model."""
    from training.export import open_model
    from training.features import FeatureStore

    model, processor = open_model(versions.resolve(context.root, "runs", "adafocal").url)
    store = FeatureStore.open(versions.list_versions(context.root, "features")[0].url)
    with torch.no_grad():
        tokens = store.tokens(store.rows([row["reference_id"]]))
        query = model.encode_query(
            tokens,
            *processor.texts([row["modification_text"]]),
            processor.regions([tuple(row["reference_box"])], [(64, 64)]),
        ).embedding[0]
        found = [(model.encode_target(store.tokens(store.rows([i])))[0] @ query).max() for i in ids]
    return torch.stack(found).numpy()


def test_rankings_are_those_of_a_slow_version(context: Context, evaluation: versions.Version) -> None:
    table = evaluation.table("rankings")
    assert table.schema.equals(RANKINGS)
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    asked = {r["query_id"]: r for r in dataset.table("quadruples").to_pylist() if r["split"] == "test"}
    gallery = dataset.table("gallery").to_pylist()
    rankings = {r["query_id"]: r for r in table.to_pylist()}
    assert set(rankings) == set(asked)
    for query_id in ("car-0-0", "product-3-2"):
        row, found = asked[query_id], rankings[query_id]
        inside = [g for g in gallery if g["gallery_id"] == f"{row['domain']}/test"]
        ids = sorted(g["image_id"] for g in inside if g["image_id"] != row["reference_id"])
        scores = slow_scores(context, row, ids)
        assert sorted(found["candidate_ids"]) == ids
        score_of = dict(zip(ids, scores, strict=True))
        assert found["scores"] == pytest.approx([score_of[i] for i in found["candidate_ids"]], abs=1e-5)
        assert found["scores"] == sorted(found["scores"], reverse=True)
        assert found["candidate_ids"][found["target_rank"] - 1] == row["target_ids"][0]
        own = {g["image_id"] for g in inside if g["instance_id"] == row["instance_id"]}
        first = next(n for n, i in enumerate(found["candidate_ids"], 1) if i in own)
        assert found["instance_rank"] == first
        assert len(found["beta"]) == 1


def test_figures_follow_from_the_rankings(evaluation: versions.Version) -> None:
    figures = evaluation.manifest.figures
    rows = evaluation.table("rankings").to_pylist()
    shares = [
        100 * np.mean([r["target_rank"] <= 5 for r in rows if r["gallery_id"] == f"{d}/test"])
        for d in ("car", "product")
    ]
    assert figures["overall"]["metrics"]["R@5"]["value"] == pytest.approx(np.mean(shares))
    assert figures["beta"]["mean"] == pytest.approx(np.mean([r["beta"][0] for r in rows]))
    for part in (*figures["domains"].values(), figures["overall"]):
        for k in (1, 5, 10):
            assert part["metrics"][f"R_ID@{k}"]["value"] >= part["metrics"][f"R@{k}"]["value"]
    assert json.loads(storage.read_bytes(evaluation.path("metrics.json"))) == figures


def test_it_says_what_it_ranked_and_what_is_missing(context: Context, evaluation: versions.Version) -> None:
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    figures = evaluation.manifest.figures
    assert (
        figures["domains"]["car"]["gallery"]["hash"]
        == dataset.manifest.figures["galleries"]["car/test"]["sha256"]
    )
    assert figures["absent"] == {"landmark": "no image could be read"}
    details = "\n".join(evaluate(RECIPE, context).details)
    assert "note: 48 queries: too few to rank models" in details
    assert "note: domain landmark is absent: no image could be read" in details
    assert evaluation.manifest.parents["dataset"] == dataset.manifest.content_hash


def test_the_same_again_is_a_no_op_and_chunks_do_not_matter(
    context: Context, evaluation: versions.Version, tmp_path: Path
) -> None:
    again = evaluate(RECIPE.model_copy(update={"queries_per_chunk": 5}), context)
    assert again.message == f"already evaluated: {evaluation.url}"
    fresh = evaluate(
        RECIPE.model_copy(update={"queries_per_chunk": 5}),
        Context(root=context.root, out=str(tmp_path / "out")),
    )
    assert fresh.location is not None
    assert versions.open_version(fresh.location).manifest.content_hash == evaluation.manifest.content_hash
    assert fresh.figures["overall"] == evaluation.manifest.figures["overall"]
    assert RECIPE.identity("m", "d") == RECIPE.model_copy(update={"name": "x", "dataset": "y"}).identity(
        "m", "d"
    )
    assert RECIPE.identity("m", "d") != RECIPE.model_copy(update={"seed": 1}).identity("m", "d")
    assert RECIPE.identity("m", "d") != RECIPE.identity("m", "e")


def test_without_modulation_there_is_no_beta(context: Context) -> None:
    outcome = evaluate(RECIPE.model_copy(update={"name": "beta0", "model": "beta0"}), context)
    assert outcome.figures["beta"] is None
    assert outcome.location is not None
    rankings = versions.open_version(outcome.location).table("rankings")
    assert rankings["beta"].null_count == len(rankings)


def test_an_exported_folder_is_a_model_too(
    context: Context, evaluation: versions.Version, tmp_path: Path
) -> None:
    import shutil

    run = versions.resolve(context.root, "runs", "adafocal")
    assert (
        evaluate(RECIPE.model_copy(update={"model": run.path("export")}), context).location == evaluation.url
    )
    shutil.copytree(run.path("export"), tmp_path / "mine")
    outcome = evaluate(RECIPE.model_copy(update={"name": "copy", "model": str(tmp_path / "mine")}), context)
    assert outcome.figures["model"]["name"] == "mine"
    assert outcome.figures["overall"] == evaluation.manifest.figures["overall"]


def test_a_changed_gallery_is_refused(make_root: Callable[..., Context], tmp_path: Path) -> None:
    def lose_one(quadruples: list[Any], gallery: list[Any]) -> None:
        gallery.remove(next(g for g in gallery if g["gallery_id"] == "car/test"))

    changed = make_root(tmp_path, lose_one)
    with pytest.raises(
        VersionError, match=r"gallery car/test has hash .* its manifest states .* build it again"
    ):
        evaluate(RECIPE, changed)


def test_a_target_outside_the_gallery_is_refused(make_root: Callable[..., Context], tmp_path: Path) -> None:
    def misdirect(quadruples: list[Any], gallery: list[Any]) -> None:
        query = next(q for q in quadruples if q["query_id"] == "car-2-1")
        query["target_ids"] = [next(q for q in quadruples if q["split"] == "train")["target_ids"][0]]

    with pytest.raises(
        VersionError, match=r"the target of 1 queries is not in gallery car/test, first car-2-1"
    ):
        evaluate(RECIPE, make_root(tmp_path, misdirect))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "nobody"}, "no finished runs 'nobody'"),
        ({"dataset": "nothing"}, "no finished datasets 'nothing'"),
        ({"split": "dev"}, "the split dev holds no query"),
    ],
)
def test_wrong_names_are_one_line(context: Context, change: dict[str, str], message: str) -> None:
    with pytest.raises(OacirError, match=message) as caught:
        evaluate(RECIPE.model_copy(update=change), context)
    assert "\n" not in str(caught.value)


def test_without_features_it_names_the_command(make_root: Callable[..., Context], tmp_path: Path) -> None:
    bare = make_root(tmp_path)
    storage.remove(storage.join(bare.root, "features"))
    with pytest.raises(VersionError, match=r"no features of .* run `oacir embed --dataset"):
        evaluate(RECIPE, bare)


def test_a_dry_run_states_the_work_and_writes_nothing(context: Context) -> None:
    recipe = RECIPE.model_copy(update={"name": "planned"})
    outcome = evaluate(recipe, Context(root=context.root, dry_run=True))
    assert outcome.figures == {
        "queries": 48,
        "images": 48,
        "query_forwards": 48 * 5,
        "scores": 2 * 24 * 24 * 9,
    }
    assert not storage.exists(storage.join(context.root, "evaluations", "planned"))
