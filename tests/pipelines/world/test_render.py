"""Rendering: what stands in front hides the anchored object, and its box shrinks to what is still seen."""

from __future__ import annotations

from dataclasses import replace

from pipelines.world.config import WorldConfig
from pipelines.world.render import paint
from pipelines.world.scenes import Placement, SceneSpec
from pipelines.world.world import scene_specs

WORLD = WorldConfig(instances_per_domain=12, image_size_px=128, supersampling=1, companions=0)


def behind(spec: SceneSpec) -> SceneSpec:
    """The scene with its anchor in the back row on the left, in plain light and weather."""
    context = replace(
        spec.context, position="left", distance="far", light="daylight", weather="clear", pose="upright"
    )
    return replace(spec, context=context)


def in_front(index: int) -> tuple[Placement, ...]:
    return (Placement(index, "left", "near", "upright"),)


def test_a_companion_in_front_cuts_the_box_where_it_hides_the_anchor() -> None:
    shrunk = 0
    for index in range(8):
        alone = behind(scene_specs(WORLD, "fashion", index)[0])
        free = paint(WORLD, alone)
        for other in (i for i in range(12) if i != index):
            covered = paint(WORLD, replace(alone, companions=in_front(other)))
            (x1, y1, x2, y2), (a1, b1, a2, b2) = covered.box, free.box
            assert x1 >= a1
            assert y1 == b1  # the companion stands lower and never reaches the anchor's top
            assert x2 <= a2
            assert y2 <= b2
            shrunk += y2 < b2
    assert shrunk > 0
