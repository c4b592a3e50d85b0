"""From PIL images, sentences and regions to what the model takes; the region makes the same way as the pixels."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.utils import PushToHubMixin, cached_file

from infra.base.errors import OacirError
from training.model.config import AdaFocalConfig
from training.model.regions import Box, Region, input_geometry, region_box, region_patches
from training.model.views import (
    PixelBox,
    ReferenceView,
    RegionKind,
    TextEntity,
    check_choice,
    name_entity,
    pixel_box,
    see,
)
from training.model.wordpiece import clean_text, train_wordpiece

if TYPE_CHECKING:
    from PIL import Image

__all__ = ["AdaFocalProcessor", "Inputs", "normalise", "train_wordpiece"]

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
SETTINGS_FILE = "processor_config.json"


def normalise(squares: Tensor) -> Tensor:
    """Samples 0 … 255 → what the tower takes, by CLIP's mean and deviation: [B, 3, S, S] uint8 → float32."""
    mean, deviation = (
        torch.tensor(v, dtype=torch.float32, device=squares.device).view(3, 1, 1)
        for v in (CLIP_MEAN, CLIP_STD)
    )
    whole = torch.tensor(
        255.0, device=squares.device
    )  # a tensor: by a number some devices multiply by its inverse
    return (squares.float() / whole - mean) / deviation


class Inputs(NamedTuple):
    """A batch: `pixels` [B, 3, H, W], `input_ids` and `attention_mask` [B, L], `patch_mask` [B, N]."""

    pixels: Tensor
    input_ids: Tensor
    attention_mask: Tensor
    patch_mask: Tensor


