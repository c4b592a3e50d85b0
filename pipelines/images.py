"""How the pipelines decode an image: `training.images`, which training reads pixels with too."""

from training.images import (
    Box,
    DecodedImage,
    ImageLimits,
    ImageRejected,
    decode,
    stored_box,
    turned,
    upright_box,
)

__all__ = [
    "Box", "DecodedImage", "ImageLimits", "ImageRejected", "decode", "stored_box", "turned", "upright_box",
]  # fmt: skip
