"""A group of one product in several variants becomes several instances."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image, ImageDraw

from infra.base.errors import OacirError
from pipelines.descriptors import OfflineDescriber, Vectors
from pipelines.variants import (
    CROP_SIDE_PX,
    Look,
    Namer,
    VariantOptions,
    clusters,
    crop,
    group_of,
    looks,
    variant_id,
)

RED, BLUE, GREY = (200, 20, 20), (20, 30, 200), (128, 128, 128)


def photo(colour: tuple[int, int, int], ground: tuple[int, int, int] = GREY, side: int = 100) -> Image.Image:
    """A disc in the middle of a plain ground."""
    image = Image.new("RGB", (side, side), ground)
    ImageDraw.Draw(image).ellipse((20, 20, 80, 80), fill=colour)
    return image


class Words:
    """A describer whose space is the axes of a few words."""

    name = "words"
    words = ("red", "blue", "green")

    def describe(self, images: Sequence[Image.Image]) -> Vectors:
        pixels = np.stack([np.asarray(i.resize((1, 1)), np.float32).ravel() for i in images])[:, [0, 2, 1]]
        found: Vectors = pixels / np.linalg.norm(pixels, axis=1, keepdims=True)
        return found

    def describe_texts(self, texts: Sequence[str]) -> Vectors:
        found = np.array([[word in text.split() for word in self.words] for text in texts], np.float32)
        return found


def test_the_object_is_what_the_box_shows() -> None:
    image = photo(RED)
    assert crop(image, (40.0, 40.0, 60.0, 55.0)).size == (20, 15)
    assert crop(image, None).size == (50, 50)
    assert crop(image, (99.6, 99.6, 130.0, 130.0)).size == (1, 1)
    assert max(crop(photo(RED, side=900), (0, 0, 900, 450)).size) == CROP_SIDE_PX
    terms = [crop(image, (40, 40, 60, 60)), crop(image, (0, 0, 10, 10)), crop(image, None)]
    found = looks(VariantOptions(by="colour"), terms, OfflineDescriber())
    assert [look.colour for look in found] == ["red", "gray", "red"]


def test_a_colour_that_does_not_prevail_is_unclear() -> None:
    stripes = Image.new("RGB", (90, 30))
    for n, colour in enumerate((RED, BLUE, (250, 250, 250))):
        stripes.paste(colour, (30 * n, 0, 30 * n + 30, 30))
    shares = (0.3, 0.4)
    found = [
        looks(VariantOptions(by="colour", min_share=s), [stripes], OfflineDescriber())[0] for s in shares
    ]
    assert found[0].colour in ("red", "blue", "white")
    assert found[1].colour is None


def test_labels_are_told_by_the_text_side_and_need_a_lead() -> None:
    options = VariantOptions(
        by="labels", labels=("red", "blue"), prompt="a {label} {category}", min_margin=0.3
    )
    namer = Namer(options, Words())
    found = looks(options, [photo(c, c) for c in (RED, BLUE, (120, 0, 110))], Words())
    assert namer.names("car", ["a", "b", "c"], found) == ["red", "blue", None]


def test_a_descriptor_without_texts_is_refused_in_one_line() -> None:
    options = VariantOptions(by="labels", labels=("red", "blue"))
    found = looks(options, [photo(RED)], OfflineDescriber())
    with pytest.raises(
        OacirError, match=r"variants\.by = labels: offline.* reads no texts; set encoder\.model"
    ):
        Namer(options, OfflineDescriber()).names("car", ["a"], found)


def test_clusters_are_those_of_average_linkage_whatever_the_order() -> None:
    angles = np.deg2rad([0, 5, 9, 60, 66, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    ids = [f"car/{n}" for n in range(6)]
    names = clusters(vectors, ids, 0.9)
    assert [names.index(n) for n in names] == [0, 0, 0, 3, 3, 5]
    order = [4, 2, 5, 0, 3, 1]
    assert clusters(vectors[order], [ids[n] for n in order], 0.9) == [names[n] for n in order]
    assert len(set(clusters(vectors, ids, -0.99))) == 1
    assert len(clusters(vectors[:1], ids[:1], 0.9)) == 1
    # mean cosine between {0, 5, 9} and {60, 66} is 0.498: joined just below it
    between = np.cos(angles[:3, None] - angles[None, 3:5]).mean()
    assert len(set(clusters(vectors[:5], ids[:5], float(between) - 0.01))) == 1
    assert len(set(clusters(vectors[:5], ids[:5], float(between) + 0.01))) == 2


def test_more_images_than_are_linked_join_the_nearest_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    centres = np.eye(3, 16, dtype=np.float32)
    truth = rng.integers(0, 3, 90)
    vectors = centres[truth] + 0.05 * rng.standard_normal((90, 16)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"car/{n}" for n in range(90)]
    whole = clusters(vectors, ids, 0.7)
    monkeypatch.setattr("pipelines.variants.MOST_LINKED", 30)
    assert clusters(vectors, ids, 0.7) == whole
    assert {(t, n) for t, n in zip(truth, whole, strict=True)} == {
        (t, whole[list(truth).index(t)]) for t in range(3)
    }


def test_options_that_cannot_work_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two different labels"):
        VariantOptions(by="labels", labels=("red", "red"))
    with pytest.raises(ValueError, match=r"does not say \{label\}"):
        VariantOptions(by="labels", labels=("red", "blue"), prompt="a car")
    with pytest.raises(ValueError, match=r"{colour} {label}. cannot be filled in"):
        VariantOptions(by="labels", labels=("red", "blue"), prompt="a {colour} {label}")
    with pytest.raises(ValueError, match="end the name of an instance alike"):
        VariantOptions(by="labels", labels=("light blue", "light-blue", "red"))
    with pytest.raises(ValueError, match=r"labels \['black/white'\] cannot end the name of an instance"):
        VariantOptions(by="labels", labels=("red", "black/white"))
    assert VariantOptions(by="colour", domains=("car",)).split("car")
    assert not VariantOptions(by="colour", domains=("car",)).split("shoes")
    assert not VariantOptions().split("car")


def test_a_name_says_group_and_variant() -> None:
    assert variant_id("car/x5", "light blue") == "car/x5~light-blue"
    assert group_of("car/x5~light-blue", "light blue") == "car/x5"
    assert group_of("car/x~5", None) == "car/x~5"
    assert Namer(VariantOptions(by="colour"), OfflineDescriber()).names(
        "car", ["a"], [Look(colour="red")]
    ) == ["red"]
