"""Embedding models made of Qwen's vision-language models: the last hidden state of a chat is the vector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from infra.base.errors import OacirError
from pipelines.retrieval.foreign.compose import unit
from pipelines.retrieval.foreign.family import Family

if TYPE_CHECKING:
    from PIL import Image
    from torch import Tensor

TEXT_TOKENS = 512
"""Words of a query beside its photo; longer texts are cut."""


class QwenVL(Family):
    """The chat template of the checkpoint, an instruction of the recipe before it, the last token's state after it.

    The photo's place in the chat is widened here to as many tokens as its patches make: the processor of transformers
    would bring the reader of videos along, and with it torchvision.
    """

    model_types = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")
    composes = ("joint", "sum", "slerp", "image", "text")

    def model_class(self) -> Any:
        """See `Family`."""
        from transformers import AutoModel

        return AutoModel

    def prepare(self, folder: str) -> None:
        """See `Family`."""
        from transformers import AutoImageProcessor, AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        # to the right, so that no vector depends on what else is in its batch
        self.tokenizer.padding_side = "right"
        self.image_processor = AutoImageProcessor.from_pretrained(folder, local_files_only=True)
        if not self.tokenizer.chat_template:
            raise OacirError(f"--model {folder}: has no chat template; give a checkpoint with one")
        self.mark = self.tokenizer.convert_ids_to_tokens(self.model.config.image_token_id)

    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Family`; one vector each."""
        return self._embed(self.section.target_instruction, images, None)[:, None]

    def texts(self, texts: Sequence[str]) -> Tensor:
        """See `Family`."""
        return self._embed(self.section.query_instruction, None, texts)

    def references(self, images: Sequence[Image.Image]) -> Tensor:
        """See `Family`; told what a query is told."""
        return self._embed(self.section.query_instruction, images, None)

    def joint(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """See `Family`."""
        return self._embed(self.section.query_instruction, images, texts)

    def _embed(
        self, instruction: str, images: Sequence[Image.Image] | None, texts: Sequence[str] | None
    ) -> Tensor:
        import torch

        chats = [self._chat(instruction, images is not None, text) for text in self._short(images, texts)]
        more: dict[str, Any] = {}
        if images is not None:
            more = dict(self.pixels(self.image_processor, images))
            patches = more["image_grid_thw"].prod(-1) // self.image_processor.merge_size**2
            chats = [c.replace(self.mark, self.mark * int(n)) for c, n in zip(chats, patches, strict=True)]
        words = self.tokenizer(chats, padding=True, add_special_tokens=False, return_tensors="pt").to(
            self.device
        )
        if images is not None:
            more["mm_token_type_ids"] = (words["input_ids"] == self.model.config.image_token_id).int()
        hidden = self.model(**words, **more, use_cache=False).last_hidden_state
        last = words["attention_mask"].sum(1) - 1
        return unit(hidden[torch.arange(len(hidden), device=hidden.device), last])

    def _short(self, images: Sequence[Image.Image] | None, texts: Sequence[str] | None) -> list[str | None]:
        if texts is None:
            return [None] * len(images or ())
        ids = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        self.cut |= {text for text, own in zip(texts, ids, strict=True) if len(own) > TEXT_TOKENS}
        return [
            self.tokenizer.decode(own[:TEXT_TOKENS]) if len(own) > TEXT_TOKENS else text
            for text, own in zip(texts, ids, strict=True)
        ]

    def _chat(self, instruction: str, image: bool, text: str | None) -> str:
        # a text that spells the mark would ask for a photo that is not there
        said = [] if text is None else [{"type": "text", "text": text.replace(self.mark, " ")}]
        content = [*([{"type": "image"}] if image else []), *said]
        chat = [
            {"role": "system", "content": [{"type": "text", "text": instruction}]},
            {"role": "user", "content": content},
        ]
        found: str = self.tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
        return found
