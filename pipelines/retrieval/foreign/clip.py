"""CLIP: two towers into one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.retrieval.foreign.compose import unit
from pipelines.retrieval.foreign.family import Family, feature

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor


class Clip(Family):
    """`CLIPModel`; texts are cut to what its text tower has positions for."""

    model_types = ("clip",)
    padding: str | bool = True

    def model_class(self) -> Any:
        """See `Family`."""
        from transformers import AutoModel

        return AutoModel

    def prepare(self, folder: str) -> None:
        """See `Family`."""
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Family`; one vector each."""
        inputs = self.pixels(self.image_processor, images)
        return unit(feature(self.model.get_image_features(**inputs)))[:, None]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """See `Family`."""
        limit = self.model.config.text_config.max_position_embeddings
        return unit(
            feature(self.model.get_text_features(**self.tokens(self.tokenizer, texts, limit, self.padding)))
        )
