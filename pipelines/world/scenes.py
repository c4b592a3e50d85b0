"""Scenes: which contexts an instance is seen in. Cheap (no pixels) and a pure function of options and indices."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from pipelines.world.config import WorldConfig
from pipelines.world.places import PLACES

STUDIO_PLACE = "studio"
LIGHTS = {
    "fashion": ("daylight", "lamplight", "neon"),
    "car": ("daylight", "sunset", "night"),
    "product": ("daylight", "lamplight", "dim"),
    "landmark": ("daylight", "sunset", "night"),
}
"""Domain → kinds of light; the first is the plain one."""
WEATHERS = ("clear", "rain", "snow", "fog")
"""Weather at places under the sky of cars and landmarks; elsewhere always clear."""
POSITIONS = ("left", "right")
DISTANCES = ("near", "far")
"""The near objects stand in front, the far ones behind them: position and distance make four places to stand."""
POSES = {
    "fashion": ("upright", "tilted"),
    "car": ("right", "left"),
    "product": ("upright", "lying"),
    "landmark": ("upright",),
}
"""Domain → how the anchored object stands or which way it faces."""


@dataclass(frozen=True)
class Context:
    """Everything about a scene but the instance itself: the exact truth that texts are written from."""

    kind: str
    """scene, near_duplicate or class_centric."""
    place: str
    light: str
    weather: str
    position: str
    distance: str
    pose: str
    companions: tuple[str, ...] = ()
    """Instance ids of the foreign objects."""
    stated: tuple[str, ...] = ()
    """Facets of which a text states all that differ, and no other; empty where texts name the place and one change."""

    def record(self) -> dict[str, Any]:
        """The context as a JSON-able mapping."""
        told = {**asdict(self), "companions": list(self.companions), "stated": list(self.stated)}
        return {key: value for key, value in told.items() if key != "stated" or value}


@dataclass(frozen=True)
class Placement:
    """Where one object stands in the image."""

    index: int
    """Instance within the domain."""
    position: str
    distance: str
    pose: str


@dataclass(frozen=True)
class SceneSpec:
    """What `render_scene` needs: one image to be."""

    image_id: str
    """`<domain>/<instance>/<image>.jpg`"""
    domain: str
    instance_index: int
    context: Context
    companions: tuple[Placement, ...]
    noise_key: str
    """Seeds what no text speaks of: exact offsets, decoration, weather drops."""
    jitter: float = 0.0
    """A near-duplicate's shift as a fraction of the image side."""


def instance_name(domain: str, index: int) -> str:
    """Folder of an instance; says nothing of its look."""
    return f"{domain}-{index:05d}"


def is_reserve(config: WorldConfig, domain: str, index: int) -> bool:
    """Whether the instance has few scenes and thereby ends up in the reserve of distractors."""
    return random.Random(f"{config.seed}/{domain}/{index}/reserve").random() < config.reserve_fraction


def scenes_of(config: WorldConfig, domain: str, index: int) -> Iterator[SceneSpec]:
    """Every image of one instance: its scenes, then near-duplicates of some, then any catalogue-like views.

    The result depends on the seed, the domain, the index and the options alone, never on other instances' scenes.
    """
    name = instance_name(domain, index)
    rng = random.Random(f"{config.seed}/{domain}/{index}/scenes")
    count = config.reserve_scenes if is_reserve(config, domain, index) else config.scenes_per_instance
    if config.places_per_instance is None:
        places = rng.sample(sorted(PLACES[domain]), count)
        scenes = [_scene(config, domain, index, number, place, rng) for number, place in enumerate(places)]
    else:
        scenes = _competing(config, domain, index, count, rng)
    yield from scenes
    for scene in scenes:
        if rng.random() < config.near_duplicate_fraction:
            yield SceneSpec(
                image_id=scene.image_id.replace(".jpg", "-again.jpg"),
                domain=domain,
                instance_index=index,
                context=Context(**{**asdict(scene.context), "kind": "near_duplicate"}),
                companions=scene.companions,
                noise_key=scene.noise_key,
                jitter=rng.uniform(0.006, 0.014) * rng.choice((-1, 1)),
            )
    if rng.random() < config.class_centric_fraction:
        for number in range(config.class_centric_views):
            key = f"{domain}/{name}/studio-{number:02d}.jpg"
            context = Context(
                "class_centric", STUDIO_PLACE, LIGHTS[domain][0], "clear", "middle", "near", POSES[domain][0]
            )
            yield SceneSpec(key, domain, index, context, (), f"{config.seed}/{key}")


