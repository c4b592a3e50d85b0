"""Wordings of modification texts, as tables: what training may show and what is kept for test texts.

Both columns of an entry share the words that carry its meaning, and the second is put together mostly from words that the
first column of some entry shows; phrases, clauses and whole sentence frames are new. A model that learned the words from
the first column can read the second, one that learned sentences by heart cannot.

Every phrase can follow "show it", and every frame hangs its phrases on such a verb, so that any combination is a sentence
that a person would say.
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
    "beach": _w("on a sandy beach", "on the beach by the sea", "on the beach", held_out=("by the sea on a sandy beach", "at a beach")),
    "desert": _w("in the desert", "among desert dunes", "in a dry desert", held_out=("among the dry dunes of the desert", "in a desert")),
    "forest": _w("in a forest", "among the forest trees", "in the green forest", held_out=("among the green trees of a forest", "in the forest")),
    "mountains": _w("in the mountains", "by snowy mountains", "in front of the mountains", held_out=("in front of snowy mountains", "among the mountains")),
    "city": _w("in the city", "in front of a city skyline", "on a city street", held_out=("in front of the skyline of a city", "on a street in a city")),
    "meadow": _w("in a green meadow", "in a meadow with flowers", "in the meadow", held_out=("among the flowers of a meadow", "in the green meadow")),
    "boutique": _w("in a boutique", "inside the boutique", "by the rail of a boutique", held_out=("by a boutique rail", "inside a boutique")),
    "brick wall": _w("in front of a brick wall", "by the red brick wall", "against a brick wall", held_out=("in front of a wall of red brick", "against the brick wall")),
    "wooden floor": _w("on a wooden floor", "on the planks of a wooden floor", "on the wooden floor", held_out=("on a floor of wooden planks", "on wooden floor planks")),
    "lawn": _w("on a lawn", "on the green lawn", "outside on the lawn", held_out=("on a green lawn", "outside on a lawn")),
    "street": _w("in the street", "on the pavement of a street", "outside in a street", held_out=("on a street pavement", "outside on the street")),
    "stage": _w("on a stage", "in front of the stage curtain", "on a theatre stage", held_out=("on the stage of a theatre", "in front of a stage curtain")),
    "kitchen counter": _w("on a kitchen counter", "on the counter in a kitchen", "on the kitchen counter", held_out=("on a counter in the kitchen", "on the counter of a kitchen")),
    "wooden table": _w("on a wooden table", "on a table of wooden boards", "on the wooden table", held_out=("on the wooden boards of a table", "on the boards of a wooden table")),
    "picnic blanket": _w("on a picnic blanket", "on the blanket at a picnic", "on the picnic blanket", held_out=("at a picnic on a blanket", "on the blanket of a picnic")),
    "marble shelf": _w("on a marble shelf", "on a white marble shelf", "on the marble shelf", held_out=("on a shelf of white marble", "on the white marble shelf")),
    "office desk": _w("on an office desk", "in front of an office screen", "on the desk in an office", held_out=("in front of the screen in an office", "on a desk in the office")),
    "garden wall": _w("on a garden wall", "on the stones of a garden wall", "on the garden wall", held_out=("on a wall of stones in the garden", "on the wall of a garden")),
    "studio": _w("on a plain studio ground", "in the studio", "in a plain studio", held_out=("on the plain ground of a studio", "inside a studio")),
}  # fmt: skip

LIGHT: dict[str, Wording] = {
    "daylight": _w("in plain daylight", "in bright daylight", "by daylight", held_out=("in the bright daylight", "in daylight")),
    "sunset": _w("at sunset", "in warm sunset light", "during the sunset", held_out=("in the light of a sunset", "during a warm sunset")),
    "night": _w("at night", "in the dark of night", "by night", held_out=("in the dark night", "during the night")),
    "lamplight": _w("in warm lamplight", "by yellow lamplight", "under a yellow lamp", held_out=("in yellow lamplight", "in the warm light of a lamp")),
    "neon": _w("in blue neon light", "under neon light", "under a blue neon light", held_out=("in the light of blue neon", "in neon light")),
    "dim": _w("in dim light", "in a dim room", "in the dim light of a room", held_out=("under dim light", "in a room with dim light")),
}  # fmt: skip

WEATHER: dict[str, Wording] = {
    "clear": _w("under a clear sky", "in clear weather", "on a clear day", held_out=("with a clear sky", "on a day of clear weather")),
    "rain": _w("in the rain", "in heavy rain", "with rain falling", held_out=("in the falling rain", "with heavy rain falling")),
    "snow": _w("in the snow", "with snow falling", "in fresh snow", held_out=("in the falling snow", "with fresh snow falling")),
    "fog": _w("in thick fog", "wrapped in fog", "with fog around it", held_out=("wrapped in thick fog", "with thick fog around it")),
}  # fmt: skip

POSITION: dict[str, Wording] = {
    "left": _w("on the left side", "placed on the left", "at the left of the picture", held_out=("on the left of the picture", "placed at the left")),
    "middle": _w("in the middle", "placed in the middle", "at the middle of the picture", held_out=("in the very middle", "placed at the middle")),
    "right": _w("on the right side", "placed on the right", "at the right of the picture", held_out=("on the right of the picture", "placed at the right")),
}  # fmt: skip

DISTANCE: dict[str, Wording] = {
    "near": _w("near the camera", "seen from close by", "near and large", held_out=("close to the camera", "large and near")),
    "far": _w("far from the camera", "seen from far away", "far and small", held_out=("far away from the camera", "small and far away")),
}  # fmt: skip

COMPANY: dict[str, Wording] = {
    "none": _w("with nothing else beside it", "with no other one beside it", held_out=("with nothing beside it", "with no other beside it")),
    "one": _w("with one other beside it", "with another one beside it", held_out=("with one other one", "with another beside it")),
    "two": _w("with two others beside it", "with two others around it", held_out=("with two other ones", "with two others close by")),
}  # fmt: skip
"""How many foreign objects there are."""

POSE: dict[str, dict[str, Wording]] = {
    "fashion": {
        "upright": _w("hanging upright", "held upright", "hanging straight", held_out=("held straight", "straight and upright")),
        "tilted": _w("tilted to one side", "hanging tilted", held_out=("held tilted", "hanging tilted to one side")),
    },
    "car": {
        "right": _w("facing right", "driving and facing right", held_out=("facing to the right", "with its front facing right")),
        "left": _w("facing left", "driving and facing left", held_out=("facing to the left", "with its front facing left")),
    },
    "product": {
        "upright": _w("standing upright", "set upright", held_out=("placed upright", "standing straight and upright")),
        "lying": _w("lying on its side", "lying flat", held_out=("lying flat on its side", "placed flat on its side")),
    },
    "landmark": {},
}  # fmt: skip
"""Facing and position of cars share the words left and right, as people's sentences do; 'facing' tells them apart."""

