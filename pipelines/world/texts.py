"""Modification texts: sentences generated from the difference of two contexts, never naming the instance."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pipelines.world.wordings import DISTANCE, FRAMES, LIGHT, PLACE, POSE, POSITION, WEATHER, Wording

MIN_WORDS = 10
MAX_WORDS = {"fashion": 30, "car": 25, "product": 30, "landmark": 30}
"""Domain → most words of a text."""
MAX_CHANGES = 1
"""Changes stated beside the place; when more facets differ, these are drawn from them."""
FACETS = ("light", "weather", "position", "distance", "pose")
"""What may be stated beside the place."""
TRIES = 64


def modification_text(
    domain: str,
    reference_context: Mapping[str, Any],
    target_context: Mapping[str, Any],
    rng_seed: int | str,
    held_out_wording: bool,
) -> str | None:
    """A sentence that says what is different in the target context.

    The place is always stated, with one of the facets that differ. Companions are never mentioned.

    Args:
        domain: one of the world's domains.
        reference_context: context record of the reference image.
        target_context: context record of the target image.
        rng_seed: chooses among the wordings; the same seed gives the same text.
        held_out_wording: use the wordings kept for test texts, and only those.

    Returns:
        10 to 30 words (25 for cars), or None when nothing that a text could state differs.
    """
    differing = [f for f in FACETS if reference_context[f] != target_context[f]]
    if not differing and reference_context["place"] == target_context["place"]:
        return None
    rng = random.Random(f"{rng_seed}/text")
    stated = rng.sample(differing, min(MAX_CHANGES, len(differing)))
    frames = FRAMES["changes" if stated else "place"].ways(held_out_wording)
    for _ in range(TRIES):
        rng.shuffle(stated)
        changes = [rng.choice(_wording(domain, f, target_context[f]).ways(held_out_wording)) for f in stated]
        text = rng.choice(frames).format(
            place=rng.choice(PLACE[target_context["place"]].ways(held_out_wording)), changes=_join(changes)
        )
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS[domain]:
            return text
    raise AssertionError(f"the wordings of {domain} give no text of the right length for {target_context}")


def _wording(domain: str, facet: str, value: str) -> Wording:
    if facet == "pose":
        return POSE[domain][value]
    return {"light": LIGHT, "weather": WEATHER, "position": POSITION, "distance": DISTANCE}[facet][value]


def _join(clauses: list[str]) -> str:
    return " and ".join(part for part in (", ".join(clauses[:-1]), *clauses[-1:]) if part)
