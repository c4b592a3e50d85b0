from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection, check_text
from pipelines.annotators.plain import PlainAnnotator, differences

BASE: dict[str, Any] = {
    "image_id": "toys/bear/1.jpg",
    "width": 200,
    "height": 100,
    "box": [50.0, 20.0, 100.0, 60.0],
    "context_json": None,
    "brightness": 0.5,
    "contrast": 0.2,
    "sharpness": 0.03,
    "saturation": 0.4,
    "background": "green",
    "aspect": 2.0,
}


def photo(**changes: Any) -> dict[str, Any]:
    return BASE | changes


def pair(target: dict[str, Any], reference: dict[str, Any] = BASE, **changes: str) -> PairToAnnotate:
    names = {
        "pair_id": "p1", "domain": "toys", "split": "train", "instance_id": "toys/bear", "category": "plush toy",
    }  # fmt: skip
    return PairToAnnotate(**(names | changes), reference=reference, target=target)


def annotate(one: PairToAnnotate, seed: int = 0) -> Annotation | Rejection:
    return PlainAnnotator().annotate([one], seed)[0]


def kinds(target: dict[str, Any], reference: dict[str, Any] = BASE) -> list[str]:
    return [d.kind for d in differences(reference, target)]


def test_a_text_says_what_changed() -> None:
    answer = annotate(pair(photo(brightness=0.8, background="blue")))
    assert isinstance(answer, Annotation)
    assert answer.box == (50.0, 20.0, 100.0, 60.0)
    assert answer.annotator == "plain"
    assert answer.extra == {"differences": {"brighter": 0.3, "background": 1.0}}
    assert answer.confidence == pytest.approx(3.0 / 4.0)  # a difference of 0.3 is 3 × its threshold
    assert any(word in answer.text for word in ("brighter", "lighter", "brightly"))
    assert "blue" in answer.text


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"brightness": 0.61}, "brighter"), ({"brightness": 0.59}, None), ({"brightness": 0.39}, "darker"),
        ({"contrast": 0.27}, "more contrast"), ({"contrast": 0.25}, None), ({"contrast": 0.13}, "less contrast"),
        ({"saturation": 0.53}, "more colour"), ({"saturation": 0.51}, None), ({"saturation": 0.27}, "less colour"),
        ({"sharpness": 0.049}, "sharper"), ({"sharpness": 0.047}, None), ({"sharpness": 0.018}, "softer"),
        ({"background": "brown"}, "background"), ({"aspect": 1.2}, None),
        ({"aspect": 1.0}, "square"), ({"aspect": 0.5}, "portrait"),
        ({"box": [50.0, 20.0, 112.0, 68.0]}, None),  # 1.488 × the area
        ({"box": [44.0, 15.0, 106.0, 65.0]}, "closer"), ({"box": [60.0, 28.0, 90.0, 52.0]}, "farther"),
        ({"box": [81.0, 20.0, 131.0, 60.0]}, "right"), ({"box": [79.0, 20.0, 129.0, 60.0]}, None),
        ({"box": [19.0, 20.0, 69.0, 60.0]}, "left"), ({"box": [50.0, 36.0, 100.0, 76.0]}, "down"),
        ({"box": [50.0, 4.0, 100.0, 44.0]}, "up"), ({"box": [50.0, 6.0, 100.0, 46.0]}, None),
        # the same share and place of a frame of another size
        ({"width": 400, "height": 200, "box": [100.0, 40.0, 200.0, 120.0]}, None),
    ],
)  # fmt: skip
def test_only_definite_differences_are_named(changes: dict[str, Any], kind: str | None) -> None:
    assert kinds(photo(**changes)) == ([kind] if kind else [])


def test_noise_is_not_sharpness() -> None:
    assert kinds(photo(sharpness=0.009), photo(sharpness=0.001)) == []


def test_the_strongest_difference_comes_first() -> None:
    assert kinds(photo(brightness=0.65, saturation=0.9)) == ["more colour", "brighter"]
    assert kinds(photo(brightness=0.9, saturation=0.55)) == ["brighter", "more colour"]


