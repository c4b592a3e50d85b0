"""The world in which context and instance compete: shared places, stated company, others in the same colours."""

from __future__ import annotations

import itertools
from collections import Counter
from typing import Any

import pytest

from infra.base.config import load_recipe
from pipelines.config import BuildRecipe
from pipelines.sources.world import WorldSourceConfig
from pipelines.world.config import DOMAINS, WorldConfig
from pipelines.world.looks import look_of
from pipelines.world.scenes import SceneSpec
from pipelines.world.texts import modification_text
from pipelines.world.wordings import COMPANY, LIGHT, PLACE
from pipelines.world.world import render_scene, scene_specs

INSTANCES = 24


def world() -> WorldConfig:
    source = load_recipe(BuildRecipe, "world_competing.yaml", []).source
    assert isinstance(source, WorldSourceConfig)
    return source.world.model_copy(update={"instances_per_domain": INSTANCES, "reserve_fraction": 0.0})


def scenes(domain: str, index: int) -> list[SceneSpec]:
    return scene_specs(world(), domain, index)


def seen(spec: SceneSpec) -> tuple[str, str, int]:
    return spec.context.place, spec.context.light, len(spec.context.companions)


@pytest.mark.parametrize("domain", DOMAINS)
def test_scenes_share_places_and_no_two_of_one_place_look_alike(domain: str) -> None:
    for index in range(INSTANCES):
        specs = scenes(domain, index)
        assert sorted(Counter(s.context.place for s in specs).values()) == [3, 3]
        assert len({seen(s) for s in specs}) == 6
        assert len({(s.context.place, s.context.weather) for s in specs}) == 2
        assert all(len(s.companions) == len(s.context.companions) for s in specs)
    every = [seen(s)[2] for i in range(INSTANCES) for s in scenes(domain, i)]
    assert all(every.count(n) > len(every) / 5 for n in (0, 1, 2))


@pytest.mark.parametrize("domain", DOMAINS)
def test_a_family_shares_colours_in_other_shapes_and_stands_beside_each_other_at_other_places(
    domain: str,
) -> None:
    for first in range(0, INSTANCES, 2):
        pair = [look_of(0, domain, i, 2) for i in (first, first + 1)]
        assert pair[0].palette == pair[1].palette
        assert pair[0].shape != pair[1].shape
        assert pair[0] == look_of(0, domain, first)
        for index, other in ((first, first + 1), (first + 1, first)):
            for spec in scenes(domain, index):
                if spec.companions:
                    assert spec.companions[0].index == other
                    assert len({p.index for p in spec.companions} | {index}) == len(spec.companions) + 1
        places = [{s.context.place for s in scenes(domain, i)} for i in (first, first + 1)]
        assert not places[0] & places[1]
    palettes = [look_of(0, domain, i, 2).palette for i in range(0, INSTANCES, 2)]
    assert len(set(palettes)) == len(palettes)


def stated(text: str, held_out: bool) -> dict[str, set[str]]:
    """Facet → the values that a text names."""
    tables: dict[str, Any] = {"light": LIGHT, "company": COMPANY, "place": PLACE}
    return {
        facet: {v for v, wording in table.items() if any(way in text for way in wording.ways(held_out))}
        for facet, table in tables.items()
    }


@pytest.mark.parametrize("held_out", [False, True])
@pytest.mark.parametrize("domain", DOMAINS)
def test_a_text_states_all_that_differs_and_nothing_that_stays(domain: str, held_out: bool) -> None:
    kept = 0
    for index in range(8):
        for a, b in itertools.permutations(scenes(domain, index), 2):
            text = modification_text(domain, a.context.record(), b.context.record(), f"{index}", held_out)
            assert text is not None
            assert 10 <= len(text.split()) <= (25 if domain == "car" else 30)
            values = [
                {"place": s.context.place, "light": s.context.light, "company": n}
                for s in (a, b)
                for n in [("none", "one", "two")[len(s.companions)]]
            ]
            named = stated(text, held_out)
            for facet, (before, after) in ((f, (values[0][f], values[1][f])) for f in values[0]):
                assert (after in named[facet]) == (before != after), (text, facet)
            kept += values[0]["place"] == values[1]["place"]
    assert kept == 8 * 12  # of 30 ordered pairs of 6 scenes at 2 places 12 stay where they are


def test_the_reference_and_the_text_together_tell_the_target_apart() -> None:
    """What a text leaves unsaid is as on the reference: then one scene of the instance fits, and only one."""
    for domain, index in itertools.product(DOMAINS, range(8)):
        specs = scenes(domain, index)
        assert len({seen(s) for s in specs}) == len(specs)


def test_options_that_are_left_alone_change_no_byte_and_no_record() -> None:
    config = WorldConfig(instances_per_domain=4, image_size_px=48)
    spec = scene_specs(config, "car", 0)[0]
    assert "stated" not in spec.context.record()
    assert (
        render_scene(config, spec).jpeg
        == render_scene(config.model_copy(update={"palette_family": 1}), spec).jpeg
    )
    other = config.model_copy(update={"palette_family": 2})
    odd = scene_specs(config, "car", 1)[0]
    assert render_scene(config, odd).jpeg != render_scene(other, odd).jpeg


def test_company_that_no_text_could_state_is_refused() -> None:
    with pytest.raises(ValueError, match="set places_per_instance"):
        WorldConfig(varied_company=True)
