"""What of the reference is seen, and how texts name the object."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from infra.base.errors import OacirError
from training.model.views import TEMPLATES, name_entity, pixel_box, see, view_id, view_key


def photo(width: int = 20, height: int = 12, mode: str = "RGB") -> Image.Image:
    """Every pixel has a colour of its own; none is red."""
    y, x = np.mgrid[:height, :width]
    samples = np.stack([x + 1, y + 30, np.full_like(x, 90)], axis=2).astype(np.uint8)
    return Image.fromarray(samples).convert(mode)


def test_a_crop_is_the_pixels_of_the_box() -> None:
    seen = see(photo(), (3, 2, 9, 12), "crop")
    assert np.array_equal(np.asarray(seen), np.asarray(photo())[2:12, 3:9])
    assert see(photo(), (3, 2, 9, 12), "full").tobytes() == photo().tobytes()


@given(st.data())
def test_the_drawn_box_is_a_red_line_of_three_pixels_inside_its_edge(data: st.DataObject) -> None:
    x1, y1 = data.draw(st.integers(0, 19)), data.draw(st.integers(0, 11))
    x2, y2 = data.draw(st.integers(x1 + 1, 20)), data.draw(st.integers(y1 + 1, 12))
    image = photo()
    before = image.tobytes()
    drawn = np.asarray(see(image, (x1, y1, x2, y2), "drawn"))
    assert image.tobytes() == before  # the caller's image stays as it was
    for y in range(12):
        for x in range(20):
            inside = x1 <= x < x2 and y1 <= y < y2
            depth = min(x - x1, x2 - 1 - x, y - y1, y2 - 1 - y)
            red = inside and depth < 3
            assert tuple(drawn[y, x]) == ((255, 0, 0) if red else (x + 1, y + 30, 90))


@pytest.mark.parametrize("mode", ["L", "P", "RGBA"])
def test_other_modes_can_be_drawn_on(mode: str) -> None:
    drawn = see(photo(mode=mode), (2, 2, 18, 10), "drawn")
    assert (drawn.mode, drawn.getpixel((3, 3)), drawn.size) == ("RGB", (255, 0, 0), (20, 12))


def test_a_view_depends_on_the_pixels_that_the_box_touches() -> None:
    assert pixel_box((1.2, 3.0, 7.01, 8.0), 20, 12) == (1, 3, 8, 8)
    assert pixel_box((-4.0, -1.0, 90.0, 12.0), 20, 12) == (0, 0, 20, 12)
    assert pixel_box((5.2, 5.2, 5.4, 5.4), 20, 12) == (5, 5, 6, 6)
    with pytest.raises(OacirError, match=r"holds no pixel of its image of 20 x 12 px"):
        pixel_box((20.0, 0.0, 30.0, 5.0), 20, 12)
    assert view_id("car/a.jpg", (1, 3, 8, 8)) == "car/a.jpg#1,3,8,8"
    assert len({view_key(view) for view in ("full", "crop", "drawn")}) == 3
    assert view_key("full") == "full"  # the key of the stores that there are


def test_texts_name_the_category_or_the_red_box() -> None:
    text = "put it on a {red} table"  # braces are words of a user, no places to fill
    assert name_entity(text, "none", "kettle", "q1") == text
    named, drawn = (name_entity(text, entity, "kettle", "q1") for entity in ("named", "drawn"))
    assert named.endswith(text)
    assert "kettle" in named
    assert drawn == named.replace("kettle", "object in the red bounding box")
    with pytest.raises(OacirError, match="give the category of every query"):
        name_entity(text, "named", None, "q1")


def test_the_wording_is_drawn_from_the_query_and_all_eight_occur() -> None:
    texts = [name_entity("t", "named", "cup", f"domain/{n}") for n in range(800)]
    assert texts == [name_entity("t", "named", "cup", f"domain/{n}") for n in range(800)]
    counts = Counter(texts)
    assert set(counts) == {template.format(entity="cup", text="t") for template in TEMPLATES}
    assert len(TEMPLATES) == 8
    assert min(counts.values()) > 60  # 100 each would be even
    # without an id the text decides: the same wherever it is asked
    assert name_entity("a", "named", "cup") == name_entity("a", "named", "cup", "a")
    assert len({name_entity(f"text {n}", "named", "cup").replace(f"text {n}", "") for n in range(80)}) == 8


def test_the_wording_never_changes_between_releases() -> None:
    """A model was trained on these sentences: another draw would ask it otherwise than it learned."""
    found = [name_entity("x", "named", "cup", f"q{n}") for n in range(4)]
    assert found == [
        "With the very same cup, x",
        "Let the cup stay what it is, x",
        "With the very same cup, x",
        "Keep the cup, x",
    ]
