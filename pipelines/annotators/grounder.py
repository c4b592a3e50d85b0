"""Where an object is in a photo, by a detector that is told what to look for (Grounding DINO, MM-Grounding-DINO)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from PIL import Image

from infra.base.errors import OacirError
from pipelines.images import Box

KINDS = ("grounding-dino", "mm-grounding-dino")
"""Model types of transformers whose outputs are read here: logits [B, Q, T], boxes [B, Q, 4] as centre and size."""


class Seen(NamedTuple):
    """The likeliest place of an object."""

    box: Box
    """x1, y1, x2, y2 in whole pixels of the upright photo, half-open."""
    score: float
    """0..1: the detector's confidence."""


class Grounder:
    """A detector in memory."""

    def __init__(self, model: str, *, gpu: bool) -> None:
        """Load it.

        Args:
            model: Hub id or local folder.
            gpu: whether it computes on the GPU of this process.

        Raises:
            OacirError: it cannot be loaded, is no detector of these kinds, or there is no GPU.
        """
        import torch
        from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

        if gpu and not torch.cuda.is_available():
            raise OacirError("grounding.gpus asks for a GPU, this worker has none; set it to 0")
        self.device = "cuda" if gpu else "cpu"
        try:
            kind = AutoConfig.from_pretrained(model).model_type
            if kind not in KINDS:
                raise OacirError(
                    f"grounding.model = {model}: is a {kind} model; allowed are {', '.join(KINDS)}"
                )
            self.processor = AutoProcessor.from_pretrained(model)
            self.model = AutoModelForZeroShotObjectDetection.from_pretrained(model).to(self.device).eval()
        except (OSError, ValueError, ImportError) as error:
            line = " ".join(str(error).split())[:300]
            raise OacirError(f"grounding.model = {model}: cannot be loaded ({line})") from error

    def look_for(
        self, photos: Sequence[Image.Image], labels: Sequence[str], sizes: Sequence[tuple[int, int]]
    ) -> list[Seen | None]:
        """The likeliest place of one object in each photo.

        Args:
            photos: upright, RGB; may be smaller than they are.
            labels: what to look for in each.
            sizes: full width and height in pixels of each.

        Returns:
            One for each; None where the likeliest box holds no pixel of the photo.
        """
        import torch

        texts = [caption(label) for label in labels]
        inputs = self.processor(images=list(photos), text=texts, padding=True, return_tensors="pt")
        with torch.inference_mode():
            found = self.model(**inputs.to(self.device))
        scores, best = found.logits.float().sigmoid().amax(dim=-1).max(dim=-1)  # [B]
        boxes = found.pred_boxes[torch.arange(len(best)), best].float().cpu().tolist()
        return [
            Seen(box, score) if (box := in_pixels(place, size)) else None
            for place, score, size in zip(boxes, scores.cpu().tolist(), sizes, strict=True)
        ]


def caption(label: str) -> str:
    """A label as these detectors were trained to read it: lower case, with a full stop."""
    return f"{' '.join(label.lower().replace('.', ' ').split())}."


def in_pixels(place: Sequence[float], size: tuple[int, int]) -> Box | None:
    """A box in shares of a photo as one in whole pixels, made larger to full pixels and cut at the photo's edges.

    Args:
        place: centre x, centre y, width, height, in shares of the photo's width and height.
        size: full width and height of the upright photo in pixels.

    Returns:
        x1, y1, x2, y2, half-open; None where nothing of it lies in the photo.
    """
    if not all(map(math.isfinite, place)):
        return None
    x, y, width, height = place
    x1 = max(0, math.floor((x - width / 2) * size[0]))
    y1 = max(0, math.floor((y - height / 2) * size[1]))
    x2 = min(size[0], math.ceil((x + width / 2) * size[0]))
    y2 = min(size[1], math.ceil((y + height / 2) * size[1]))
    return (float(x1), float(y1), float(x2), float(y2)) if x1 < x2 and y1 < y2 else None
