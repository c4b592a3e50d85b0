"""`oacir query`: one image, one box, one sentence → ranked images with scores and β, as text, JSON and a picture."""

from __future__ import annotations

import hashlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, RecipeError, VersionError
from pipelines.retrieval.config import QueryRecipe
from pipelines.retrieval.engine import Encoder, Gallery, score, top
from pipelines.retrieval.inputs import (
    ImageTokens,
    ModelPlace,
    StoreTokens,
    find_dataset,
    find_features,
    find_model,
    read_image,
)
from training.masks import decode_mask

if TYPE_CHECKING:
    from PIL import Image

    from pipelines.retrieval.picture import Verdict
    from training.features import FeatureStore
    from training.model.processing import AdaFocalProcessor
    from training.model.regions import Region

Box = tuple[float, float, float, float]
_NO_STORE = (
    "note: no feature store fits, so {:,} images were encoded for this one query; `oacir embed` keeps them"
)


@dataclass(frozen=True)
class Question:
    """What is asked.

    Attributes:
        image: the reference, upright.
        region: the object on it, a box or a mask; None where none is marked.
        text: what should change.
        category: what the object is called, where that is known.
        query_id: of the benchmark's own query, if it is one; it chooses the wording that names the object.
    """

    image: Image.Image
    region: Region | None
    text: str
    category: str | None = None
    query_id: str | None = None

    @property
    def box(self) -> Box | None:
        """The box, or the one around the mask."""
        from training.model.regions import region_box

        return region_box(self.region, *self.image.size)


@dataclass(frozen=True)
class Answer:
    """What a query found: columns of the gallery with their scores, best first, and β (one value or one per token)."""

    columns: list[int]
    scores: list[float]
    beta: list[float] | None


@dataclass(frozen=True)
class Truth:
    """The right instance, and of the benchmark's own queries target and id, where they are known."""

    instance_id: str | None
    target_id: str | None
    query_id: str | None

    def verdict(self, image_id: str, instance_id: str) -> Verdict:
        """What a ranked image is."""
        if self.instance_id is None:
            return "unknown"
        if image_id == self.target_id:
            return "target"
        return "instance" if instance_id == self.instance_id else "other"


def query(recipe: QueryRecipe, context: Context) -> Outcome:
    """Rank a gallery for one query. An image of the gallery with the same bytes as the reference is left out.

    Raises:
        RecipeError: an empty text; a box or mask that is none, or leaves the image; a box or category that is missing
            though the model needs it.
        OacirError: the image cannot be read, or there is no such model, dataset or gallery.
    """
    if not recipe.text.strip():
        raise RecipeError(["text is empty; say in a sentence what should change, --text '…'"])
    data = storage.read_bytes(storage.absolute(recipe.image))
    image = read_image(storage.absolute(recipe.image))
    region = _region(recipe, image.size)
    place = find_model(context.root, recipe.model)
    dataset = find_dataset(context.root, recipe.dataset)
    gallery, uri_of = select_gallery(dataset, recipe.gallery)
    if context.dry_run:
        return Outcome(
            f"would rank {len(gallery):,} images ({gallery.gallery_id}) of {dataset.url} with {place.url}",
            figures={"images": len(gallery)},
        )
    model, processor = place.load()
    _check_question(processor, region, recipe)
    store = _store(recipe, context, place, dataset)
    images = ImageTokens(model, processor, uri_of, *place.token_types(store))
    source = images if store is None else StoreTokens(store)
    encoder = Encoder(model, processor, source, recipe.encode_batch_size)
    same = _same_content(dataset, hashlib.sha256(data).hexdigest())
    truth = _truth(dataset, same, recipe.text)
    question = Question(image, region, recipe.text, recipe.category, truth.query_id)
    answer = ask(encoder, images, question, gallery, recipe.top_k, same)
    ranked = [
        {
            "rank": place_ + 1,
            "score": round(found, 6),
            "image_id": gallery.image_ids[column],
            "instance_id": gallery.instance_ids[column],
            "uri": uri_of[gallery.image_ids[column]],
        }
        for place_, (column, found) in enumerate(zip(answer.columns, answer.scores, strict=True))
    ]
    location = None
    beta = beta_text(answer.beta, region is not None)
    title = f"{place.name}: {beta}"
    if recipe.picture is not None:
        location = storage.absolute(recipe.picture)
        storage.write_bytes(location, _picture(question, ranked, uri_of, truth, title))
    figures = {"gallery": gallery.gallery_id, "images": len(gallery), "beta": answer.beta, "results": ranked}
    where = f"picture: {location}" if location else f"searched {gallery.gallery_id} of {dataset.url}"
    return Outcome(
        f"{len(ranked)} of {len(gallery):,} images, {beta}; {where}",
        location,
        figures,
        (*_table(ranked), *([] if store else [_NO_STORE.format(len(gallery))])),
    )


