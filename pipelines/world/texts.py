"""Modification texts: sentences generated from the difference of two contexts, never naming the instance."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

from pipelines.world.wordings import COMPANY, DISTANCE, FRAMES, LIGHT, PLACE, POSE, POSITION, WEATHER, Wording

MIN_WORDS = 10
MAX_WORDS = {"fashion": 30, "car": 25, "product": 30, "landmark": 30}
"""Domain → most words of a text."""
MAX_CHANGES = 1
"""Changes stated beside the place; when more facets differ, these are drawn from them."""
FACETS = ("light", "weather", "position", "distance", "pose")
"""What may be stated beside the place."""
TRIES = 64
TABLES = {
    "light": LIGHT, "weather": WEATHER, "position": POSITION, "distance": DISTANCE, "company": COMPANY,
}  # fmt: skip
"""Facet → the wordings of its values; those of a pose hang on the domain."""


def modification_text(
    domain: str,
    reference_context: Mapping[str, Any],
    target_context: Mapping[str, Any],
    rng_seed: int | str,
    held_out_wording: bool,
) -> str | None:
    """A sentence that says what is different in the target context.

    The place is always stated, with one of the facets that differ; companions are never mentioned. In a world whose
    contexts name the facets that are `stated`, all of those that differ are, and what is not is as on the reference.

    Args:
        domain: one of the world's domains.
        reference_context: context record of the reference image.
        target_context: context record of the target image.
        rng_seed: chooses among the wordings; the same seed gives the same text.
        held_out_wording: use the wordings kept for test texts, and only those.

    Returns:
        10 to 30 words (25 for cars), or None when nothing that a text could state differs.
    """
    everything = target_context.get("stated")
    differing = [
        f
        for f in (everything or FACETS)
        if f != "place" and _value(reference_context, f) != _value(target_context, f)
    ]
    stays = reference_context["place"] == target_context["place"]
    if not differing and stays:
        return None
    rng = random.Random(f"{rng_seed}/text")
    stated = rng.sample(differing, len(differing) if everything else min(MAX_CHANGES, len(differing)))
    kept = bool(everything) and stays
    frames = FRAMES["kept" if kept else "changes" if stated else "place"].ways(held_out_wording)
    for _ in range(TRIES):
        rng.shuffle(stated)
        changes = [
            rng.choice(_wording(domain, f, _value(target_context, f)).ways(held_out_wording)) for f in stated
        ]
        text = rng.choice(frames).format(
            place=rng.choice(PLACE[target_context["place"]].ways(held_out_wording)), changes=_join(changes)
        )
        if MIN_WORDS <= len(text.split()) <= MAX_WORDS[domain]:
            return text
    raise AssertionError(f"the wordings of {domain} give no text of the right length for {target_context}")


def _value(context: Mapping[str, Any], facet: str) -> str:
    if facet == "company":
        return ("none", "one", "two")[len(context["companions"])]
    value: str = context[facet]
    return value


def _wording(domain: str, facet: str, value: str) -> Wording:
    if facet == "pose":
        return POSE[domain][value]
    return TABLES[facet][value]


def _join(clauses: list[str]) -> str:
    return " and ".join(part for part in (", ".join(clauses[:-1]), *clauses[-1:]) if part)
