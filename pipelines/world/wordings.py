"""Wordings of modification texts, as tables: what training may show and what is kept for test texts.

Both columns of an entry share the words that carry its meaning; the phrasing around them differs, and so do the whole
sentence frames. A model that learned the meaning from the first column can read the second.
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
    "beach": _w("on a sandy beach", "at the beach by the sea", "on the beach", held_out=("down at a sunny beach", "along the beach and the sea")),
    "desert": _w("in the desert", "among desert dunes", "in a dry desert", held_out=("out in an open desert", "between the desert dunes")),
    "forest": _w("in a forest", "beside the forest trees", "at the edge of the forest", held_out=("close to a forest with trees", "near the green forest")),
    "mountains": _w("in the mountains", "below snowy mountains", "before the mountains", held_out=("high among mountains", "with tall mountains around")),
    "city": _w("in the city", "before a city skyline", "in a city street", held_out=("downtown in the big city", "near a skyline of the city")),
    "meadow": _w("in a green meadow", "on a meadow with flowers", "in the meadow", held_out=("out on an open meadow", "amid the meadow flowers")),
    "harbour": _w("at the harbour", "in a harbour with boats", "on the harbour quay", held_out=("down by a harbour", "near the boats of the harbour")),
    "vineyard": _w("in a vineyard", "at the vineyard rows", "before the vineyard", held_out=("out by a vineyard", "amid the rows of some vineyard")),
    "boutique": _w("in a boutique", "inside the boutique", "at a boutique rail", held_out=("within some elegant boutique", "near the rail of the boutique")),
    "brick wall": _w("before a brick wall", "against the red brick wall", "at a brick wall", held_out=("with an old brick wall behind", "facing away from the brick wall")),
    "wooden floor": _w("on a wooden floor", "laid on the wooden floor", "upon wooden floor planks", held_out=("spread across some wooden floor", "down on the planks of the wooden floor")),
    "lawn": _w("on a lawn", "laid on the green lawn", "upon the lawn", held_out=("spread across some fresh lawn", "out over the green lawn")),
    "street": _w("in the street", "on a street pavement", "outside in a street", held_out=("out along some street", "near the pavement of the street")),
    "bathroom": _w("in a bathroom", "before bathroom tiles", "inside the tiled bathroom", held_out=("within some bright bathroom", "near the tiles of the bathroom")),
    "stage": _w("on a stage", "before the stage curtain", "on a theatre stage", held_out=("up on some stage", "near the curtain of the stage")),
    "kitchen counter": _w("on a kitchen counter", "on the counter in a kitchen", "upon the kitchen counter", held_out=("over at some kitchen counter", "left out on the kitchen counter")),
    "supermarket shelf": _w("on a supermarket shelf", "in the supermarket", "at the supermarket shelf", held_out=("for sale in some supermarket", "stocked on the supermarket shelf")),
    "wooden table": _w("on a wooden table", "upon the wooden table", "on a table of wooden boards", held_out=("over at some wooden table", "resting along the wooden table")),
    "picnic blanket": _w("on a picnic blanket", "at a picnic on the checked blanket", "upon the picnic blanket", held_out=("spread out for some picnic on the blanket", "resting across the picnic blanket")),
    "marble shelf": _w("on a marble shelf", "upon white marble", "on the marble shelf", held_out=("over at some marble shelf", "resting along the white marble")),
    "office desk": _w("on an office desk", "at the office desk", "before an office screen", held_out=("over at some office desk", "near the screen of the office")),
    "garden wall": _w("on a garden wall", "in the garden on stones", "upon the garden wall", held_out=("out at some garden wall", "resting along the stones of the garden")),
    "window sill": _w("on a window sill", "at the window", "upon the window sill", held_out=("over by some bright window", "resting along the window sill")),
    "studio": _w("before a plain studio ground", "alone in the studio", "in a plain studio", held_out=("by itself within some studio", "cut out on plain studio ground")),
}  # fmt: skip

LIGHT: dict[str, Wording] = {
    "daylight": _w("in plain daylight", "in bright daylight", "by daylight", held_out=("during the daylight hours", "under full daylight")),
    "sunset": _w("at sunset", "in the warm sunset light", "as the sunset glows", held_out=("close to sunset time", "under an orange sunset")),
    "night": _w("at night", "in the dark of night", "by night", held_out=("during the late night", "under a dark night")),
    "lamplight": _w("in warm lamplight", "by yellow lamplight", "under a warm lamp", held_out=("within the glow of warm lamplight", "using only a yellow lamp")),
    "neon": _w("in blue neon light", "under neon lights", "by cold neon", held_out=("within the glow of blue neon", "using only cold neon light")),
    "dim": _w("in dim light", "in a dim room", "with dim lighting", held_out=("within rather dim surroundings", "using only some dim light")),
}  # fmt: skip

WEATHER: dict[str, Wording] = {
    "clear": _w("under a clear sky", "in clear weather", "with clear air", held_out=("during a clear spell", "once the weather is clear")),
    "rain": _w("in the rain", "during heavy rain", "with rain falling", held_out=("while the rain pours", "beneath a shower of rain")),
    "snow": _w("in the snow", "with snow falling", "under fresh snow", held_out=("while the snow comes down", "beneath a cover of snow")),
    "fog": _w("in thick fog", "wrapped in fog", "with fog around", held_out=("while the fog hangs low", "beneath a veil of fog")),
}  # fmt: skip

POSITION: dict[str, Wording] = {
    "left": _w("on the left side", "placed at the left", "to the left", held_out=("over toward the left", "along the left edge")),
    "middle": _w("in the middle", "placed in the middle", "at the very middle", held_out=("over toward the middle", "close to the middle")),
    "right": _w("on the right side", "placed at the right", "to the right", held_out=("over toward the right", "along the right edge")),
}  # fmt: skip

DISTANCE: dict[str, Wording] = {
    "near": _w("seen from near", "near and large", "near the camera", held_out=("viewed from quite near", "large and near enough to touch")),
    "far": _w("seen from far", "far away and small", "farther from the camera and far", held_out=("viewed from quite far", "small and set far back")),
}  # fmt: skip

POSE: dict[str, dict[str, Wording]] = {
    "fashion": {
        "upright": _w("hanging upright", "held upright", "straight and upright", held_out=("kept nicely upright", "in an upright manner")),
        "tilted": _w("tilted to one side", "hanging tilted", "slightly tilted", held_out=("kept somewhat tilted", "in a tilted manner")),
    },
    "car": {
        "right": _w("facing right", "driving rightwards and facing right", held_out=("its nose facing right", "heading right, facing that way")),
        "left": _w("facing left", "driving leftwards and facing left", held_out=("its nose facing left", "heading left, facing that way")),
    },
    "product": {
        "upright": _w("standing upright", "upright again", "set upright", held_out=("kept nicely upright", "in an upright manner")),
        "lying": _w("lying on its side", "lying down", "tipped over and lying", held_out=("left lying flat", "in a lying manner")),
    },
    "landmark": {},
}  # fmt: skip
"""Facing and position of cars share the words left and right, as people's sentences do; 'facing' tells them apart."""

FRAMES: dict[str, Wording] = {
    "place": _w(
        "Keep everything about it the same, but now show it {place}.",
        "I would like to see the very same one again, only {place}.",
        "Change nothing except the surroundings, which should now be {place}.",
        "Take the same thing and put it somewhere else, namely {place}.",
        held_out=(
            "Could you find another shot of this where it appears {place}?",
            "My wish is a further photo that has been taken {place}, please.",
        ),
    ),
    "changes": _w(
        "Show it {place}, {changes}.",
        "Put it {place} and have it {changes}.",
        "The same one {place}, now {changes}.",
        "It should be {place}, {changes}.",
        "I want to see it {place}, this time {changes}.",
        "Move the scene so that it is {place}, {changes}.",
        "Change the surroundings so that everything is {place} and it appears {changes}.",
        held_out=(
            "Find another shot taken {place}, {changes}.",
            "Could this also exist {place}, only {changes}?",
            "Picture that {place} instead, {changes}, please.",
            "My wish would be a further photo {place} with the subject {changes}.",
            "Any photo of this {place}, {changes}?",
        ),
    ),
}
"""Sentence frames: for a text that states the place alone, and for one that states further changes."""
