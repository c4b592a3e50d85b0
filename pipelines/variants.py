"""Variants of one product in one group: a car model in several colours is several instances.

The paper splits Car groups by colour with a fine-grained classifier (METHODS, Stage 1). Here the object, that is what
the box shows, is told apart by its basic colour term, by zero-shot labels of a named model, or by clusters of
descriptors.
A variant is an instance of its own, named `<instance>~<variant>`, and everything after collection sees only these.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from pydantic import Field, model_validator

from infra.base.config import Config

if TYPE_CHECKING:
    from pipelines.descriptors import Describer
    from pipelines.images import Box

Vectors = NDArray[np.float32]
CROP_SIDE_PX = 224
"""Longer side at which objects wait to be described."""
CENTRE_SHARE = 0.5
"""Of each side of a photo without a box: what is taken for the object."""
MOST_LINKED = 4096
"""Images of a group that are clustered pair by pair; the others join the nearest cluster."""


class VariantOptions(Config):
    """Whether the images of a group are split into variants of the object, and by what."""

    by: Literal["none", "colour", "labels", "cluster"] = "none"
    """colour = the basic colour term of most of the object's pixels; labels = which of `labels` the image model that
    encoder.model names sees; cluster = groups of like descriptors of the object."""
    domains: tuple[str, ...] | None = None
    """Domains whose groups are split; null = all."""
    min_share: float = Field(0.3, ge=0.0, le=1.0)
    """colour: least share of the object's pixels; below, the image is rejected (variant_unclear)."""
    labels: tuple[str, ...] = ()
    """labels: what to tell apart, for instance the colours of cars."""
    prompt: str = "a photo of a {label} {category}"
    """labels: what the model's text side reads."""
    min_margin: float = Field(0.0, ge=0.0, le=2.0)
    """labels: least cosine by which the best label leads; below, the image is rejected (variant_unclear)."""
    min_cosine: float = Field(0.7, gt=-1.0, lt=1.0)
    """cluster: least mean cosine between two clusters that are joined; belongs to the descriptor."""

    @model_validator(mode="after")
    def _is_complete(self) -> VariantOptions:
        if self.by == "labels" and len(set(self.labels)) < 2:
            raise ValueError(f"by labels needs at least two different labels, got {list(self.labels)}")
        if unfit := [label for label in self.labels if not label.strip() or set(label) & set("/~")]:
            raise ValueError(
                f"labels {unfit} cannot end the name of an instance; allowed are texts without / and ~"
            )
        if len({variant_id("", label) for label in self.labels}) < len(self.labels):
            raise ValueError(
                f"two of the labels {list(self.labels)} end the name of an instance alike (a space is a hyphen there)"
            )
        if self.by == "labels" and "{label}" not in self.prompt:
            raise ValueError(
                f"prompt {self.prompt!r} does not say {{label}}; for instance 'a {{label}} {{category}}'"
            )
        try:
            self.prompt.format(label="", category="")
        except (KeyError, IndexError, ValueError, AttributeError) as error:
            raise ValueError(
                f"prompt {self.prompt!r} cannot be filled in; in braces it may say label and category"
            ) from error
        return self

    def split(self, domain: str) -> bool:
        """Whether groups of a domain are split."""
        return self.by != "none" and (self.domains is None or domain in self.domains)


class Look(NamedTuple):
    """What an object looks like, as far as its variant hangs on it."""

    colour: str | None = None
    """Of by colour; None where no term has enough of the pixels."""
    vector: Vectors | None = None
    """[d] of by labels and by cluster."""


def crop(image: Image.Image, box: Box | None) -> Image.Image:
    """The object: what the box shows, or the middle of a photo without one; made smaller, never larger."""
    if box is None:
        margin = (1 - CENTRE_SHARE) / 2
        box = (
            image.width * margin,
            image.height * margin,
            image.width * (1 - margin),
            image.height * (1 - margin),
        )
    x1, y1 = int(min(box[0], image.width - 1)), int(min(box[1], image.height - 1))
    x2, y2 = max(x1 + 1, round(box[2])), max(y1 + 1, round(box[3]))
    found = image.convert("RGB").crop((x1, y1, min(x2, image.width), min(y2, image.height)))
    found.thumbnail((CROP_SIDE_PX, CROP_SIDE_PX), Image.Resampling.BOX, reducing_gap=2.0)
    return found


