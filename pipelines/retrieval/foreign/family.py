"""What a family of models has to offer: a small file each, and a line in `load.FAMILIES`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from infra.base.errors import OacirError
from pipelines.retrieval.foreign.compose import unit
from pipelines.retrieval.foreign.config import Compose, ForeignSection

if TYPE_CHECKING:
    import torch
    from PIL import Image
    from torch import Tensor


class Family(ABC):
    """A model in memory, in eval mode, with its preprocessing.

    Args:
        folder: of `save_pretrained`, with the processor's files.
        section: how it is asked.
        device: where it computes.

    Raises:
        OacirError: it cannot be loaded, or lacks weights, so that some would be random.
    """

    model_types: ClassVar[tuple[str, ...]]
    """`model_type` of the configurations that it reads."""
    composes: ClassVar[tuple[Compose, ...]] = ("sum", "slerp", "image", "text")
    """How it can make a query of image and text; the first unless told otherwise."""

    def __init__(self, folder: str, section: ForeignSection, device: torch.device) -> None:
        self.section, self.device = section, device
        self.cut: set[str] = set()
        """Texts that were longer than the model reads."""
        self.model = loaded(self.model_class(), folder, section.dtype).eval().to(device)
        self.prepare(folder)

    @abstractmethod
    def model_class(self) -> Any:
        """The class whose `from_pretrained` reads the weights."""

    @abstractmethod
    def prepare(self, folder: str) -> None:
        """Load what turns photos and texts into the model's inputs."""

    @abstractmethod
    def images(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors of photos of the gallery, float32 [n, M, d]; a score is the best of the M."""

    @abstractmethod
    def texts(self, texts: Sequence[str]) -> Tensor:
        """Unit vectors of texts, float32 [n, d]."""

    def references(self, images: Sequence[Image.Image]) -> Tensor:
        """Unit vectors of photos as parts of a query, float32 [n, d]: the mean of what a gallery has of them."""
        return unit(self.images(images).mean(1))

    def joint(self, images: Sequence[Image.Image], texts: Sequence[str]) -> Tensor:
        """Unit vectors of queries whose photo and text the model reads at once, float32 [n, d]."""
        raise NotImplementedError(
            f"{type(self).__name__} has no joint reading of {len(images)} and {len(texts)}"
        )

    def tokens(self, tokenizer: Any, texts: Sequence[str], limit: int, padding: str | bool = True) -> Any:
        """Token ids and masks of texts, cut to `limit` tokens and counted where they were longer."""
        lengths = [len(ids) for ids in tokenizer(list(texts))["input_ids"]]
        self.cut |= {text for text, length in zip(texts, lengths, strict=True) if length > limit}
        return tokenizer(
            list(texts), padding=padding, truncation=True, max_length=limit, return_tensors="pt"
        ).to(self.device)

    def pixels(self, processor: Any, images: Sequence[Image.Image]) -> Any:
        """An image processor's outputs, the pixels in the model's type."""
        found = processor(images=list(images), return_tensors="pt").to(self.device)
        found["pixel_values"] = found["pixel_values"].to(self.model.dtype)
        return found


def loaded(kind: Any, folder: str, dtype: str) -> Any:
    """A model of transformers with every weight from the folder.

    Raises:
        OacirError: it cannot be read, or a weight is not there.
    """
    import torch

    try:
        model, info = kind.from_pretrained(
            folder, dtype=getattr(torch, dtype), local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, ImportError, RuntimeError, KeyError) as error:
        line = " ".join(str(error).split())[:300]
        raise OacirError(f"--model {folder}: cannot be loaded ({line})") from error
    missing = sorted(info["missing_keys"]) + sorted(str(key) for key in info.get("mismatched_keys", ()))
    if missing:
        raise OacirError(
            f"--model {folder}: {len(missing)} weights of {kind.__name__} are not in it and would be random, first"
            f" {missing[0]}; give a checkpoint that was trained for retrieval"
        )
    return model


def feature(found: Any) -> Tensor:
    """The vectors [n, d] among what `get_image_features` and `get_text_features` return."""
    vectors: Tensor = getattr(found, "pooler_output", found)
    return vectors
