"""Every way to mark the object, from features to a query: embed, train two steps, evaluate, ask.

Masks, ROI crop, the drawn box and the named category; what comes out is held against the exported model's own
processor on the photos themselves.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from small_benchmark import write_benchmark

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, RecipeError
from infra.base.versions import Version, open_version
from pipelines.embed import embed
from pipelines.retrieval.config import EvaluateRecipe, QueryRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.query import query
from training.config import TrainRecipe
from training.export import open_model
from training.masks import decode_mask
from training.trainer import train

pytestmark = [pytest.mark.ray, pytest.mark.slow, pytest.mark.timeout(600)]

SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32,
}  # fmt: skip
WAYS: dict[str, dict[str, object]] = {
    "crop of masks, named": {
        "modulation": "none", "reference_view": "crop", "region": "mask", "text_entity": "named",
    },
    "drawn, also in the text": {"reference_view": "drawn", "text_entity": "drawn"},
    "named masks": {"region": "mask", "text_entity": "named"},
}  # fmt: skip
STEPS = 2


@dataclass(frozen=True)
class Way:
    """A model asked in one way, and its evaluation."""

    recipe: TrainRecipe
    context: Context
    dataset: Version
    run: Version
    evaluation: Outcome

    @property
    def views(self) -> bool:
        return self.recipe.model.reference_view != "full"


def recipe_of(changes: dict[str, object]) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "way",
            "dataset": "small",
            "model": {"overrides": SMALL} | changes,
            "embed": {"images_per_shard": 64, "workers": 1},
            "training": {"steps": STEPS, "batch_size": 8, "dev_every_epochs": 1},
            "scaling": {"workers": 1},
        }
    )


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(n, marks=() if n == "crop of masks, named" else pytest.mark.long, id=n.replace(" ", "-"))
        for n in WAYS
    ],
)
def way(request: pytest.FixtureRequest, ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Way:
    root = tmp_path_factory.mktemp("way")
    dataset = write_benchmark(root, identities=6, domains=("a",), masked=("red", "blue"))
    recipe, context = recipe_of(WAYS[request.param]), Context(root=str(root))
    if recipe.model.reference_view != "full":
        embed(recipe_of({"modulation": "none"}), context)  # of the images alone
        with pytest.raises(OacirError, match=r"no features of the references' views .* run `oacir embed`"):
            train(recipe, context)
    embed(recipe, context)
    trained = train(recipe, context)
    assert trained.location is not None
    evaluation = evaluate(
        EvaluateRecipe(name="way", model="way", dataset="small", bootstrap_samples=100), context
    )
    return Way(recipe, context, dataset, open_version(trained.location), evaluation)


def asked(way: Way, split: str) -> list[dict[str, Any]]:
    return [row for row in way.dataset.table("quadruples").to_pylist() if row["split"] == split]


def expected_scores(way: Way, row: dict[str, Any], ids: list[str]) -> np.ndarray[Any, Any]:
    """One query by hand: the photo, the sentence and the region through the exported processor and model."""
    model, processor = open_model(way.run.url)
    uri_of = {r["image_id"]: r["uri"] for r in way.dataset.table("images").to_pylist()}
    region = tuple(row["reference_box"])
    if way.recipe.model.region == "mask" and row["reference_mask_uri"] is not None:
        region = decode_mask(Path(row["reference_mask_uri"]).read_bytes(), (70, 70))
    image = Image.open(uri_of[row["reference_id"]])
    inputs = processor([image], [row["modification_text"]], [region], ["square"], [row["query_id"]])
    with torch.no_grad():
        tokens = model.encode_pixels(inputs.pixels).bfloat16().float()
        found = model.encode_query(tokens, inputs.input_ids, inputs.attention_mask, inputs.patch_mask)
        pixels = processor.pixels([Image.open(uri_of[i]) for i in ids])
        targets = model.encode_target(model.encode_pixels(pixels).bfloat16().float())
        return np.asarray(model.score(found.embedding, targets)[0])


def test_the_run_holds_what_it_was_made_of(way: Way) -> None:
    manifest = way.run.manifest
    assert set(manifest.parents) == {"dataset", "features"} | ({"views"} if way.views else set())
    history = way.run.table("history").to_pydict()
    assert np.isfinite(history["loss"]).all()
    assert len(history["loss"]) == STEPS
    masks = 8 if way.recipe.model.region == "mask" else 0
    assert manifest.figures["regions"] == {"mask": masks, "box": 16 - masks}
    _, processor = open_model(way.run.url, with_tower=False)
    for name in ("reference_view", "text_entity", "region"):
        assert getattr(processor, name) == getattr(way.recipe.model, name)
    if way.recipe.model.text_entity != "none":  # the tokenizer was trained on the sentences as they are read
        ids, _ = processor.texts([r["modification_text"] for r in asked(way, "train")], ["square"] * 16)
        assert processor.tokenizer.unk_token_id not in ids


def test_the_evaluation_asks_as_the_processor_does(way: Way) -> None:
    assert way.evaluation.location is not None
    evaluation = open_version(way.evaluation.location)
    rankings = {r["query_id"]: r for r in evaluation.table("rankings").to_pylist()}
    for row in asked(way, "test"):
        found = rankings[row["query_id"]]
        expected = expected_scores(way, row, found["candidate_ids"])
        assert found["scores"] == pytest.approx(
            expected, abs=3e-3
        )  # tokens of other batches, rounded to bfloat16
        assert row["reference_id"] not in found["candidate_ids"]
    masks = 2 if way.recipe.model.region == "mask" else 0
    stated = evaluation.manifest.figures["asked"]
    assert stated["regions"] == {"mask": masks, "box": 4 - masks}
    assert any(
        "2 of 4 queries have no mask" in note for note in evaluation.manifest.figures["notes"]
    ) == bool(masks)
    assert set(evaluation.manifest.parents) == {"model", "dataset", "features"} | (
        {"views"} if way.views else set()
    )


def test_a_query_by_hand_is_the_benchmarks_own(way: Way) -> None:
    evaluation = open_version(str(way.evaluation.location))
    rankings = {r["query_id"]: r for r in evaluation.table("rankings").to_pylist()}
    uri_of = {r["image_id"]: r["uri"] for r in way.dataset.table("images").to_pylist()}
    for row in asked(way, "test")[:2]:
        region = {"box": ",".join(map(str, row["reference_box"]))}
        if way.recipe.model.region == "mask" and row["reference_mask_uri"]:
            region = {"mask": row["reference_mask_uri"]}
        outcome = query(
            QueryRecipe(
                model="way", dataset="small", image=uri_of[row["reference_id"]], category="square",
                text=row["modification_text"], **region,
            ),
            way.context,
        )  # fmt: skip
        found = {r["image_id"]: r["score"] for r in outcome.figures["results"]}
        ranking = rankings[row["query_id"]]
        expected = dict(zip(ranking["candidate_ids"], ranking["scores"], strict=True))
        assert found == pytest.approx(expected, abs=3e-3)


def test_a_query_says_what_the_model_has_to_be_told(way: Way) -> None:
    image = way.dataset.table("images").to_pylist()[0]["uri"]
    plain = {"model": "way", "dataset": "small", "image": image, "text": "put it outdoors"}
    if way.views:
        with pytest.raises(
            RecipeError, match=r"box is missing: this model sees .*; give --box x1,y1,x2,y2 or --mask"
        ):
            query(QueryRecipe(**plain, category="square"), way.context)
    if way.recipe.model.text_entity == "named":
        with pytest.raises(RecipeError, match="category is missing: this model's texts name the object"):
            query(QueryRecipe(**plain, box="0,0,20,20"), way.context)
    broken = Path(way.context.root) / "mask.png"
    Image.new("L", (20, 70)).save(broken)
    with pytest.raises(
        RecipeError, match=r"mask = .*mask\.png: the mask has 20 x 70 px, its upright image 70 x 70"
    ):
        query(QueryRecipe(**plain, mask=str(broken), category="square"), way.context)
    with pytest.raises(ValueError, match="give one of them"):
        QueryRecipe(**plain, mask="m.png", box="0,0,1,1")


def test_without_the_views_there_is_no_evaluation(way: Way) -> None:
    if not way.views:
        pytest.skip("this way needs no store but that of the images")
    stores = Path(way.context.root) / "features" / "small"
    view = f'"view": "{way.recipe.model.reference_view}"'
    views = [place for place in stores.iterdir() if view in (place / "manifest.json").read_text()]
    assert len(views) == 1
    storage.remove(str(views[0] / "manifest.json"))
    again = EvaluateRecipe(name="again", model="way", dataset="small", bootstrap_samples=100)
    with pytest.raises(
        OacirError, match=r"no features of the references' views .* run `oacir embed --dataset"
    ):
        evaluate(again, way.context)
    with pytest.raises(OacirError, match=r"no features of the references' views"):
        train(way.recipe.model_copy(update={"name": "another"}), way.context)
