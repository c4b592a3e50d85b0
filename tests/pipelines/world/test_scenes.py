"""Which contexts an instance is seen in: pure functions of the options, the seed and the index."""

from __future__ import annotations

import pytest

from pipelines.world.config import DOMAINS, WorldConfig
from pipelines.world.places import PLACES
from pipelines.world.scenes import LIGHTS, POSES, SceneSpec, instance_name, is_reserve, scenes_of

CONFIG = WorldConfig(instances_per_domain=50)


def scenes(config: WorldConfig, domain: str, index: int) -> list[SceneSpec]:
    return [s for s in scenes_of(config, domain, index) if s.context.kind == "scene"]


@pytest.mark.parametrize("domain", DOMAINS)
def test_an_instance_is_seen_at_as_many_places_as_it_has_scenes(domain: str) -> None:
    for index in range(20):
        found = scenes(CONFIG, domain, index)
        places = [s.context.place for s in found]
        wanted = CONFIG.reserve_scenes if is_reserve(CONFIG, domain, index) else CONFIG.scenes_per_instance
        assert len(places) == len(set(places)) == wanted
        assert set(places) <= set(PLACES[domain])
        assert {s.context.light for s in found} <= set(LIGHTS[domain])
        assert {s.context.pose for s in found} <= set(POSES[domain])
        assert [s.image_id for s in found] == [
            f"{domain}/{instance_name(domain, index)}/scene-{n:02d}.jpg" for n in range(wanted)
        ]


@pytest.mark.parametrize("domain", DOMAINS)
def test_nobody_stands_where_another_stands(domain: str) -> None:
    for index in range(20):
        for spec in scenes(CONFIG, domain, index):
            stands = [(p.position, p.distance) for p in spec.companions]
            stands.append((spec.context.position, spec.context.distance))
            assert len(set(stands)) == len(stands) == 1 + CONFIG.companions
            assert index not in {p.index for p in spec.companions}
            assert len({p.index for p in spec.companions}) == CONFIG.companions


def test_weather_is_outside_only() -> None:
    seen = {d: {s.context.weather for i in range(30) for s in scenes(CONFIG, d, i)} for d in DOMAINS}
    assert seen["fashion"] == seen["product"] == {"clear"}
    assert seen["car"] == seen["landmark"] == {"clear", "rain", "snow", "fog"}


def test_a_near_duplicate_is_its_scene_moved_by_a_hair() -> None:
    config = CONFIG.model_copy(update={"near_duplicate_fraction": 1.0})
    found = {s.image_id: s for s in scenes_of(config, "car", 3)}
    again = [s for s in found.values() if s.context.kind == "near_duplicate"]
    assert len(again) == len(scenes(config, "car", 3))
    for spec in again:
        first = found[spec.image_id.replace("-again", "")]
        assert spec.context.record() | {"kind": "scene"} == first.context.record()
        assert (spec.companions, spec.noise_key) == (first.companions, first.noise_key)
        assert first.jitter == 0.0
        assert 0.006 <= abs(spec.jitter) <= 0.014


def test_scenes_depend_on_seed_and_instance_and_not_on_order() -> None:
    first = list(scenes_of(CONFIG, "product", 7))
    list(scenes_of(CONFIG, "product", 8))
    assert list(scenes_of(CONFIG, "product", 7)) == first
    other = CONFIG.model_copy(update={"seed": 1})
    assert list(scenes_of(other, "product", 7)) != first
    contexts = [[s.context for s in scenes(CONFIG, "product", i)] for i in range(10)]
    assert all(contexts.count(c) == 1 for c in contexts)


def test_the_reserve_is_a_share_of_the_instances() -> None:
    config = CONFIG.model_copy(update={"reserve_fraction": 0.25})
    share = sum(is_reserve(config, d, i) for d in DOMAINS for i in range(500)) / 2000
    assert share == pytest.approx(0.25, abs=0.03)
    none = CONFIG.model_copy(update={"reserve_fraction": 0.0})
    assert not any(is_reserve(none, "car", i) for i in range(100))