def _competing(
    config: WorldConfig, domain: str, index: int, count: int, rng: random.Random
) -> list[SceneSpec]:
    """Scenes at few places, no two of one place under the same light and in the same company."""
    places = _places(config, domain, index)
    most = min(config.companions, config.instances_per_domain - 1)
    company = range(most + 1) if config.varied_company else [most]
    kinds = {
        place: rng.sample(
            [(light, n) for light in LIGHTS[domain] for n in company], len(LIGHTS[domain]) * len(company)
        )
        for place in places
    }
    weather = {place: rng.choice(_weathers(domain)) for place in places}
    stated = ("place", "light", "company") if config.varied_company else ("place", "light")
    found = []
    for number in range(count):
        place = places[number % len(places)]
        light, others = kinds[place][number // len(places) % len(kinds[place])]
        spec = _scene(config, domain, index, number, place, rng)
        context = replace(
            spec.context,
            light=light,
            weather=weather[place],
            companions=spec.context.companions[:others],
            stated=stated,
        )
        found.append(replace(spec, context=context, companions=spec.companions[:others]))
    return found


def _places(config: WorldConfig, domain: str, index: int) -> list[str]:
    """Where an instance is seen; elsewhere than its family as far as there are places, since an image of one with
    another beside it shows what an image of the other shows."""
    count = config.places_per_instance or 1
    first = _family(config, index).start
    order = random.Random(f"{config.seed}/{domain}/{first}/places").sample(
        sorted(PLACES[domain]), len(PLACES[domain])
    )
    return [order[((index - first) * count + i) % len(order)] for i in range(count)]


def _weathers(domain: str) -> tuple[str, ...]:
    return WEATHERS if domain in ("car", "landmark") else WEATHERS[:1]


def _scene(
    config: WorldConfig, domain: str, index: int, number: int, place: str, rng: random.Random
) -> SceneSpec:
    image_id = f"{domain}/{instance_name(domain, index)}/scene-{number:02d}.jpg"
    stands = rng.sample([(p, d) for p in POSITIONS for d in DISTANCES], 4)
    others = _others(config, index, rng)
    companions = tuple(
        Placement(other, *stand, rng.choice(POSES[domain]))
        for other, stand in zip(others, stands[1:], strict=False)
    )
    context = Context(
        kind="scene",
        place=place,
        light=rng.choice(LIGHTS[domain]),
        weather=rng.choice(_weathers(domain)),
        position=stands[0][0],
        distance=stands[0][1],
        pose=rng.choice(POSES[domain]),
        companions=tuple(f"{domain}/{instance_name(domain, other)}" for other in others),
    )
    return SceneSpec(image_id, domain, index, context, companions, f"{config.seed}/{image_id}")


def _others(config: WorldConfig, index: int, rng: random.Random) -> list[int]:
    count = min(config.companions, config.instances_per_domain - 1)
    drawn = rng.sample(range(config.instances_per_domain - 1), count)
    others = [other + (other >= index) for other in drawn]
    if config.palette_family > 1:
        relatives = [other for other in _family(config, index) if other != index]
        if relatives and others:
            first = rng.choice(relatives)
            others = [first, *(other for other in others if other != first)][:count]
    return others


def _family(config: WorldConfig, index: int) -> range:
    """The instances that share the palette of one, itself among them."""
    start = index - index % config.palette_family
    return range(start, min(start + config.palette_family, config.instances_per_domain))