def test_without_a_box_there_is_no_annotation_and_without_a_difference_neither() -> None:
    far = photo(brightness=0.9)
    no_box, nothing = annotate(pair(far, photo(box=None))), annotate(pair(photo(image_id="toys/bear/2.jpg")))
    assert isinstance(no_box, Rejection)
    assert isinstance(nothing, Rejection)
    assert (no_box.reason, nothing.reason) == ("no_box", "no_difference")
    assert isinstance(annotate(pair(photo(brightness=0.9, box=None))), Annotation)  # the target needs none


def test_equal_seeds_give_equal_texts_however_the_pairs_are_batched() -> None:
    pairs = [pair(photo(brightness=0.9, background="red"), pair_id=f"p{i}") for i in range(30)]
    plain = PlainAnnotator()
    together = plain.annotate(pairs, 7)
    assert together == [plain.annotate([p], 7)[0] for p in reversed(pairs)][::-1]
    texts = {a.text for a in together if isinstance(a, Annotation)}
    assert len(texts) >= 15  # the wording varies from pair to pair
    assert together != plain.annotate(pairs, 8)


def test_the_instance_is_never_named_even_by_chance() -> None:
    orange = photo(background="orange", brightness=0.9)
    for i in range(40):
        answer = annotate(pair(orange, instance_id="fruit/orange-2", category="light", pair_id=f"p{i}"))
        assert isinstance(answer, Annotation)
        assert "orange" not in answer.text
        assert " light " not in f"{answer.text} "
    alone = annotate(pair(photo(background="orange"), instance_id="fruit/orange"))
    assert isinstance(alone, Rejection)
    assert alone.reason == "no_difference"


measured = st.fixed_dictionaries(
    {
        "brightness": st.floats(0, 1),
        "contrast": st.floats(0, 0.5),
        "sharpness": st.floats(0, 0.3),
        "saturation": st.floats(0, 1),
        "background": st.sampled_from(["white", "black", "green", "brown"]),
        "aspect": st.floats(0.2, 5),
        "box": st.one_of(
            st.none(),
            st.tuples(st.floats(0, 90), st.floats(0, 40), st.floats(100, 200), st.floats(50, 100)).map(list),
        ),
    }
)


@given(reference=measured, target=measured, seed=st.integers(0, 2**31))
def test_every_text_keeps_the_rules(reference: dict[str, Any], target: dict[str, Any], seed: int) -> None:
    answer = annotate(pair(BASE | target, BASE | reference), seed)
    if isinstance(answer, Rejection):
        assert (answer.reason == "no_box") == (reference["box"] is None)
        return
    assert check_text(answer.text, max_words=25, banned=("bear", "plush toy")) is None
    assert 10 <= len(answer.text.split()) <= 25
    assert answer.text[0].isupper()
    assert answer.text.endswith(".")
    assert "{" not in answer.text
    assert 0.5 <= (answer.confidence or 0.0) < 1.0


@pytest.mark.parametrize(
    ("text", "banned", "reason"),
    [
        ("", (), "no_text"), ("  \n", (), "no_text"), ("one two three four", (), "text_too_long"),
        ("one two three", (), None), ("the Pink-Sunglasses again", ("pink_sunglasses",), "text_names_instance"),
        ("the café table", ("CAFE",), "text_names_instance"), ("a dog outside", ("dog2",), "text_names_instance"),
        ("a dogma outside", ("dog",), None), ("in dim light", ("nyala test 7", "42", ""), None),
        ("nyala test again", ("nyala-test-7",), "text_names_instance"),
    ],
)  # fmt: skip
def test_check_text(text: str, banned: tuple[str, ...], reason: str | None) -> None:
    found = check_text(text, max_words=3, banned=banned)
    assert (found.reason if found else None) == reason


def test_a_rejection_needs_a_known_reason() -> None:
    with pytest.raises(ValueError, match="unknown reason"):
        Rejection("bad mood", "")