def looks(options: VariantOptions, objects: Sequence[Image.Image], describer: Describer) -> list[Look]:
    """Look at objects as the options ask for."""
    if options.by == "colour":
        return [Look(colour=_colour(image, options.min_share)) for image in objects]
    vectors = np.asarray(describer.describe(objects), np.float32) if objects else ()
    return [Look(vector=vector) for vector in vectors]


def _colour(image: Image.Image, min_share: float) -> str | None:
    from pipelines.measures import COLOURS, colour_terms

    hsv = np.asarray(image.convert("HSV"), dtype=np.float32) / 255.0
    counts = np.bincount(colour_terms(hsv).ravel(), minlength=len(COLOURS))
    best = int(counts.argmax())
    return COLOURS[best] if counts[best] >= min_share * counts.sum() else None


class Namer:
    """Says which variant each image of a group shows.

    Raises:
        OacirError: the describer's model cannot read the labels.
    """

    def __init__(self, options: VariantOptions, describer: Describer) -> None:
        self.options, self.describer = options, describer
        self._labels: dict[str, Vectors] = {}

    def names(self, category: str, image_ids: Sequence[str], found: Sequence[Look]) -> list[str | None]:
        """The variant of each image of one group; None where it is unclear.

        Args:
            category: of the group.
            image_ids: its images.
            found: what their objects look like.
        """
        if self.options.by == "colour":
            return [look.colour for look in found]
        vectors = np.stack([look.vector for look in found if look.vector is not None])
        if self.options.by == "labels":
            return self._labelled(category, vectors)
        return list(clusters(vectors, image_ids, self.options.min_cosine))

    def _labelled(self, category: str, vectors: Vectors) -> list[str | None]:
        if category not in self._labels:
            prompts = [
                self.options.prompt.format(label=label, category=category) for label in self.options.labels
            ]
            self._labels[category] = self.describer.describe_texts(prompts)
        cosine = vectors @ self._labels[category].T
        best = cosine.argmax(axis=1)
        second = np.partition(cosine, -2, axis=1)[:, -2]
        clear = cosine[np.arange(len(best)), best] - second >= self.options.min_margin
        return [self.options.labels[b] if sure else None for b, sure in zip(best, clear, strict=True)]


def clusters(vectors: Vectors, image_ids: Sequence[str], min_cosine: float) -> list[str]:
    """Average-linkage clusters of unit vectors [n, d]: the name of each image's, eight digits of its first member's id.

    Of more than MOST_LINKED images, those of lowest hash are linked and the others join the cluster of nearest mean.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import pdist

    count = len(image_ids)
    marks = [hashlib.sha256(image_id.encode()).hexdigest() for image_id in image_ids]
    linked = np.sort(np.argsort(np.array(marks), kind="stable")[:MOST_LINKED])
    if count == 1:
        return [marks[0][:8]]
    tree = linkage(pdist(vectors[linked].astype(np.float64), "cosine"), "average")
    number = fcluster(tree, 1.0 - min_cosine, "distance") - 1
    member = np.empty(count, np.int64)
    member[linked] = number
    rest = np.setdiff1d(np.arange(count), linked)
    if len(rest):
        means = np.stack([vectors[linked[number == c]].mean(axis=0) for c in range(number.max() + 1)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        member[rest] = (vectors[rest] @ means.T).argmax(axis=1)
    names = {
        int(c): min(m for m, other in zip(marks, member, strict=True) if other == c)[:8] for c in set(member)
    }
    return [names[int(c)] for c in member]


def variant_id(instance_id: str, variant: str) -> str:
    """The instance that a variant of a group is."""
    return f"{instance_id}~{variant.replace(' ', '-')}"


def group_of(instance_id: str, variant: str | None) -> str:
    """The group that an instance is a variant of; itself where it is none."""
    return instance_id if variant is None else instance_id.removesuffix(variant_id("", variant))