FRAMES: dict[str, Wording] = {
    "place": _w(
        "Keep everything the same, but now show it {place}.",
        "I want to see the very same one again, now {place}.",
        "Change only the scene, and show the same one {place}.",
        "Take the same one and put it somewhere else, {place}.",
        held_out=(
            "This time I want everything else the same, but it should be {place}.",
            "It should be the very same one, but put it {place} this time.",
        ),
    ),
    "changes": _w(
        "I want to see it {place}, this time {changes}.",
        "Change the scene so that it is {place}, {changes}.",
        "Keep everything else the same but show it {place}, {changes}.",
        "The very same one again, but {place}, and now {changes}.",
        "Now show it {changes}, and put it somewhere else, {place}.",
        "It should be {place} now, and I want to see it {changes}.",
        held_out=(
            "This time it should be {place}, and I want it {changes}.",
            "Show the same one again, {changes}, but now put it {place}.",
            "Put the very same one {place} now, and show it {changes}.",
            "I want the scene to change: show it {changes}, and put it {place}.",
        ),
    ),
    "kept": _w(
        "Keep the scene and the place as they are, but show it {changes}.",
        "Leave it where it is, and now I want to see it {changes}.",
        "The very same one in the very same place again, but now {changes}.",
        held_out=(
            "Keep it where it is in the same place, and show it {changes}.",
            "I want to see the same one in the same scene, but {changes}.",
        ),
    ),
}
"""Sentence frames: for a text that states the place alone, for one that states further changes, and for one that leaves
the place as it is."""