def ask(
    encoder: Encoder,
    images: ImageTokens,
    question: Question,
    gallery: Gallery,
    top_k: int,
    reference_id: str | None = None,
) -> Answer:
    """Rank a gallery for one question; `reference_id` is left out."""
    import torch

    inputs = encoder.processor(
        [question.image], [question.text], [question.region], [question.category], [question.query_id]
    )
    with torch.inference_mode():
        output = encoder.model.encode_query(
            images.of_pixels(inputs.pixels).to(encoder.device),
            inputs.input_ids.to(encoder.device),
            inputs.attention_mask.to(encoder.device),
            inputs.patch_mask.to(encoder.device),
        )
    targets = torch.cat(list(encoder.targets(gallery.image_ids)))
    scores = score(encoder.model.score, output.embedding.float(), targets)
    columns, best = top(scores, gallery, [reference_id], top_k)
    used = output.beta is not None and bool(inputs.patch_mask.any())
    beta = [float(v) for v in output.beta[0].float().cpu()] if output.beta is not None and used else None
    return Answer(columns[0], best[0], beta)


def _store(
    recipe: QueryRecipe, context: Context, place: ModelPlace, dataset: versions.Version
) -> FeatureStore | None:
    """The features of the benchmark's images, if there are any; the reference itself is always encoded anew."""
    from training.data import used_images
    from training.stores import Contents

    return find_features(context.root, recipe.features, place, Contents("full", used_images(dataset)))


def _region(recipe: QueryRecipe, size: tuple[int, int]) -> Region | None:
    """The box or mask of a command line.

    Raises:
        RecipeError: it is none, or none of this image.
    """
    if recipe.mask is None:
        return None if recipe.box is None else parse_box(recipe.box, size)
    url = storage.absolute(recipe.mask)
    try:
        return decode_mask(storage.read_bytes(url), size)
    except OacirError as error:
        raise RecipeError([f"mask = {url}: {error}"]) from error


def _check_question(processor: AdaFocalProcessor, region: Region | None, recipe: QueryRecipe) -> None:
    """What the model was trained to be told has to be there.

    Raises:
        RecipeError: it is not.
    """
    problems = []
    if processor.text_entity == "named" and not recipe.category:
        problems.append("category is missing: this model's texts name the object; give --category 'handbag'")
    if processor.reference_view != "full" and region is None:
        what = "only the object's box" if processor.reference_view == "crop" else "the box drawn in red"
        problems.append(f"box is missing: this model sees {what}; give --box x1,y1,x2,y2 or --mask FILE")
    if problems:
        raise RecipeError(problems)


def parse_box(text: str, size: tuple[int, int]) -> Box:
    """The box x1,y1,x2,y2 of a command line, in pixels of an upright image of (width, height).

    Raises:
        RecipeError: not four numbers, empty, or outside the image.
    """
    width, height = size
    fix = f"give --box x1,y1,x2,y2 in pixels with 0 <= x1 < x2 <= {width} and 0 <= y1 < y2 <= {height}"
    try:
        numbers = [float(part) for part in text.strip(" []()").split(",")]
    except ValueError:
        numbers = []
    if len(numbers) != 4 or not all(math.isfinite(n) for n in numbers):
        raise RecipeError([f"box = {text!r}: not four numbers; {fix}"])
    x1, y1, x2, y2 = numbers
    if x1 >= x2 or y1 >= y2:
        raise RecipeError([f"box = {text!r}: has no area; {fix}"])
    if x1 < 0 or y1 < 0 or x2 > width or y2 > height:
        raise RecipeError([f"box = {text!r}: leaves the image of {width} x {height} pixels; {fix}"])
    return x1, y1, x2, y2


