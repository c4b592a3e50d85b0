"""How a model that is not ours is asked: what it sees, what the text says, how both become one vector."""

from __future__ import annotations

from typing import Annotated, Any, Literal, NamedTuple

from pydantic import Field

from infra.base.config import Config
from training.model.views import ReferenceView, RegionKind, TextEntity

Setting = Literal["plain", "setting_1", "setting_2", "crop"]
Compose = Literal["sum", "slerp", "image", "text", "joint"]


class Way(NamedTuple):
    """What our own models' processors say of the same."""

    reference_view: ReferenceView
    text_entity: TextEntity
    region: RegionKind = "box"


SETTINGS: dict[str, Way] = {
    "plain": Way("full", "none"),
    "setting_1": Way("full", "named"),
    "setting_2": Way("drawn", "drawn"),
    "crop": Way("crop", "none"),
}


class ForeignSection(Config):
    """A Hugging Face model that maps images and texts to vectors, without training."""

    setting: Setting = "setting_1"
    """plain: the whole photo and the modification text, no word of the box; setting_1: the text names the object's
    category; setting_2: the box drawn in red, the text speaks of it; crop: only the pixels of the box."""
    compose: Compose | None = None
    """sum: of the unit vectors of image and text; slerp: on the great circle between them; image or text alone; joint:
    the model reads both at once (BLIP-2, Qwen-VL); null takes the family's first: joint where it can, else sum."""
    text_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of the text in sum and slerp; the others take no notice of it."""
    query_instruction: str = "Find a photo of the same object, changed as the text says."
    """What a model with a chat template is told before a query; others take no notice of it."""
    target_instruction: str = "Represent the photo."
    """The same before an image of the gallery."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of weights and arithmetic; vectors are float32."""

    @property
    def asking(self) -> Way:
        """What the setting means."""
        return SETTINGS[self.setting]

    def stated(self, compose: Compose) -> dict[str, Any]:
        """What goes with every score."""
        weight = {"text_weight": self.text_weight} if compose in ("sum", "slerp") else {}
        return {"setting": self.setting, "compose": compose, **weight, "dtype": self.dtype}
