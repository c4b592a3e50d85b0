"""Wordings of modification texts, as tables: what training may show and what is kept for test texts.

Both columns of an entry share the words that carry its meaning, and the second is put together mostly from words that the
first column of some entry shows; phrases, clauses and whole sentence frames are new. A model that learned the words from
the first column can read the second, one that learned sentences by heart cannot.
"""

# ruff: noqa: E501 - a table with one row a line reads better than a wrapped one
from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Wording:
    """Ways to say one thing."""

    training: tuple[str, ...]
    held_out: tuple[str, ...]

    def ways(self, held_out: bool) -> tuple[str, ...]:
        """The ways of one column."""
        return self.held_out if held_out else self.training


def _w(*training: str, held_out: tuple[str, ...]) -> Wording:
    return Wording(training, held_out)


PLACE: dict[str, Wording] = {
    "beach": _w("on a sandy beach", "at the beach by the sea", "on the beach", held_out=("by a sandy beach at the sea", "at a beach")),
    "desert": _w("in the desert", "among desert dunes", "in a dry desert", held_out=("by dry dunes in a desert", "at the desert")),
    "forest": _w("in a forest", "by the forest trees", "at a green forest", held_out=("among green trees in the forest", "by a forest")),
    "mountains": _w("in the mountains", "by snowy mountains", "before the mountains", held_out=("among the snowy mountains", "at high mountains")),
    "city": _w("in the city", "before a city skyline", "in a city street", held_out=("by the skyline of a city", "at a city street")),
    "meadow": _w("in a green meadow", "on a meadow with flowers", "on the meadow", held_out=("among flowers in the meadow", "by a meadow")),
    "boutique": _w("in a boutique", "inside the boutique", "at a boutique rail", held_out=("by the rail in the boutique", "inside a boutique")),
    "brick wall": _w("before a brick wall", "at the red brick wall", "on a brick wall", held_out=("by a red wall of brick", "at a brick wall")),
    "wooden floor": _w("on a wooden floor", "over the wooden floor", "on wooden floor planks", held_out=("over planks of a wooden floor", "at the wooden floor")),
    "lawn": _w("on a lawn", "over the green lawn", "on the lawn", held_out=("by a green lawn", "over a lawn")),
    "street": _w("in the street", "on a street pavement", "outside in a street", held_out=("by the pavement of a street", "outside on the street")),
    "stage": _w("on a stage", "before the stage curtain", "on a theatre stage", held_out=("by the curtain of a theatre stage", "at the stage")),
    "kitchen counter": _w("on a kitchen counter", "on the counter in a kitchen", "at the kitchen counter", held_out=("by a counter in the kitchen", "over the kitchen counter")),
    "wooden table": _w("on a wooden table", "at the wooden table", "on a table of wooden boards", held_out=("over boards of a wooden table", "by the wooden table")),
    "picnic blanket": _w("on a picnic blanket", "at a picnic on the blanket", "on the picnic blanket", held_out=("over the blanket of a picnic", "at a picnic blanket")),
    "marble shelf": _w("on a marble shelf", "on white marble", "at the marble shelf", held_out=("by a shelf of white marble", "over the marble shelf")),
    "office desk": _w("on an office desk", "at the office desk", "before an office screen", held_out=("by the screen in an office", "over the office desk")),
    "garden wall": _w("on a garden wall", "in the garden on stones", "at the garden wall", held_out=("over stones of a garden wall", "by the garden wall")),
    "studio": _w("before a plain studio ground", "in the studio", "in a plain studio", held_out=("by the plain ground of a studio", "inside a studio")),
}  # fmt: skip

LIGHT: dict[str, Wording] = {
    "daylight": _w("in plain daylight", "in bright daylight", "by daylight", held_out=("with bright daylight", "under plain daylight")),
    "sunset": _w("at sunset", "in the warm sunset light", "by sunset", held_out=("with the light of a sunset", "under a warm sunset")),
    "night": _w("at night", "in the dark of night", "by night", held_out=("with a dark night", "in the night")),
    "lamplight": _w("in warm lamplight", "by yellow lamplight", "under a yellow lamp", held_out=("with yellow lamplight", "under a warm lamp")),
    "neon": _w("in blue neon light", "under neon light", "by blue neon", held_out=("with light of blue neon", "in neon")),
    "dim": _w("in dim light", "in a dim room", "by dim light", held_out=("under dim light", "with the room dim")),
}  # fmt: skip

WEATHER: dict[str, Wording] = {
    "clear": _w("under a clear sky", "in clear weather", "with clear air", held_out=("in clear air", "with a clear sky")),
    "rain": _w("in the rain", "in heavy rain", "with rain falling", held_out=("under falling rain", "with heavy rain")),
    "snow": _w("in the snow", "with snow falling", "under fresh snow", held_out=("in fresh snow", "under falling snow")),
    "fog": _w("in thick fog", "wrapped in fog", "with fog around", held_out=("under thick fog", "with fog all around")),
}  # fmt: skip

POSITION: dict[str, Wording] = {
    "left": _w("on the left side", "placed at the left", "to the left", held_out=("at the left side", "placed to the left")),
    "middle": _w("in the middle", "placed in the middle", "at the middle", held_out=("to the very middle", "placed at the middle")),
    "right": _w("on the right side", "placed at the right", "to the right", held_out=("at the right side", "placed to the right")),
}  # fmt: skip

DISTANCE: dict[str, Wording] = {
    "near": _w("seen from near", "near and large", "near the camera", held_out=("large and near", "seen near the camera")),
    "far": _w("seen from far", "far and small", "far from the camera", held_out=("small and far", "seen far from the camera")),
}  # fmt: skip

POSE: dict[str, dict[str, Wording]] = {
    "fashion": {
        "upright": _w("hanging upright", "held upright", held_out=("straight and upright", "placed upright")),
        "tilted": _w("tilted to a side", "hanging tilted", held_out=("held tilted", "placed tilted")),
    },
    "car": {
        "right": _w("facing right", "driving and facing right", held_out=("facing right and driving", "seen facing right")),
        "left": _w("facing left", "driving and facing left", held_out=("facing left and driving", "seen facing left")),
    },
    "product": {
        "upright": _w("standing upright", "set upright", held_out=("placed upright", "seen standing upright")),
        "lying": _w("lying on its side", "lying flat", held_out=("placed lying", "seen lying flat")),
    },
    "landmark": {},
}  # fmt: skip
"""Facing and position of cars share the words left and right, as people's sentences do; 'facing' tells them apart."""

FRAMES: dict[str, Wording] = {
    "place": _w(
        "Keep everything the same, but now show it {place}.",
        "I want to see the very same one again, now {place}.",
        "Change only the scene, which should now be {place}.",
        "Take the same one and put it somewhere else, {place}.",
        held_out=(
            "Now the scene should change, so show the very same {place}.",
            "But this time I want everything else kept and it {place}.",
        ),
    ),
    "changes": _w(
        "I want to see it {place}, this time {changes}.",
        "Change the scene so that it is {place}, {changes}.",
        "Keep it the same but show it {place}, {changes}.",
        "The very same one again, but {place} and {changes}.",
        "Put it somewhere else, which is now {place} and {changes}.",
        "Now have it {changes}, and the scene should be {place}.",
        held_out=(
            "This time the scene should be {place} and it {changes}.",
            "Show the same one again, {changes} and now {place}.",
            "Please let me see it put {place}, but {changes}.",
            "Have everything change: {place} it should be, and {changes}.",
        ),
    ),
}
"""Sentence frames: for a text that states the place alone, and for one that states further changes."""
