"""A model that is not ours in the place of `engine.Encoder`: photos in, the same vectors and scores out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.retrieval.engine import Floats, Ints, QuerySet
from pipelines.retrieval.foreign.compose import composed
from pipelines.retrieval.foreign.config import ForeignSection
from pipelines.retrieval.foreign.load import open_family
from pipelines.retrieval.inputs import ModelPlace, read_image, uris
from pipelines.retrieval.robustness.config import PerturbSection

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from training.model.interfaces import Scorer
    from training.model.views import PixelBox


@dataclass(frozen=True)
class Prepared:
    """Queries as such a model takes them, one row each."""

    references: list[tuple[str, PixelBox | None]]
    """Image and what is seen of it."""
    texts: list[str]

    def __len__(self) -> int:
        return len(self.texts)


def open_foreign(
    place: ModelPlace, section: ForeignSection, dataset: Version, perturbed: PerturbSection, batch_size: int
) -> ForeignEncoder:
    """A model that is put to a benchmark.

    Raises:
        OacirError: it cannot be loaded, or what is asked for is only there for models of this package.
    """
    if perturbed.image != "given":
        raise OacirError(
            f"perturb.image {perturbed.image} changes what a model of this package sees; leave it out for a foreign one"
        )
    return ForeignEncoder(place, section, uris(dataset), batch_size)


class ForeignEncoder:
    """A model of a family with its way of asking.

    Args:
        place: of the model.
        section: how it is asked.
        uri_of: image_id → where the photo lies.
        batch_size: photos or queries per forward.
    """

    def __init__(
        self, place: ModelPlace, section: ForeignSection, uri_of: Mapping[str, str], batch_size: int = 32
    ) -> None:
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.section, self.uri_of, self.batch_size = section, uri_of, batch_size
        self.family = open_family(place, section, self.device)
        self.compose = section.compose or self.family.composes[0]

    @property
    def scorer(self) -> Scorer:
        """The largest cosine over an image's vectors."""
        from training.scoring import max_over_set

        return max_over_set

    def stated(self) -> dict[str, Any]:
        """What goes with every score."""
        kind = self.family.model.config.model_type
        return {"model_type": kind, **self.section.stated(self.compose), "texts_cut": len(self.family.cut)}

    def prepare(self, queries: QuerySet) -> Prepared:
        """Texts in the setting's words, and what is seen of each reference.

        Raises:
            OacirError: a query has no category or no box, and the setting needs one.
        """
        from training.model.views import name_entity, pixel_box

        asking = self.section.asking
        rows = zip(queries.texts, queries.categories, queries.query_ids, queries.anchors, strict=True)
        references: list[tuple[str, PixelBox | None]] = []
        texts = []
        for text, category, query_id, anchor in rows:
            texts.append(name_entity(text, asking.text_entity, category, query_id))
            box = None
            if asking.reference_view != "full":
                if anchor.box is None:
                    raise OacirError(
                        f"foreign.setting {self.section.setting} shows the box of the reference, and query {query_id}"
                        " has none; take plain or setting_1"
                    )
                box = pixel_box(anchor.box, *anchor.size)
            references.append((anchor.reference_id, box))
        return Prepared(references, texts)

    def targets(self, image_ids: Sequence[str]) -> Iterator[torch.Tensor]:
        """Vectors of the images, float32 [b, M, d] per batch, in order."""
        import torch

        with torch.inference_mode():
            for start in range(0, len(image_ids), self.batch_size):
                photos = [self._see((i, None)) for i in image_ids[start : start + self.batch_size]]
                yield self.family.images(photos).float()

    def queries(
        self, prepared: Prepared, reference_of: Ints | None = None, text_of: Ints | None = None
    ) -> Iterator[tuple[torch.Tensor, Floats | None]]:
        """Query vectors [b, d] per batch, in order, without a β; rows as in `engine.Encoder.queries`.

        Where image and text are encoded by themselves, each is encoded once however many rows name it.
        """
        import torch

        own = np.arange(len(prepared))
        seen = [prepared.references[i] for i in (own if reference_of is None else reference_of)]
        texts = [prepared.texts[i] for i in (own if text_of is None else text_of)]
        with torch.inference_mode():
            if self.compose == "joint":
                for start in range(0, len(texts), self.batch_size):
                    rows = slice(start, start + self.batch_size)
                    photos = self._photos(seen[rows])
                    yield self.family.joint(photos, texts[rows]), None
                return
            images = words = None
            if self.compose != "text":
                images = self._each(seen, lambda part: self.family.references(self._photos(part)))
            if self.compose != "image":
                words = self._each(texts, self.family.texts)
            first, second = (words if images is None else images), (images if words is None else words)
            if first is None or second is None:
                raise ValueError(f"compose {self.compose} takes neither image nor text")
            for start in range(0, len(texts), self.batch_size):
                rows = slice(start, start + self.batch_size)
                yield composed(first[rows], second[rows], self.compose, self.section.text_weight), None

    def _each(self, items: Sequence[Any], encode: Callable[[Sequence[Any]], torch.Tensor]) -> torch.Tensor:
        """Vectors of items [n, d], equal ones encoded once."""
        import torch

        distinct = list(dict.fromkeys(items))
        found = torch.cat(
            [
                encode(distinct[start : start + self.batch_size])
                for start in range(0, len(distinct), self.batch_size)
            ]
        )
        place = {item: row for row, item in enumerate(distinct)}
        return found[torch.tensor([place[item] for item in items], device=found.device)]

    def _photos(self, seen: Sequence[tuple[str, PixelBox | None]]) -> list[Image.Image]:
        """What is seen of each; a photo that several rows name is decoded once."""
        distinct = {one: self._see(one) for one in dict.fromkeys(seen)}
        return [distinct[one] for one in seen]

    def _see(self, one: tuple[str, PixelBox | None]) -> Image.Image:
        from training.model.views import see

        image_id, box = one
        image = read_image(self.uri_of[image_id])
        return image if box is None else see(image, box, self.section.asking.reference_view)
