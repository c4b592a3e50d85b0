"""The plain annotator: what two photos measurably differ in, in English, without a model.

A difference is named only when it is definite, that is, beyond a threshold below. The text has 10 to 25 words (within
every domain's limit), names the strongest differences first and never the instance; wording varies by seed and pair.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pipelines.annotators.base import Annotation, Annotator, PairToAnnotate, Rejection, check_text

MIN_WORDS, MAX_WORDS = 10, 25
MOST_DIFFERENCES = 4

AREA_RATIO = 1.5
"""Share of the frame that the box fills, larger by this factor, is closer; smaller by it, farther."""
CENTRE_SHIFT = 0.15
"""Share of the frame's side by which the box's centre moves."""
BRIGHTNESS, CONTRAST, SATURATION = 0.10, 0.06, 0.12
"""Differences of the measures (0..1)."""
SHARPNESS_RATIO = 1.6
"""Ratio of the sharpness measures; of two photos below SHARPNESS_FLOOR neither is called sharper."""
SHARPNESS_FLOOR = 0.01
PORTRAIT, LANDSCAPE = 0.9, 1.1
"""A photo with an aspect below is portrait, above landscape, between square."""

_OPENERS = (
    "Show it", "Find it", "Now see it", "Look for it", "Show this again,", "I want it", "I would like to see it",
    "Show me the marked object again,", "Find another photo of it,", "Look for the same marked object,",
    "Find a photo that shows the marked object", "Take the marked object and show it",
    "I am looking for the very same object,", "Show the object in the box once more,",
    "Search for another picture that shows this same object",
)  # fmt: skip
_PHRASES: dict[str, tuple[str, ...]] = {
    "closer": (
        "from much closer", "filling more of the frame", "larger within the picture", "seen at a shorter distance",
    ),
    "farther": (
        "from farther away", "taking up less of the frame", "smaller within the picture",
        "seen from a greater distance",
    ),
    "left": ("further to the left", "moved towards the left side", "on the left more than before"),
    "right": ("further to the right", "moved towards the right side", "on the right more than before"),
    "up": ("higher in the frame", "moved up in the picture", "closer to the top edge"),
    "down": ("lower in the frame", "moved down in the picture", "closer to the bottom edge"),
    "brighter": ("in brighter light", "in a clearly lighter picture", "with everything brightly lit"),
    "darker": ("in dimmer light", "in a clearly darker picture", "with less light around"),
    "more contrast": ("with stronger contrast", "with deeper shadows and brighter highlights"),
    "less contrast": ("with softer contrast", "with flatter, more even tones"),
    "sharper": ("with more fine detail", "in a crisper picture", "with sharper textures all around"),
    "softer": ("with less fine detail", "in a softer picture", "with smoother textures all around"),
    "more colour": ("with more vivid colours", "in stronger, richer colours", "with more saturated tones"),
    "less colour": ("with more muted colours", "in paler, weaker colours", "with less saturated tones"),
    "portrait": ("in a portrait format picture", "in a frame taller than wide"),
    "landscape": ("in a landscape format picture", "in a frame wider than tall"),
    "square": ("in a square picture", "in a frame with equal sides"),
    "background": (
        "against a mostly {new} background instead of {old}", "with {new} surroundings rather than {old} ones",
        "where the background is {new} and no longer {old}", "in front of something {new}",
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """A definite difference from reference to target.

    Attributes:
        kind: key of the wordings.
        value: the measured amount (a difference, a ratio, or 1 for a change of term).
        strength: amount over its threshold, ≥ 1.
        words: what the wording's blanks are filled with.
    """

    kind: str
    value: float
    strength: float
    words: tuple[tuple[str, str], ...] = ()


class PlainAnnotator(Annotator):
    """Writes from measures; takes the box that is there. Confidence = s / (1 + s), s = strength of the strongest."""

    name = "plain"

    def annotate(self, pairs: Sequence[PairToAnnotate], seed: int) -> list[Annotation | Rejection]:
        """See `Annotator`. Reasons: no_box (the reference has none), no_difference (nothing definite)."""
        return [self._one(pair, seed) for pair in pairs]

    def _one(self, pair: PairToAnnotate, seed: int) -> Annotation | Rejection:
        box = pair.reference["box"]
        if box is None:
            return Rejection("no_box", f"{pair.reference['image_id']} has no box")
        found = differences(pair.reference, pair.target)
        banned = (pair.instance_id.rsplit("/", 1)[-1], pair.category)
        mark = hashlib.sha256(pair.pair_id.encode()).digest()[:8]
        rng = np.random.default_rng([seed, int.from_bytes(mark)])
        text, named = _write(found, banned, rng)
        if not named:
            return Rejection("no_difference", f"{len(found)} definite differences that can be named")
        strongest = named[0].strength
        extra = {"differences": {d.kind: round(d.value, 4) for d in named}}
        return Annotation(text, tuple(float(v) for v in box), self.name, strongest / (1.0 + strongest), extra)


def differences(reference: dict[str, Any], target: dict[str, Any]) -> list[Difference]:
    """The definite differences of two photos (see `PairToAnnotate`), strongest first."""
    found = [*_framing(reference, target), *_tones(reference, target)]
    if reference["background"] != target["background"]:
        words = (("new", str(target["background"])), ("old", str(reference["background"])))
        found.append(Difference("background", 1.0, 2.0, words))
    was, is_ = _format(reference["aspect"]), _format(target["aspect"])
    if was != is_:
        ratio = target["aspect"] / reference["aspect"]
        found.append(Difference(is_, ratio, max(1.0, abs(math.log(ratio)) / math.log(LANDSCAPE / PORTRAIT))))
    return sorted(found, key=lambda d: (-d.strength, d.kind))


def _framing(reference: dict[str, Any], target: dict[str, Any]) -> list[Difference]:
    if reference["box"] is None or target["box"] is None:
        return []
    area_was, x_was, y_was = _placed(reference)
    area, x, y = _placed(target)
    candidates = (
        _ratio(area / area_was, AREA_RATIO, "closer", "farther"),
        _shift(x - x_was, CENTRE_SHIFT, "right", "left"),
        _shift(y - y_was, CENTRE_SHIFT, "down", "up"),
    )
    return [d for d in candidates if d is not None]


def _tones(reference: dict[str, Any], target: dict[str, Any]) -> list[Difference]:
    sharpness, sharpness_was = (max(SHARPNESS_FLOOR, p["sharpness"]) for p in (target, reference))
    candidates = (
        _shift(target["brightness"] - reference["brightness"], BRIGHTNESS, "brighter", "darker"),
        _shift(target["contrast"] - reference["contrast"], CONTRAST, "more contrast", "less contrast"),
        _shift(target["saturation"] - reference["saturation"], SATURATION, "more colour", "less colour"),
        _ratio(sharpness / sharpness_was, SHARPNESS_RATIO, "sharper", "softer"),
    )
    return [d for d in candidates if d is not None]


def _placed(photo: dict[str, Any]) -> tuple[float, float, float]:
    """Share of the frame that the box fills, and its centre in shares of width and height."""
    x1, y1, x2, y2 = photo["box"]
    width, height = photo["width"], photo["height"]
    return (x2 - x1) * (y2 - y1) / (width * height), (x1 + x2) / 2 / width, (y1 + y2) / 2 / height


def _shift(amount: float, threshold: float, more: str, less: str) -> Difference | None:
    strength = abs(amount) / threshold
    return Difference(more if amount > 0 else less, amount, strength) if strength >= 1.0 else None


def _ratio(ratio: float, threshold: float, more: str, less: str) -> Difference | None:
    strength = abs(math.log(ratio)) / math.log(threshold)
    return Difference(more if ratio > 1 else less, ratio, strength) if strength >= 1.0 else None


def _format(aspect: float) -> str:
    return "portrait" if aspect < PORTRAIT else "landscape" if aspect > LANDSCAPE else "square"


def _write(
    found: Sequence[Difference], banned: Sequence[str], rng: np.random.Generator
) -> tuple[str, list[Difference]]:
    """A sentence of MIN_WORDS..MAX_WORDS and the differences it names; none if no wording is free of banned names."""
    shortest = min(len(o.split()) for o in _OPENERS)
    phrases: list[str] = []
    named: list[Difference] = []
    for difference in found:
        wordings = [w.format(**dict(difference.words)) for w in _PHRASES[difference.kind]]
        room = MAX_WORDS - shortest - 1 - sum(len(p.split()) for p in phrases)
        fitting = [w for w in wordings if len(w.split()) <= room and not _names(w, banned)]
        if fitting and len(named) < MOST_DIFFERENCES:
            phrases.append(fitting[rng.integers(len(fitting))])
            named.append(difference)
    if not named:
        return "", []
    body = phrases[0] if len(phrases) == 1 else f"{', '.join(phrases[:-1])} and {phrases[-1]}"
    words = len(body.split())
    openers = [
        o for o in _OPENERS if MIN_WORDS <= len(o.split()) + words <= MAX_WORDS and not _names(o, banned)
    ]
    if not openers:
        return "", []
    return f"{openers[rng.integers(len(openers))]} {body}.", named


def _names(text: str, banned: Sequence[str]) -> bool:
    return check_text(text, max_words=MAX_WORDS, banned=banned) is not None
