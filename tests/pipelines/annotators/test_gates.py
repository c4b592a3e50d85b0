from __future__ import annotations

import pytest

from pipelines.annotators.gates import Rules, fault, fingerprint, kind_names, named, other_language
from pipelines.world.wordings import FRAMES, LIGHT, PLACE

GOOD = "I would like to see it on a sandy beach at sunset, a little farther away."
RULES = Rules(30, ("red kettle",), kind_names("mug"))


def reason(text: str, rules: Rules = RULES, others: set[bytes] | None = None) -> str | None:
    found = fault(text, rules, others or set())
    return found.reason if found else None


@pytest.mark.parametrize(
    "text",
    [
        GOOD,
        "Show it at the top of the picture, larger and on the left.",
        "Find another photo of it, in front of a brick wall and in dimmer light.",
        "It can stand on one of the boxes now, with two people beside it.",
        "Now it is seen from the first floor, in the second row of the shelf.",
        "Façade lit, naïve café signs around it, and an étude of shadows on the wall.",
    ],
)
def test_sentences_that_keep_every_rule(text: str) -> None:
    assert reason(text) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "no_text"),
        (" ".join(["it is on the beach"] * 7), "text_too_long"),
        ("The Red-Kettle stands in the rain now.", "text_names_instance"),
        ("Show the mug on a sandy beach at sunset.", "text_names_category"),
        ("Show both tumblers on a sandy beach at sunset.", "text_names_category"),
        ("In the second image it lies on the beach.", "text_names_image"),
        ("It is closer to the camera than in the original photo.", "text_names_image"),
        ("Compared with image 1 it is darker and on the left.", "text_names_image"),
        ("It is much larger than in the reference.", "text_names_image"),
        ("Zeige es am Strand bei Sonnenuntergang und etwas weiter weg.", "text_wrong_language"),
        ("Muéstralo en la playa al atardecer, un poco más lejos de la cámara.", "text_wrong_language"),
        ("Montre-le sur la plage au coucher du soleil, un peu plus loin.", "text_wrong_language"),
        ("日落时分在沙滩上展示它", "text_wrong_language"),
        ("Покажи его на песчаном пляже на закате.", "text_wrong_language"),
        ("beach sunset sand distance light colour sky", "text_wrong_language"),
        ("12 34 !!", "text_wrong_language"),
    ],
)
def test_each_fault_has_its_reason(text: str, expected: str) -> None:
    assert reason(text) == expected


def test_a_copy_is_told_by_its_content_words() -> None:
    others = {fingerprint(GOOD)}
    assert reason(GOOD, others=others) == "text_repeats"
    turned = "At sunset, a little farther away: I would like to SEE it on the sandy beach!"
    assert reason(turned, others=others) == "text_repeats"
    assert reason(GOOD.replace("sunset", "noon"), others=others) is None


def test_names_of_a_kind() -> None:
    names = kind_names("long sleeve top")
    assert {"long sleeve top", "blouse", "blouses", "t shirt", "tees"} <= names
    assert "top" not in names  # "at the top of the picture"
    assert {"category", "categories"} <= kind_names("Category")
    assert {"watch", "watches", "wristwatch"} <= kind_names("watch")
    assert {"kettles", "teapot"} <= kind_names("clay kettle")
    assert "smartphone" in kind_names("thing", ("mobile phone",))
    assert not kind_names("12")
    assert named("many dresses hang there", kind_names("dress")) == "dresses"
    assert named("it is dressed up", kind_names("dress")) is None


def test_every_sentence_of_the_world_is_english() -> None:
    for frame in (*FRAMES["changes"].training, *FRAMES["changes"].held_out):
        for place in PLACE.values():
            for light in LIGHT.values():
                text = frame.format(place=place.held_out[0], changes=light.training[0])
                assert other_language(text) is None
