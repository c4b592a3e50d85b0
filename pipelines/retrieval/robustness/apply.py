"""A benchmark's queries with what is declared done to them; every draw is a pure function of seed and query id."""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from infra.base.errors import OacirError
from pipelines.retrieval.engine import Encoder, Prepared, QuerySet, TokenSource
from pipelines.retrieval.inputs import DomainTask, ImageTokens, read_image
from pipelines.retrieval.robustness import boxes
from pipelines.retrieval.robustness.config import PerturbSection
from pipelines.retrieval.robustness.images import corrupt
from pipelines.retrieval.robustness.texts import TEXTS
from training.anchors import Anchor, load_anchors

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from training.model.views import Asking, PixelBox


def encodes_anew(section: PerturbSection, processor: Asking) -> bool:
    """Whether the model sees references that no feature store holds, so that its image tower is needed."""
    return section.image != "given" or (section.box != "given" and processor.reference_view != "full")


def perturb(
    tasks: Sequence[DomainTask], section: PerturbSection, processor: Asking
) -> tuple[list[DomainTask], dict[str, int]]:
    """The tasks with boxes and texts changed as declared, galleries untouched, and how many of them were.

    Raises:
        OacirError: the model cannot be asked in this way: with boxes where it takes masks, or without a box where it
            sees the reference through it.
    """
    if section.box == "none" and processor.reference_view != "full":
        raise OacirError(
            f"this model sees its references through their boxes (reference_view {processor.reference_view}), so it"
            " cannot be asked without; leave perturb.box none out"
        )
    counts: Counter[str] = Counter()
    changed = []
    for task in tasks:
        queries = task.queries
        if section.box != "given":
            if section.box != "none" and processor.region == "mask" and any(a.mask for a in queries.anchors):
                raise OacirError(
                    f"perturb.box {section.box} changes boxes, and this model is asked with masks; leave it out or"
                    " evaluate a model of region box"
                )
            pairs = zip(queries.anchors, queries.query_ids, strict=True)
            anchors = [_anchor(anchor, query_id, section) for anchor, query_id in pairs]
            counts.update(_counted("boxes", queries.anchors, anchors))
            queries = replace(queries, anchors=anchors)
        if section.text != "given":
            pairs_of_text = zip(queries.texts, queries.query_ids, strict=True)
            texts = [
                TEXTS[section.text](text, section.text_share, _draw(section, "text", query_id))
                for text, query_id in pairs_of_text
            ]
            counts.update(_counted("texts", queries.texts, texts))
            queries = replace(queries, texts=texts)
        changed.append(replace(task, queries=queries))
    if section.image != "given":
        counts["references changed"] = sum(len(task.queries) for task in tasks)
    return changed, dict(counts)


class Shown(NamedTuple):
    """What a model is shown of a reference: its photo, corrupted for this query, through a box where it has views."""

    reference_id: str
    query_id: str
    box: PixelBox | None


class ShownReferences:
    """Tokens of galleries from their store, and of references as they are shown, encoded when they are asked for.

    Args:
        stored: of everything that is not changed.
        images: the model's image tower, in the arithmetic of that store.
        section: what is done to the photos.
    """

    def __init__(self, stored: TokenSource, images: ImageTokens, section: PerturbSection) -> None:
        self.stored, self.images, self.section = stored, images, section
        self.shown: dict[str, Shown] = {}

    def prepare(self, encoder: Encoder, queries: QuerySet) -> Prepared:
        """As `Encoder.prepare`, each query with a reference of its own."""
        prepared = encoder.prepare(queries)
        views = load_anchors(queries.anchors, encoder.processor).boxes
        keys = [f"{r}\0{q}" for r, q in zip(queries.reference_ids, queries.query_ids, strict=True)]
        found = zip(queries.reference_ids, queries.query_ids, views, strict=True)
        self.shown |= {key: Shown(*one) for key, one in zip(keys, found, strict=True)}
        return replace(prepared, reference_keys=keys)

    def tokens(self, image_ids: Sequence[str]) -> torch.Tensor:
        """See `engine.TokenSource`; a reference that several rows name is encoded once.

        Raises:
            OacirError: a photo is gone or cannot be read.
        """
        import torch

        if not any(key in self.shown for key in image_ids):
            return self.stored.tokens(image_ids)
        distinct = list(dict.fromkeys(image_ids))
        tokens = self.images.of_images([self._see(self.shown[key]) for key in distinct])
        row_of = {key: row for row, key in enumerate(distinct)}
        return tokens[torch.tensor([row_of[key] for key in image_ids])]

    def _see(self, one: Shown) -> Image.Image:
        from training.model.views import see

        image = read_image(self.images.uri_of[one.reference_id])
        if self.section.image != "given":
            seed = _seed(self.section, "image", one.query_id)
            draw = np.random.default_rng(seed)
            image = corrupt(image, self.section.image, self.section.image_severity, draw)
        return image if one.box is None else see(image, one.box, self.images.processor.reference_view)


def _anchor(anchor: Anchor, query_id: str, section: PerturbSection) -> Anchor:
    if section.box == "none":
        return anchor._replace(box=None, mask=None)
    given = None if anchor.box is None else boxes.inside(anchor.box, anchor.size)
    if given is None:
        return anchor
    change = boxes.scaled if section.box == "scaled" else boxes.shifted
    return anchor._replace(box=change(given, anchor.size, section.iou, _draw(section, "box", query_id)))


def _counted(what: str, before: Sequence[object], after: Sequence[object]) -> Mapping[str, int]:
    same = sum(a == b for a, b in zip(before, after, strict=True))
    return {f"{what} changed": len(before) - same, f"{what} left as they were": same}


def _draw(section: PerturbSection, what: str, query_id: str) -> random.Random:
    return random.Random(_seed(section, what, query_id))


def _seed(section: PerturbSection, what: str, query_id: str) -> int:
    digest = hashlib.sha256(f"perturb {what}\0{section.seed}\0{query_id}".encode()).digest()
    return int.from_bytes(digest[:8])
