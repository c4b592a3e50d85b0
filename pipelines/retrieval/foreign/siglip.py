"""SigLIP and SigLIP 2 at a fixed resolution: CLIP's shape, texts padded to their full length as in its training."""

from __future__ import annotations

from pipelines.retrieval.foreign.clip import Clip


class Siglip(Clip):
    """`SiglipModel`."""

    model_types = ("siglip",)
    padding = "max_length"