def select_gallery(dataset: versions.Version, name: str) -> tuple[Gallery, dict[str, str]]:
    """The images that `name` (all, a split, or domain/split) means, and where each lies.

    Raises:
        VersionError: the dataset has no such gallery.
    """
    images = dataset.table("images", ["image_id", "uri"]).to_pylist()
    uri_of = {row["image_id"]: row["uri"] for row in images}
    if name == "all":
        rows = dataset.table("instances", ["image_id", "instance_id"]).to_pylist()
        members = {r["image_id"]: r["instance_id"] for r in rows if r["image_id"] in uri_of}
    else:
        table = dataset.table("gallery", ["gallery_id", "split", "image_id", "instance_id"]).to_pylist()
        members = {r["image_id"]: r["instance_id"] for r in table if name in (r["split"], r["gallery_id"])}
        if not members:
            known = ", ".join(sorted({r["gallery_id"] for r in table} | {r["split"] for r in table}))
            raise VersionError(f"{dataset.url}: no gallery '{name}'; --gallery may be all, {known}")
    ids = sorted(members)
    return Gallery(name, ids, [members[i] for i in ids]), uri_of


def beta_text(beta: Sequence[float] | None, has_box: bool) -> str:
    """β as people read it."""
    if beta is None:
        return "no modulation (β = 0)" if has_box else "asked without a box"
    if len(beta) == 1:
        return f"β = {beta[0]:.2f}"
    return f"β = {min(beta):.2f} to {max(beta):.2f} over {len(beta)} query tokens"


def _same_content(dataset: versions.Version, sha256: str) -> str | None:
    images = dataset.table("images", ["image_id", "sha256"])
    same = [
        image_id
        for image_id, found in zip(images["image_id"].to_pylist(), images["sha256"].to_pylist(), strict=True)
        if found == sha256
    ]
    return min(same, default=None)


def _table(ranked: Sequence[dict[str, Any]]) -> list[str]:
    width = max([len("instance"), *(len(r["instance_id"]) for r in ranked)])
    lines = [f"{'rank':>4}  {'score':>7}  {'instance':<{width}}  image"]
    lines += [
        f"{r['rank']:>4}  {r['score']:>7.4f}  {r['instance_id']:<{width}}  {r['image_id']}" for r in ranked
    ]
    return lines


def _picture(
    question: Question, ranked: Sequence[dict[str, Any]], uri_of: dict[str, str], truth: Truth, title: str
) -> bytes:
    from pipelines.retrieval.picture import THUMB_PX, Candidate, draw_query

    candidates = [
        Candidate(
            read_image(r["uri"], THUMB_PX),
            f"{r['score']:.3f}  {r['instance_id'].rsplit('/')[-1]}",
            truth.verdict(r["image_id"], r["instance_id"]),
        )
        for r in ranked
    ]
    target = read_image(uri_of[truth.target_id], THUMB_PX) if truth.target_id in uri_of else None
    stream = io.BytesIO()
    picture = draw_query(question.image, question.box, question.text, candidates, target=target, title=title)
    picture.save(stream, "PNG", optimize=True)
    return stream.getvalue()


def _truth(dataset: versions.Version, reference_id: str | None, text: str) -> Truth:
    """What the benchmark knows about a query: the instance of its own images, the target of its own queries."""
    if reference_id is None:
        return Truth(None, None, None)
    columns = ["query_id", "reference_id", "instance_id", "modification_text", "target_ids"]
    rows = dataset.table("quadruples", columns).to_pylist()
    own = [row for row in rows if row["reference_id"] == reference_id]
    asked = [row for row in own if row["modification_text"] == text]
    return Truth(
        own[0]["instance_id"] if own else None,
        asked[0]["target_ids"][0] if asked else None,
        asked[0]["query_id"] if asked else None,
    )
