"""BLIP-2 as it is trained for retrieval: the Q-Former reads the photo alone, the text alone, or both at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pipelines.retrieval.foreign.compose import unit
from pipelines.retrieval.foreign.family import Family

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

TEXT_TOKENS = 32


class Blip2(Family):
    """`Blip2ForImageTextRetrieval`; an image is the set of its query tokens' projections."""

    model_types = ("blip-2",)
    composes = ("joint", "sum", "slerp", "image", "text")

    def model_class(self) -> Any:
        """See `Family`."""
        from transformers import Blip2ForImageTextRetrieval

        return Blip2ForImageTextRetrieval

    def prepare(self, folder: str) -> None:
        """See `Family`."""
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        self.image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Family`."""
        seen = self._see(images)
        hidden = self._former(self.model.query_tokens.expand(len(seen), -1, -1), seen)
        return unit(self.model.vision_projection(hidden.to(self.model.vision_projection.weight.dtype)))

    def texts(self, texts: Sequence[str]) -> Tensor:
        """See `Family`."""
        words = self.tokens(self.tokenizer, texts, TEXT_TOKENS)
        hidden = self.model.qformer(
            query_embeds=self.model.embeddings(input_ids=words["input_ids"]),
            query_length=0,
            attention_mask=words["attention_mask"],
        ).last_hidden_state
        return self._text_vector(hidden[:, 0])

    def joint(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """The text's [CLS] beside query tokens that see the photo: what β = 0 of ours asks with."""
        import torch

        words = self.tokens(self.tokenizer, texts, TEXT_TOKENS)
        seen = self._see(images)
        queries = self.model.query_tokens.expand(len(seen), -1, -1)
        both = self.model.embeddings(input_ids=words["input_ids"], query_embeds=queries)
        mask = torch.cat(
            [words["attention_mask"].new_ones(queries.shape[:2]), words["attention_mask"]], dim=1
        )
        hidden = self._former(both, seen, queries.shape[1], mask)
        return self._text_vector(hidden[:, queries.shape[1]])

    def _see(self, images: Sequence[Image.Image]) -> Tensor:
        found: Tensor = self.model.vision_model(**self.pixels(self.image_processor, images)).last_hidden_state
        return found

    def _former(
        self, embeds: Tensor, seen: Tensor, queries: int | None = None, mask: Tensor | None = None
    ) -> Tensor:
        import torch

        around = torch.ones(seen.shape[:2], dtype=torch.long, device=seen.device)
        hidden: Tensor = self.model.qformer(
            query_embeds=embeds,
            query_length=queries,
            attention_mask=mask,
            encoder_hidden_states=seen,
            encoder_attention_mask=around,
        ).last_hidden_state
        return hidden

    def _text_vector(self, hidden: Tensor) -> Tensor:
        projection = self.model.text_projection
        return unit(projection(hidden.to(projection.weight.dtype)))
