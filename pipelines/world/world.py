"""The procedural world's two functions: which images an instance has, and the bytes and truth of one of them."""

from __future__ import annotations

import io
from dataclasses import dataclass
from typing import Any

from pipelines.world.config import WorldConfig
from pipelines.world.render import paint
from pipelines.world.scenes import SceneSpec, instance_name, scenes_of
from pipelines.world.shapes import CATEGORIES
from pipelines.world.texts import modification_text

__all__ = ["RenderedScene", "SceneSpec", "modification_text", "render_scene", "scene_specs"]


@dataclass(frozen=True)
class RenderedScene:
    """One image of the world with its exact truth."""

    jpeg: bytes
    """The file's bytes; equal for equal options and spec, wherever they are made."""
    record: dict[str, Any]
    """image_id, domain, instance_id, category, box (x1, y1, x2, y2 in px) and context; JSON-able."""


def scene_specs(config: WorldConfig, domain: str, instance_index: int) -> list[SceneSpec]:
    """Every image of instance `instance_index` of a domain, without rendering any.

    Raises:
        ValueError: the domain or index is not part of this world.
    """
    if domain not in config.domains or not 0 <= instance_index < config.instances_per_domain:
        raise ValueError(f"no instance {instance_index} of '{domain}' in a world of {config.domains}")
    return list(scenes_of(config, domain, instance_index))


def render_scene(config: WorldConfig, spec: SceneSpec) -> RenderedScene:
    """Render one image."""
    picture = paint(config, spec)
    out = io.BytesIO()
    picture.image.save(out, format="JPEG", quality=config.jpeg_quality, subsampling=0)
    record = {
        "image_id": spec.image_id,
        "domain": spec.domain,
        "instance_id": f"{spec.domain}/{instance_name(spec.domain, spec.instance_index)}",
        "category": CATEGORIES[spec.domain],
        "box": list(picture.box),
        "context": spec.context.record(),
    }
    return RenderedScene(out.getvalue(), record)
