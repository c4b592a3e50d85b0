"""Images of a benchmark as rows, like those of a feature store, but read from their files when asked for."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from infra.base.errors import OacirError
from training.images import open_image
from training.model.processing import normalise
from training.model.views import see

if TYPE_CHECKING:
    from infra.base.versions import Version
    from training.batches import Rows
    from training.model.adafocal import AdaFocalModel
    from training.model.processing import AdaFocalProcessor
    from training.model.views import PixelBox
    from training.reader import Plan

READ_TOGETHER = 4
"""Images that one worker reads and decodes at a time for the dev measurement."""


@dataclass(frozen=True)
class ImageSet:
    """Every image that a benchmark's queries and galleries use, and every view of a reference that the model sees."""

    version: Version
    """The benchmark."""
    shape: tuple[int, int]
    """(N, D) of the tokens that the tower makes of each."""
    ids: tuple[str, ...]
    """image_id, of a view `views.view_id`."""
    uris: tuple[str, ...]
    sha256s: tuple[str, ...]
    boxes: tuple[PixelBox | None, ...]
    """What a view is seen through; None of an image."""

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, image_ids: Sequence[str]) -> Rows:
        """The row of each image (of each view, by its `view_id`).

        Raises:
            OacirError: there is no such image.
        """
        row_of = {name: row for row, name in enumerate(self.ids)}
        missing = [name for name in image_ids if name not in row_of]
        if missing:
            raise OacirError(f"{self.version.url}: {len(missing)} images are not in it, first {missing[0]}")
        return np.array([row_of[name] for name in image_ids], np.int64)

    def image(self, row: int) -> Image.Image:
        """The upright image of a row, whole also where the row is a view.

        Raises:
            OacirError: it is gone, or no longer the one that the benchmark was built with.
        """
        return open_image(self.uris[row], self.sha256s[row])

    def seen(self, row: int, processor: AdaFocalProcessor) -> Image.Image:
        """What is encoded of a row: the image, or the view."""
        image, box = self.image(row), self.boxes[row]
        return image if box is None else see(image, box, processor.reference_view)


class PixelTokens:
    """Tokens of an `ImageSet` by a tower as it is at the moment: for the dev measurement of a tower that learns.

    Args:
        plan: holds the images and the processor.
        model: with its tower.
        device: where the model is.
    """

    def __init__(self, plan: Plan, model: AdaFocalModel, device: torch.device) -> None:
        self.plan, self.model, self.device = plan, model, device

    def tokens(self, rows: Rows) -> Tensor:
        """The tokens of those rows, float32 [n, N, D] in their order; each image is encoded once, without gradient."""
        images, processor = self.plan.images, self.plan.processor
        distinct, place = np.unique(rows, return_inverse=True)
        with ThreadPoolExecutor(READ_TOGETHER) as pool:
            seen = list(pool.map(lambda row: images.seen(int(row), processor), distinct))
        squares = processor.squares(seen).to(self.device)
        with torch.no_grad():
            tokens = self.model.encode_pixels(normalise(squares)).float()
        return tokens[torch.from_numpy(place).to(self.device)]


def image_set(dataset: Version, processor: AdaFocalProcessor, shape: tuple[int, int]) -> ImageSet:
    """The images and views that a model with this processor sees of a benchmark (`stores.needed`).

    Args:
        dataset: the benchmark.
        processor: the model's.
        shape: (N, D) of the tower's tokens.
    """
    from training.stores import needed

    rows = [row for contents in needed(dataset, processor) for row in contents.images.to_pylist()]
    boxes = (row.get("box") for row in rows)
    return ImageSet(
        dataset,
        shape,
        tuple(row["image_id"] for row in rows),
        tuple(row["uri"] for row in rows),
        tuple(row["sha256"] for row in rows),
        tuple(None if box is None else (box[0], box[1], box[2], box[3]) for box in boxes),
    )