class AdaFocalProcessor(PushToHubMixin):  # type: ignore[misc]  # transformers is untyped here
    """Preprocessing that belongs to a model; saved, loaded and pushed with it, by AutoProcessor too.

    Images: pad to ratio `pad_ratio`, short side to `image_size` (bicubic), centre crop, CLIP mean and
    deviation. Texts: lower case, `. ! " ( ) * # : ; ~` become spaces, 50 words, `max_text_tokens` word pieces
    with [CLS] and [SEP]. What of a reference is encoded, how a text names the object, and which regions of a
    benchmark are asked with are settings too, so that a model is asked as it was trained (`views.py`).
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        image_size: int,
        patch_size: int,
        pad_ratio: float,
        max_text_tokens: int,
        reference_view: ReferenceView = "full",
        text_entity: TextEntity = "none",
        region: RegionKind = "box",
    ) -> None:
        check_choice(reference_view, ReferenceView, "reference_view")
        check_choice(text_entity, TextEntity, "text_entity")
        check_choice(region, RegionKind, "region")
        self.tokenizer = tokenizer
        self.image_size = image_size
        self.patch_size = patch_size
        self.pad_ratio = pad_ratio
        self.max_text_tokens = max_text_tokens
        self.reference_view = reference_view
        self.text_entity = text_entity
        self.region = region

    @classmethod
    def for_model(cls, config: AdaFocalConfig, tokenizer: PreTrainedTokenizerBase) -> Self:
        """The processor of a model configuration.

        Raises:
            OacirError: the tokenizer has more entries than the model has word embeddings, or is not of BERT's kind.
        """
        lacking = [
            name for name in ("cls_token", "sep_token", "pad_token") if getattr(tokenizer, name) is None
        ]
        if lacking:
            raise OacirError(
                f"the tokenizer has no {', '.join(lacking)}: a query is read at its text's [CLS]; take one of BERT's"
                " kind (bert-base-uncased)"
            )
        if len(tokenizer) > config.qformer.vocab_size:
            raise OacirError(
                f"the tokenizer has {len(tokenizer)} entries, the model only {config.qformer.vocab_size}: raise "
                "qformer.vocab_size"
            )
        return cls(tokenizer, config.image_size, config.patch_size, config.pad_ratio, config.max_text_tokens)

    def pixels(self, images: Sequence[Image.Image]) -> Tensor:
        """Upright images of any size and mode → [B, 3, image_size, image_size] float32."""
        return normalise(self.squares(images))

    def squares(self, images: Sequence[Image.Image]) -> Tensor:
        """The same before the last step, `normalise`: a quarter of the bytes, uint8 [B, 3, image_size, image_size]."""
        if not images:
            return torch.zeros(0, 3, self.image_size, self.image_size, dtype=torch.uint8)
        return torch.from_numpy(np.stack([self._square(image) for image in images]))

    def view_boxes(
        self, regions: Sequence[Region | None], sizes: Sequence[tuple[int, int]]
    ) -> list[PixelBox | None]:
        """The box that each reference is seen through; None where all of it is encoded as it is.

        Raises:
            OacirError: `reference_view` needs a box and a query has none, or one outside its image.
        """
        if self.reference_view == "full":
            return [None] * len(regions)
        boxes = [region_box(region, *size) for region, size in zip(regions, sizes, strict=True)]
        return [self._view_box(box, size) for box, size in zip(boxes, sizes, strict=True)]

    def references(
        self, images: Sequence[Image.Image], regions: Sequence[Region | None]
    ) -> list[Image.Image]:
        """What of the reference images is encoded: see `reference_view`."""
        boxes = self.view_boxes(regions, [image.size for image in images])
        return [
            image if box is None else see(image, box, self.reference_view)
            for image, box in zip(images, boxes, strict=True)
        ]

    def regions(self, regions: Sequence[Region | None], sizes: Sequence[tuple[int, int]]) -> Tensor:
        """Boxes or masks in pixels of images of (width, height) → patch masks [B, N].

        A row of zeros where nothing of the region is left, and everywhere if only crops are encoded: there the region
        is all that is seen.
        """
        masks = []
        for region, size in zip(regions, sizes, strict=True):
            seen = None if self.reference_view == "crop" else region
            masks.append(region_patches(seen, *size, self.image_size, self.patch_size, self.pad_ratio))
        return torch.stack(masks) if masks else torch.zeros(0, 1 + (self.image_size // self.patch_size) ** 2)

    def name_entities(
        self,
        texts: Sequence[str],
        categories: Sequence[str | None] | None = None,
        query_ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """The modification texts as the model reads them: see `text_entity` and `views.name_entity`."""
        none = [None] * len(texts)
        known = zip(texts, categories or none, query_ids or none, strict=True)
        return [name_entity(text, self.text_entity, category, query) for text, category, query in known]

    def texts(
        self,
        texts: Sequence[str],
        categories: Sequence[str | None] | None = None,
        query_ids: Sequence[str | None] | None = None,
        pad_to_max: bool = False,
    ) -> tuple[Tensor, Tensor]:
        """Modification texts, the objects named in them (`name_entities`) → token ids and attention mask, int64 [B, L].

        L is the longest text of the batch (less work, same result), or `max_text_tokens` with `pad_to_max`.
        """
        named = self.name_entities(texts, categories, query_ids)
        encoded = self.tokenizer(
            [clean_text(text) for text in named],
            padding="max_length" if pad_to_max else "longest",
            padding_side="right",
            truncation=True,
            max_length=self.max_text_tokens,
            return_tensors="pt",
            return_token_type_ids=False,
        )
        return encoded["input_ids"], encoded["attention_mask"]

    def __call__(
        self,
        images: Sequence[Image.Image],
        texts: Sequence[str],
        regions: Sequence[Region | None],
        categories: Sequence[str | None] | None = None,
        query_ids: Sequence[str | None] | None = None,
    ) -> Inputs:
        """Reference images, modification texts and anchors (boxes or masks, in pixels of the images) of a batch.

        Args:
            images: the references, upright.
            texts: what changes.
            regions: the anchored objects; None where there is none.
            categories: what they are called; needed where `text_entity` is named.
            query_ids: of a benchmark; they choose the wording that names the object.

        Raises:
            OacirError: lists of different lengths, or a region that does not fit (`references`, `regions`).
        """
        counts = {"images": len(images), "texts": len(texts), "regions": len(regions)}
        if isinstance(texts, str) or len(set(counts.values())) > 1:
            said = ", ".join(f"{count} {name}" for name, count in counts.items())
            raise OacirError(
                f"a batch has a text and a region for each image, in lists; here are {said} (a region may be None)"
            )
        input_ids, attention_mask = self.texts(texts, categories, query_ids)
        masks = self.regions(regions, [image.size for image in images])
        return Inputs(self.pixels(self.references(images, regions)), input_ids, attention_mask, masks)

    def save_pretrained(self, save_directory: str | Path, max_shard_size: int | str | None = None) -> None:
        """Write settings and tokenizer files into a folder.

        Args:
            save_directory: made if needed.
            max_shard_size: what `push_to_hub` says to models; there are no weights here.
        """
        del max_shard_size
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        self.tokenizer.save_pretrained(folder)
        settings = {
            "processor_class": type(self).__name__,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "pad_ratio": self.pad_ratio,
            "max_text_tokens": self.max_text_tokens,
            "reference_view": self.reference_view,
            "text_entity": self.text_entity,
            "region": self.region,
        }
        (folder / SETTINGS_FILE).write_text(json.dumps(settings, indent=2) + "\n")

    @classmethod
    def from_pretrained(cls, directory: str | Path, **kwargs: Any) -> Self:
        """Load what `save_pretrained` wrote.

        Args:
            directory: folder or Hub id.
            kwargs: passed on to transformers where it is a Hub id (revision, token, cache_dir, …).

        Raises:
            OacirError: there is no processor.
        """
        kwargs.pop("trust_remote_code", None)  # AutoProcessor sends it; no code is ever loaded from there
        found = cached_file(
            str(directory), SETTINGS_FILE, _raise_exceptions_for_missing_entries=False, **kwargs
        )
        if found is None:
            raise OacirError(
                f"processor: {directory} holds no {SETTINGS_FILE}; name a folder that `save_pretrained` wrote"
            )
        settings = json.loads(Path(found).read_text())
        settings.pop("processor_class")
        return cls(AutoTokenizer.from_pretrained(directory, **kwargs), **settings)

    def _view_box(self, box: Box | None, size: tuple[int, int]) -> PixelBox:
        if box is None:
            what = (
                "sees only the object's box" if self.reference_view == "crop" else "sees a box drawn in red"
            )
            raise OacirError(
                f"this model {what}: give a box, or a mask that is not empty, for every reference"
            )
        return pixel_box(box, *size)

    def _square(self, image: Image.Image) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        from PIL import Image  # not above: the model itself does without pillow

        image = image.convert("RGB")
        size, geometry = self.image_size, input_geometry(*image.size, self.image_size, self.pad_ratio)
        if geometry.pad_x or geometry.pad_y:
            padded = (image.width + 2 * geometry.pad_x, image.height + 2 * geometry.pad_y)
            canvas = Image.new("RGB", padded)
            canvas.paste(image, (geometry.pad_x, geometry.pad_y))
            image = canvas
        if image.size != (geometry.resized_width, geometry.resized_height):
            image = image.resize((geometry.resized_width, geometry.resized_height), Image.Resampling.BICUBIC)
        left, top = geometry.crop_left, geometry.crop_top
        image = image.crop((left, top, left + size, top + size))
        return np.ascontiguousarray(np.asarray(image, np.uint8).transpose(2, 0, 1))
