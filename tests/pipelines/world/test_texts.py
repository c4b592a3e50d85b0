"""Modification texts: what they state, how long they are, and that they name no instance."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from pipelines.world.config import WorldConfig
from pipelines.world.shapes import SHAPES
from pipelines.world.texts import FACETS, MAX_WORDS, modification_text
from pipelines.world.wordings import DISTANCE, LIGHT, PLACE, POSE, POSITION, WEATHER
from pipelines.world.world import scene_specs

SMALL = WorldConfig(instances_per_domain=40, image_size_px=64)
CONTEXT = {
    "place": "beach", "light": "daylight", "weather": "clear", "position": "left", "distance": "near", "pose": "left",
}  # fmt: skip
OTHER = {"light": "night", "weather": "snow", "position": "right", "distance": "far", "pose": "right"}
TABLES = {
    "light": LIGHT, "weather": WEATHER, "position": POSITION, "distance": DISTANCE, "pose": POSE["car"],
}  # fmt: skip


@pytest.mark.parametrize("facet", FACETS)
@pytest.mark.parametrize("held_out", [False, True])
def test_a_text_states_the_target_of_the_facet_that_differs_and_no_other(facet: str, held_out: bool) -> None:
    target = CONTEXT | {facet: OTHER[facet]}
    for seed in range(20):
        text = modification_text("car", CONTEXT, target, seed, held_out)
        assert text is not None
        assert any(way in text for way in TABLES[facet][OTHER[facet]].ways(held_out))
        assert not any(way in text for way in TABLES[facet][CONTEXT[facet]].ways(held_out))
        assert any(way in text for way in PLACE["beach"].ways(held_out))
        for same in set(FACETS) - {facet, "pose", "position"}:
            assert not any(way in text for way in TABLES[same][CONTEXT[same]].ways(held_out))


def test_a_text_of_a_new_place_alone_states_it() -> None:
    texts: set[Any] = {
        modification_text("car", CONTEXT, CONTEXT | {"place": "desert"}, n, False) for n in range(20)
    }
    assert len(texts) > 5
    assert all("desert" in text for text in texts)


def pairs(config: WorldConfig) -> list[tuple[str, dict, dict]]:
    found = []
    for domain in config.domains:
        for index in range(10):
            scenes = [
                s.context.record() for s in scene_specs(config, domain, index) if s.context.kind == "scene"
            ]
            found += [(domain, a, b) for a, b in itertools.permutations(scenes, 2)]
    return found


def words(text: str) -> list[str]:
    return "".join(c if c.isalnum() else " " for c in text.lower()).split()


def test_texts_have_the_right_length_name_no_instance_and_state_the_place() -> None:
    shapes = {word for table in SHAPES.values() for shape in table for word in words(shape)}
    for number, (domain, reference, target) in enumerate(pairs(SMALL)):
        for held_out in (False, True):
            text = modification_text(domain, reference, target, number, held_out)
            assert text is not None
            assert 10 <= len(text.split()) <= MAX_WORDS[domain]
            assert not shapes & (set(words(text)) - set(words(target["place"])))
            assert any(word.rstrip("s") in text.lower() for word in words(target["place"]))
    assert MAX_WORDS["car"] == 25


def test_the_same_seed_gives_the_same_text_and_wordings_vary() -> None:
    domain, reference, target = pairs(SMALL)[0]
    texts = [modification_text(domain, reference, target, seed, False) for seed in range(40)]
    assert texts == [modification_text(domain, reference, target, seed, False) for seed in range(40)]
    assert len(set(texts)) > 20


def test_no_difference_gives_no_text() -> None:
    domain, reference, _ = pairs(SMALL)[0]
    assert modification_text(domain, reference, dict(reference), 0, False) is None


def test_test_texts_hold_wordings_that_training_never_shows() -> None:
    def grams(held_out: bool) -> list[set[tuple[str, ...]]]:
        found = []
        for number, (domain, reference, target) in enumerate(pairs(SMALL)):
            said = words(modification_text(domain, reference, target, number, held_out) or "")
            found.append({tuple(said[i : i + 3]) for i in range(len(said) - 2)})
        return found

    training = set().union(*grams(False))
    fresh = [len(g - training) / len(g) for g in grams(True)]
    assert min(fresh) > 0.25  # every test text, not only some
    assert np.mean(fresh) > 0.5
