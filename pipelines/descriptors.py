"""What two photos are compared by: a perceptual hash, and descriptors whose dot product is a cosine.

A named Hugging Face image model describes what the paper's thresholds speak of. Without one, an offline descriptor of
gradients and colours is used; it needs no weights, and thresholds of its own (see `calibrate`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from infra.base.errors import OacirError

Vectors = NDArray[np.float32]

SIDE_PX = 64
"""Side of the square that the offline descriptor looks at."""
GRADIENT_CELL_PX, ORIENTATIONS, BLOCK_CELLS = 16, 8, 2
HUES, SATURATIONS, VALUES, GRID = 6, 3, 3, 2
HASH_SIDE_PX, HASH_BITS_PER_SIDE = 32, 8


class Describer(Protocol):
    """Turns images into unit vectors."""

    @property
    def name(self) -> str:
        """Which descriptor this is; thresholds belong to (domain, name)."""
        ...

    def describe(self, images: Sequence[Image.Image]) -> Vectors:
        """Describe upright RGB images of any size.

        Returns:
            float32 [n, d]; every row has length 1. A row does not depend on the other images.
        """
        ...

    def describe_texts(self, texts: Sequence[str]) -> Vectors:
        """Describe texts in the same space.

        Returns:
            float32 [n, d]; every row has length 1.

        Raises:
            OacirError: it knows no texts.
        """
        ...


class OfflineDescriber:
    """Gradients (HOG) and colours (HSV histograms) of the whole photo, half of the weight each.

    - 64 × 64 pixels, 16-pixel cells, 8 orientations, 2 × 2-cell blocks, L2-Hys (scikit-image): 288 numbers;
    - the square root of a histogram of 6 hues × 3 saturations × 3 values in each of 2 × 2 quarters: 216 numbers.

    Both parts are made of counts, which alone would put every cosine near 1: each part's mean is subtracted, then each
    is brought to length 1. Photos of different things then have cosines of 0.3 to 0.5, one scene seen twice about 0.9.
    """

    name = "offline-hog-colour-1"

    def describe(self, images: Sequence[Image.Image]) -> Vectors:
        """See `Describer`. [n, 504]."""
        if not images:
            return np.zeros((0, _offline_width()), np.float32)
        small = [
            i.convert("RGB").resize((SIDE_PX, SIDE_PX), Image.Resampling.BOX, reducing_gap=2.0)
            for i in images
        ]
        parts = np.stack([_gradients(i) for i in small]), np.stack([_colours(i) for i in small])
        both: Vectors = np.concatenate([_centred(part) for part in parts], axis=1)
        return both * np.float32(math.sqrt(0.5))

    def describe_texts(self, texts: Sequence[str]) -> Vectors:  # noqa: ARG002  # it knows none
        """See `Describer`."""
        raise _knows_no_texts(self.name)


class HubDescriber:
    """A Hugging Face image model: a Hub id or a local folder.

    Models with an image projection (CLIP, SigLIP, …) give its output, all others their pooled output or, without one,
    the mean of the last hidden state. Images go through the model's own image processor.

    Raises:
        OacirError: the model or its image processor cannot be loaded.
    """

    def __init__(self, model: str) -> None:
        import torch
        from transformers import AutoImageProcessor, AutoModel

        self.name = model
        try:
            # the PIL processor exists everywhere and gives one result on every machine; the other one needs torchvision
            self.processor = AutoImageProcessor.from_pretrained(model, backend="pil")
            self.model = AutoModel.from_pretrained(model)
        except (OSError, ValueError) as error:
            raise OacirError(
                f"encoder.model {model}: cannot be loaded ({' '.join(str(error).split())[:200]});"
                " allowed are a Hub id or a local folder of an image model with its image processor,"
                " or null for the offline descriptor"
            ) from error
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model.eval().to(self.device)

    def describe(self, images: Sequence[Image.Image]) -> Vectors:
        """See `Describer`. [n, width of the model]."""
        import torch

        if not images:
            return np.zeros((0, 0), np.float32)
        pixels = self.processor(images=[i.convert("RGB") for i in images], return_tensors="pt")[
            "pixel_values"
        ]
        with torch.inference_mode():
            vectors = self._vectors(pixels.to(self.device)).float().cpu().numpy()
        return _unit(vectors.reshape(len(images), -1))

    def describe_texts(self, texts: Sequence[str]) -> Vectors:
        """See `Describer`: the text side of CLIP, SigLIP, …."""
        import torch
        from transformers import AutoTokenizer

        if not hasattr(self.model, "get_text_features"):
            raise _knows_no_texts(self.name)
        try:
            tokenizer = AutoTokenizer.from_pretrained(self.name)
        except (OSError, ValueError) as error:
            raise OacirError(
                f"encoder.model {self.name}: its tokenizer cannot be loaded ({' '.join(str(error).split())[:200]});"
                " put it beside the model, or set variants.by to colour or cluster"
            ) from error
        # SigLIP was trained on texts padded to a fixed length; others say how long they may be
        asked = tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=self._text_length(),
            return_tensors="pt",
        )
        with torch.inference_mode():
            found = self.model.get_text_features(**asked.to(self.device))
            vectors = getattr(found, "pooler_output", found).float().cpu().numpy()
        return _unit(vectors)

    def _text_length(self) -> int:
        return int(self.model.config.text_config.max_position_embeddings)

    def _vectors(self, pixels: Any) -> Any:
        if hasattr(self.model, "get_image_features"):
            return self.model.get_image_features(pixel_values=pixels).pooler_output
        output = self.model(pixel_values=pixels)
        pooled = getattr(output, "pooler_output", None)
        return output.last_hidden_state.mean(dim=1) if pooled is None else pooled


def make_describer(model: str | None) -> Describer:
    """The describer of a recipe: of the named model, or the offline one where none is named."""
    return OfflineDescriber() if model is None else HubDescriber(model)


def _knows_no_texts(name: str) -> OacirError:
    return OacirError(
        f"variants.by = labels: {name} reads no texts; set encoder.model to a CLIP-like model, or by to colour or"
        " cluster"
    )


def phash(image: Image.Image) -> int:
    """A 64-bit perceptual hash; photos that look alike differ in few bits.

    The signs, about their median, of the 8 × 8 lowest frequencies (without the constant ones) of the cosine transform
    of the photo in grey at 32 × 32 pixels.
    """
    from scipy.fft import dctn

    grey = image.convert("L").resize((HASH_SIDE_PX, HASH_SIDE_PX), Image.Resampling.BOX, reducing_gap=2.0)
    spectrum = dctn(np.asarray(grey, dtype=np.float64), norm="ortho")
    low = spectrum[1 : HASH_BITS_PER_SIDE + 1, 1 : HASH_BITS_PER_SIDE + 1]
    return int.from_bytes(np.packbits(low > np.median(low)).tobytes())


def calibrate(similarities: NDArray[np.floating[Any]], quantile: float) -> float:
    """A threshold such that `quantile` of the given cosines lie at or below it, rounded to two digits.

    For τ_high and τ_centric of a descriptor other than the paper's: give it the cosines of the pairs of one domain
    whose two photos show different instances, and a quantile near 1: what exceeds the result is more alike than photos
    that have nothing but the domain in common.

    Raises:
        ValueError: no cosines, or a quantile outside 0..1.
    """
    if not len(similarities) or not 0.0 <= quantile <= 1.0:
        raise ValueError(f"needs cosines and a quantile in 0..1, got {len(similarities)} and {quantile}")
    return round(float(np.quantile(similarities, quantile)), 2)


def _gradients(image: Image.Image) -> Vectors:
    from skimage.feature import hog

    grey = np.asarray(image.convert("L"), dtype=np.float32) / 255.0
    cell, block = (GRADIENT_CELL_PX,) * 2, (BLOCK_CELLS,) * 2
    vector = hog(grey, ORIENTATIONS, cell, block, block_norm="L2-Hys")
    return np.asarray(vector, dtype=np.float32)


def _colours(image: Image.Image) -> Vectors:
    hsv = np.asarray(image.convert("HSV"), dtype=np.int32)
    saturation = hsv[..., 1] * SATURATIONS // 256
    hue = np.where(saturation == 0, 0, hsv[..., 0] * HUES // 256)  # the hue of a grey means nothing
    colour = (hue * SATURATIONS + saturation) * VALUES + hsv[..., 2] * VALUES // 256
    quarter = np.arange(SIDE_PX) * GRID // SIDE_PX
    bins = HUES * SATURATIONS * VALUES
    cell = (quarter[:, None] * GRID + quarter[None, :]) * bins + colour
    counts = np.bincount(cell.ravel(), minlength=GRID * GRID * bins)
    return np.sqrt(counts / SIDE_PX**2).astype(np.float32)


def _offline_width() -> int:
    blocks = SIDE_PX // GRADIENT_CELL_PX - BLOCK_CELLS + 1
    return blocks**2 * BLOCK_CELLS**2 * ORIENTATIONS + GRID**2 * HUES * SATURATIONS * VALUES


def _centred(part: Vectors) -> Vectors:
    return _unit(part - part.mean(axis=1, keepdims=True))


def _unit(vectors: Vectors) -> Vectors:
    """Rows of length 1; a row of zeros (a photo of one colour has no gradients) becomes a constant one of length 1."""
    flat = np.linalg.norm(vectors, axis=1, keepdims=True) < 1e-6
    vectors = np.where(flat, np.float32(1.0), vectors)
    return (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
