"""Evaluations of perturbed queries: what they change, what they never change, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from infra.base import versions
from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.retrieval.compared import compare
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.inputs import ModelPlace, find_dataset, find_model, load_tasks, read_image
from pipelines.retrieval.robustness.apply import perturb
from pipelines.retrieval.robustness.boxes import iou
from pipelines.retrieval.robustness.config import PerturbSection
from pipelines.retrieval.robustness.images import corrupt
from training.model.processing import AdaFocalProcessor


def evaluated(context: Context, name: str, **perturb_: Any) -> Version:
    recipe = EvaluateRecipe(
        name=name,
        model="adafocal",
        dataset="benchmark",
        bootstrap_samples=100,
        perturb=PerturbSection(**perturb_),
    )
    location = evaluate(recipe, context).location
    assert location is not None
    return versions.open_version(location)


def rows(version: Version) -> dict[str, dict[str, Any]]:
    return {row["query_id"]: row for row in version.table("rankings").to_pylist()}


@pytest.fixture(scope="module")
def plain(context: Context) -> Version:
    return evaluated(context, "plain")


@pytest.fixture(scope="module")
def place(context: Context) -> ModelPlace:
    return find_model(context.root, "adafocal")


@pytest.fixture(scope="module")
def processor(place: ModelPlace) -> AdaFocalProcessor:
    return place.load(with_tower=False)[1]


def test_no_boxes_is_what_the_model_says_without_one(context: Context, plain: Version) -> None:
    found = evaluated(context, "boxless", box="none")
    assert found.manifest.figures["perturbed"] == {
        "box": {"how": "none"},
        "seed": 0,
        "counts": {"boxes changed": 48, "boxes left as they were": 0},
    }
    assert found.manifest.figures["notes"][0] == (
        "perturbed queries (no boxes; 48 boxes changed, 0 boxes left as they were):"
        " compare with no score of the benchmark"
    )
    assert found.manifest.figures["beta"] is None
    galleries = [{d: p["gallery"] for d, p in v.manifest.figures["domains"].items()} for v in (plain, found)]
    assert galleries[0] == galleries[1]
    # the same weights without a modulator give the same rankings
    unmodulated = evaluate(
        EvaluateRecipe(name="beta0", model="beta0", dataset="benchmark", bootstrap_samples=100), context
    )
    assert unmodulated.location is not None
    other = rows(versions.open_version(unmodulated.location))
    for query_id, row in rows(found).items():
        assert row["candidate_ids"] == other[query_id]["candidate_ids"]
        assert row["scores"] == pytest.approx(other[query_id]["scores"], abs=1e-6)


def test_boxes_are_moved_to_the_iou_that_was_asked_for(
    context: Context, processor: AdaFocalProcessor
) -> None:
    tasks = load_tasks(find_dataset(context.root, "benchmark"), "test")
    for section in (PerturbSection(box="scaled"), PerturbSection(box="shifted", box_iou=0.3)):
        changed, counts = perturb(tasks, section, processor)
        assert counts == {"boxes changed": 48, "boxes left as they were": 0}
        for before, after in zip(tasks, changed, strict=True):
            assert after.gallery == before.gallery
            assert after.queries.texts == before.queries.texts
            for old, new in zip(before.queries.anchors, after.queries.anchors, strict=True):
                assert old.box is not None
                assert new.box is not None
                assert iou(old.box, new.box) == pytest.approx(section.iou, abs=1e-6)
                assert new == old._replace(box=new.box)


def test_a_draw_depends_on_seed_and_query_alone(context: Context, processor: AdaFocalProcessor) -> None:
    task = load_tasks(find_dataset(context.root, "benchmark"), "test")[0]
    section = PerturbSection(box="shifted", text="typos")
    whole = perturb([task], section, processor)[0][0].queries
    queries = task.queries
    columns = ("query_ids", "instance_ids", "reference_ids", "target_ids", "texts", "categories", "anchors")
    part = replace(queries, **{name: getattr(queries, name)[5:8] for name in columns})
    alone = perturb([replace(task, queries=part)], section, processor)[0][0].queries
    assert (alone.anchors, alone.texts) == (whole.anchors[5:8], whole.texts[5:8])
    other = perturb([task], section.model_copy(update={"seed": 1}), processor)[0][0].queries
    assert other.anchors != whole.anchors
    assert other.texts != whole.texts


def test_corrupted_references_are_encoded_anew_and_galleries_are_not(
    context: Context, plain: Version, place: ModelPlace
) -> None:
    found = evaluated(context, "noisy", image="noise", image_severity=5, seed=3)
    assert found.manifest.figures["perturbed"]["counts"] == {"references changed": 48}
    dataset = find_dataset(context.root, "benchmark")
    asked = {row["query_id"]: row for row in dataset.table("quadruples").to_pylist()}
    uri_of = {row["image_id"]: row["uri"] for row in dataset.table("images").to_pylist()}
    model, processor = place.load()
    before, after = rows(plain), rows(found)
    assert sum(after[q]["scores"] != before[q]["scores"] for q in after) == 48
    for query_id in ("car-0-0", "product-3-2"):
        row = asked[query_id]
        from pipelines.retrieval.robustness.apply import _seed

        draw = np.random.default_rng(_seed(PerturbSection(seed=3), "image", query_id))
        photo = corrupt(read_image(uri_of[row["reference_id"]]), "noise", 5, draw)
        with torch.no_grad():
            tokens = model.encode_pixels(processor.pixels([photo])).bfloat16().float()
            region = processor.regions([tuple(row["reference_box"])], [(64, 64)])
            query = model.encode_query(tokens, *processor.texts([row["modification_text"]]), region)
            best = after[query_id]["candidate_ids"][0]
            target = model.encode_pixels(processor.pixels([read_image(uri_of[best])])).bfloat16().float()
            score = (model.encode_target(target)[0] @ query.embedding[0]).max()
        assert float(score) == pytest.approx(after[query_id]["scores"][0], abs=1e-4)


def test_how_queries_are_cut_does_not_matter(context: Context, tmp_path: Path) -> None:
    section = PerturbSection(image="occluded", text="dropped_words", box="scaled")
    recipe = EvaluateRecipe(
        name="cut", model="adafocal", dataset="benchmark", bootstrap_samples=100, perturb=section
    )
    first = evaluate(recipe, context)
    small = recipe.model_copy(update={"queries_per_chunk": 5, "encode_batch_size": 7})
    second = evaluate(small, Context(root=context.root, out=str(tmp_path / "out")))
    ranks = [
        {
            q: (r["target_rank"], r["candidate_ids"])
            for q, r in rows(versions.open_version(str(o.location))).items()
        }
        for o in (first, second)
    ]
    assert ranks[0] == ranks[1]


def test_perturbations_are_part_of_what_an_evaluation_is(context: Context, plain: Version) -> None:
    recipe = EvaluateRecipe(model="m")
    same = recipe.model_copy(update={"perturb": PerturbSection(box_iou=0.7, seed=4)})
    assert same.identity("x") == recipe.identity("x")  # nothing is changed, whatever the options would say
    keys = {
        recipe.model_copy(update={"perturb": section}).identity("x")
        for section in (
            PerturbSection(),
            PerturbSection(box="scaled"),
            PerturbSection(box="scaled", box_iou=0.9),
            PerturbSection(box="scaled", seed=1),
            PerturbSection(text="typos"),
            PerturbSection(image="blur"),
        )
    }
    assert len(keys) == 6
    paper = recipe.model_copy(update={"perturb": PerturbSection(box="scaled", box_iou=0.8)})
    assert paper.identity("x") in keys
    scaled = evaluated(context, "scaled", box="scaled")
    with pytest.raises(OacirError, match=r"differently perturbed queries \(boxes scaled to IoU 0.8; as the"):
        compare(context.root, [plain.url, scaled.url], None)
    assert len(compare(context.root, [scaled.url, scaled.url], None)) == 2


def test_what_cannot_be_asked_is_refused(context: Context, processor: AdaFocalProcessor) -> None:
    tasks = load_tasks(find_dataset(context.root, "benchmark"), "test")
    seen = AdaFocalProcessor.__new__(AdaFocalProcessor)
    seen.__dict__ |= processor.__dict__ | {"reference_view": "crop"}
    with pytest.raises(OacirError, match="through their boxes"):
        perturb(tasks, PerturbSection(box="none"), seen)


def test_a_model_without_its_tower_cannot_see_a_corrupted_photo(
    make_root: Callable[..., Context], tmp_path: Path
) -> None:
    from safetensors.torch import load_file, save_file

    context = make_root(tmp_path)
    run = versions.resolve(context.root, "runs", "adafocal")
    weights = Path(run.path("export")) / "model.safetensors"
    kept = {k: v for k, v in load_file(weights).items() if "vision_model" not in k}
    save_file(kept, weights, {"format": "pt"})
    with pytest.raises(OacirError, match=r"weights are missing.*export the model with its tower"):
        evaluated(context, "towerless", image="blur")
    assert evaluated(context, "towerless", text="typos").manifest.figures["perturbed"]["text"]["share"] == 0.2
