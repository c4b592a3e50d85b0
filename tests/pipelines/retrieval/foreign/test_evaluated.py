"""A model of another maker from end to end: ranked by the engine, reported, compared, on the leaderboard."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.config import load_recipe
from infra.base.errors import OacirError
from pipelines.retrieval.config import EvaluateRecipe, ReportRecipe
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.foreign.config import ForeignSection
from pipelines.retrieval.foreign.encoder import ForeignEncoder
from pipelines.retrieval.foreign.load import find_foreign, open_family
from pipelines.retrieval.inputs import load_tasks, read_image, uris
from pipelines.retrieval.report import report
from training.model.views import RED, name_entity, pixel_box, see


def recipe(folder: str, **changes: Any) -> EvaluateRecipe:
    options = {"name": "foreign", "model": folder, "dataset": "benchmark", "bootstrap_samples": "100"}
    options["blind_references"] = "1"
    return load_recipe(EvaluateRecipe, "foreign", [(k, v) for k, v in (options | changes).items()])


def made(context: Context, folder: str, **changes: Any) -> versions.Version:
    location = evaluate(recipe(folder, **changes), context).location
    assert location is not None
    return versions.open_version(location)


def slow_scores(
    context: Context, folder: str, row: dict[str, Any], ids: list[str], setting: str
) -> np.ndarray[Any, Any]:
    """One query against images, one image at a time, with views and words of its own."""
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    uri_of = uris(dataset)
    joint = "blip2" in folder
    family = open_family(find_foreign(folder), ForeignSection(), torch.device("cpu"))
    photo = read_image(uri_of[row["reference_id"]])
    box = pixel_box(tuple(row["reference_box"]), *photo.size)
    entity = {"setting_1": "named", "setting_2": "drawn"}.get(setting, "none")
    text = name_entity(row["modification_text"], entity, row["category"], row["query_id"])  # type: ignore[arg-type]
    if setting in ("setting_2", "crop"):
        photo = see(photo, box, "drawn" if setting == "setting_2" else "crop")
    with torch.inference_mode():
        if joint:
            query = family.joint([photo], [text])[0]
        else:
            both = family.images([photo])[0, 0] + family.texts([text])[0]
            query = both / both.norm()
        found = [(family.images([read_image(uri_of[i])])[0] @ query).max() for i in ids]
    return torch.stack(found).numpy()


@pytest.mark.parametrize(
    ("name", "setting"),
    [("clip", "setting_1"), ("clip", "setting_2"), ("blip2", "setting_1")],
)
def test_rankings_are_those_of_a_slow_version(
    name: str, setting: str, context: Context, tiny: dict[str, str], tmp_path: Path
) -> None:
    own = dataclasses.replace(context, out=str(tmp_path / "out"))
    version = made(own, tiny[name], **{"foreign.setting": setting})
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    asked = {r["query_id"]: r for r in dataset.table("quadruples").to_pylist() if r["split"] == "test"}
    rankings = {r["query_id"]: r for r in version.table("rankings").to_pylist()}
    assert set(rankings) == set(asked)
    for query_id in ("car-0-0", "product-3-2"):
        row, found = asked[query_id], rankings[query_id]
        inside = [
            g for g in dataset.table("gallery").to_pylist() if g["gallery_id"] == f"{row['domain']}/test"
        ]
        ids = sorted(g["image_id"] for g in inside if g["image_id"] != row["reference_id"])
        score_of = dict(zip(ids, slow_scores(context, tiny[name], row, ids, setting), strict=True))
        assert sorted(found["candidate_ids"]) == ids
        assert found["scores"] == pytest.approx([score_of[i] for i in found["candidate_ids"]], abs=1e-5)
        assert found["beta"] is None
    figures = version.manifest.figures
    compose = "joint" if name == "blip2" else "sum"
    assert (figures["foreign"]["setting"], figures["foreign"]["compose"]) == (setting, compose)
    view = {"setting_2": "drawn", "crop": "crop"}.get(setting, "full")
    assert figures["asked"]["reference_view"] == view
    assert figures["domains"]["car"]["metrics"]["R@1"]["text_only"] is not None


def test_the_box_is_drawn_or_cut_on_the_query_alone(context: Context, tiny: dict[str, str]) -> None:
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    task = load_tasks(dataset, "test")[0]
    seen: dict[str, list[Image.Image]] = {}
    for setting in ("setting_2", "crop"):
        encoder = ForeignEncoder(
            find_foreign(tiny["clip"]), ForeignSection(setting=setting), uris(dataset), 5
        )
        prepared = encoder.prepare(task.queries)
        seen[setting] = encoder._photos(prepared.references[:1])
        sizes = {encoder._see((i, None)).size for i in task.gallery.image_ids}
        assert sizes == {(64, 64)}
    anchor = task.queries.anchors[0]
    assert anchor.box is not None
    x1, y1, x2, y2 = pixel_box(anchor.box, *anchor.size)
    assert seen["crop"][0].size == (x2 - x1, y2 - y1)
    assert seen["setting_2"][0].getpixel((x1, y1)) == RED
    nameless = dataclasses.replace(task.queries, anchors=[a._replace(box=None) for a in task.queries.anchors])
    with pytest.raises(
        OacirError, match=r"foreign.setting crop shows the box of the reference, and query car-0-0 has"
    ):
        encoder.prepare(nameless)


def test_by_its_image_alone_hiding_the_text_changes_nothing(
    context: Context, tiny: dict[str, str], tmp_path: Path
) -> None:
    own = dataclasses.replace(context, out=str(tmp_path / "out"))
    figures = made(
        own, tiny["clip"], **{"foreign.compose": "image", "foreign.setting": "plain"}
    ).manifest.figures
    for part in figures["domains"].values():
        measures = part["metrics"]
        assert measures["R@10"]["value"] == measures["R@10"]["reference_only"]
    assert figures["foreign"]["compose"] == "image"
    assert "text_weight" not in figures["foreign"]


def test_it_is_reported_compared_and_on_the_leaderboard(context: Context, tiny: dict[str, str]) -> None:
    evaluate(
        EvaluateRecipe(name="ours", model="adafocal", dataset="benchmark", bootstrap_samples=100), context
    )
    version = made(context, tiny["clip"])
    again = evaluate(recipe(tiny["clip"], encode_batch_size="7"), context)
    assert again.message == f"already evaluated: {version.url}"
    other = made(
        context, tiny["clip"], name="slerp", **{"foreign.compose": "slerp", "foreign.text_weight": "0.2"}
    )
    assert other.manifest.key != version.manifest.key
    page = report(ReportRecipe(evaluations=["ours", "foreign"], queries=2), context)
    text = storage.read_bytes(page.location or "").decode()
    assert "no difference shown" in text
    board = report(
        ReportRecipe(page="leaderboard", evaluations=["ours", "foreign", "slerp"], name="board"), context
    )
    assert [len(t["models"]) for t in board.figures["tables"]] == [3]
    text = storage.read_bytes(board.figures["files"][1]).decode()
    assert "clip, setting_1, sum, 0.5 text" in text
    assert "clip, setting_1, slerp, 0.2 text" in text
    assert "text names the category" in text
    planned = evaluate(recipe(tiny["clip"], name="planned"), dataclasses.replace(context, dry_run=True))
    assert planned.figures["queries"] == 48


def test_what_does_not_fit_a_foreign_model_is_refused(context: Context, tiny: dict[str, str]) -> None:
    def refused(**changes: str) -> str:
        with pytest.raises(OacirError) as caught:
            evaluate(recipe(tiny["clip"], name="refused", **changes), context)
        return str(caught.value)

    assert "reads photos; leave it out" in refused(features="benchmark")
    assert "leave it out for a foreign one" in refused(**{"perturb.image": "blur"})
    perturbed = made(context, tiny["clip"], name="perturbed", **{"perturb.text": "word_order"})
    assert perturbed.manifest.figures["perturbed"]["text"]["how"] == "word_order"
    plain = EvaluateRecipe(model="m")
    assert plain.identity("x") != plain.model_copy(update={"foreign": ForeignSection()}).identity("x")
