"""Where a model looked at the references of a report's queries: attention over the image, with β and without."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.html import data_uri, jpeg
from infra.base.versions import Version
from pipelines.retrieval.compared import Compared
from pipelines.retrieval.inputs import ModelPlace, read_image, uris

if TYPE_CHECKING:
    from PIL import Image

    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor

Floats = NDArray[np.float32]
SHOWN_PX, QUALITY = 128, 72
HEAT = (214, 40, 40)
GREY = 0.45
"""How bright the picture stays under the heat."""


def looks(
    dataset: Version, one: Compared, asked: Sequence[Mapping[str, Any]]
) -> tuple[dict[str, dict[str, Any]], str]:
    """What to show of each query, by query id: two pictures and the share of attention inside the region.

    Args:
        dataset: the benchmark of the queries.
        one: the evaluation whose model is asked again; it may be one without a modulator.
        asked: rows of the `quadruples` table.

    Returns:
        query id → {with, without: data-URIs, share, share_without: 0..1}, empty without a modulator; and a sentence
        that says why nothing can be shown, or "".
    """
    if not one.betas or not asked:
        return {}, ""
    try:
        model, processor = place_of(one).load()
        uri_of = uris(dataset)
        images = {row["query_id"]: read_image(uri_of[row["reference_id"]]) for row in asked}
    except OacirError as error:
        return {}, f"where {one.label} looked is not shown: {error}"
    return {row["query_id"]: _look(model, processor, images[row["query_id"]], row) for row in asked}, ""


def overlay(pixels: Floats, attention: Floats, scale: float) -> Image.Image:
    """The model's input in grey with its patches reddened by attention.

    Args:
        pixels: the input as seen, RGB 0..1, [S, S, 3].
        attention: share of each patch, row-major, [P²].
        scale: the share that is shown as full red; use one scale for pictures that are to be compared.
    """
    from PIL import Image

    side, grid = pixels.shape[0], round(len(attention) ** 0.5)
    heat = np.clip(attention.reshape(grid, grid) / max(scale, 1e-12), 0, 1)
    heat = np.repeat(np.repeat(heat, side // grid, 0), side // grid, 1)[..., None]
    grey = pixels.mean(-1, keepdims=True) * GREY + (1 - GREY) * 0.5
    mixed = (1 - heat) * grey + heat * (np.array(HEAT, np.float32) / 255)
    return Image.fromarray(np.uint8(np.round(255 * np.clip(mixed, 0, 1))))


def _look(
    model: AdaFocalModel, processor: AdaFocalProcessor, image: Image.Image, row: Mapping[str, Any]
) -> dict[str, Any]:
    import torch

    from training.anchors import anchors_of, load_anchors
    from training.model.processing import CLIP_MEAN, CLIP_STD
    from training.model.views import see

    anchors = load_anchors(anchors_of([row], {row["reference_id"]: image.size}), processor)
    box, region = anchors.boxes[0], anchors.patch_masks
    pixels = processor.pixels([image if box is None else see(image, box, processor.reference_view)])
    words = processor.texts([row["modification_text"]], [row["category"]], [row["query_id"]])
    with torch.inference_mode():
        told = model.explain(model.encode_pixels(pixels), *words, region)
    share, share_without = (float(s[0]) for s in told.share_inside(region))
    seen = pixels[0].permute(1, 2, 0).numpy() * np.array(CLIP_STD, np.float32) + np.array(
        CLIP_MEAN, np.float32
    )
    maps = [m[0].mean(0)[1:].numpy() for m in (told.attention, told.attention_unmodulated)]
    scale = max(float(np.quantile(m, 0.98)) for m in maps)
    size = SHOWN_PX * -(-seen.shape[0] // SHOWN_PX)
    pictures = [
        data_uri(jpeg(overlay(seen, m, scale).resize((size, size), 0), SHOWN_PX, QUALITY), "image/jpeg")
        for m in maps
    ]
    return {"with": pictures[0], "without": pictures[1], "share": share, "share_without": share_without}


def place_of(one: Compared) -> ModelPlace:
    """Where the model of an evaluation lies.

    Raises:
        OacirError: it is gone.
    """
    stated = one.figures["model"]
    url = stated["url"] if one.run is None else one.run.path("export")
    if not storage.exists(storage.join(url, "config.json")):
        raise OacirError(f"its model is no longer at {url}")
    return ModelPlace(stated["name"], url, stated["content_hash"], one.run)
