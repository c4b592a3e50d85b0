"""The section of a recipe that says where image tokens come from, and what of the image tower is trained."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from infra.base.config import Config

Positive = Annotated[int, Field(gt=0)]
Share = Annotated[float, Field(gt=0, le=1)]
TRAINED_MODES = ("last", "lora", "full")
"""Modes after which the model has another tower than the one it started from."""
ONLY_IN = {
    "layers": ("last",),
    "lora_rank": ("lora",),
    "lora_alpha": ("lora",),
    "learning_rate": TRAINED_MODES,
}
"""Field → the modes that it has an effect in, where not in all that read pixels."""


class TowerSection(Config):
    """The image tower while training: frozen tokens from a store, or pixels in every step."""

    mode: Literal["stored", "frozen", "last", "lora", "full"] = "stored"
    """stored reads what `oacir embed` wrote. The others read pixels in every step (online): frozen trains nothing of
    the tower, last its last `layers` blocks, lora adapters beside its attention, full all of it."""
    layers: Positive = 2
    """Of mode last: how many blocks, counted from the end."""
    lora_rank: Positive = 8
    """Of mode lora: rank of the adapters."""
    lora_alpha: Positive = 16
    """Of mode lora: the adapters' outputs are scaled by this over the rank."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-5
    """Peak rate of what is trained of the tower."""
    crop: Share | None = None
    """Cut a random square out of every image, its side at least this share of the image's shorter side; the region and
    the target's object stay inside. null cuts nothing."""
    flip: bool = False
    """Mirror every other image at random; texts that say left or right become wrong."""
    colour: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Change brightness, contrast and saturation by random factors within 1 ± this; texts that name colours suffer."""
    readers: Positive = 1
    """Processes beside each worker that read, decode and augment; `scaling.cpus_per_worker` counts them too."""

    @property
    def online(self) -> bool:
        """Whether training reads pixels."""
        return self.mode != "stored"

    @property
    def trained(self) -> bool:
        """Whether anything of the tower is trained."""
        return self.mode in TRAINED_MODES

    @property
    def augmented(self) -> bool:
        """Whether images are changed at random."""
        return self.crop is not None or self.flip or self.colour > 0

    @model_validator(mode="after")
    def _fits(self) -> Self:
        fields = type(self).model_fields
        changed = [n for n in fields if n != "mode" and getattr(self, n) != fields[n].default]
        if not self.online and changed:
            raise ValueError(
                f"{', '.join(changed)}: no effect with mode 'stored'; set mode to frozen, last, lora or full"
            )
        for name in changed:
            modes = ONLY_IN.get(name, (self.mode,))
            if self.mode not in modes:
                raise ValueError(f"{name} has an effect only with mode {' or '.join(modes)}, not {self.mode}")
        return self
