"""Declared perturbations of a benchmark's queries: part of what an evaluation is, and stated with its figures."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from infra.base.config import Config

BoxChange = Literal["given", "scaled", "shifted", "none"]
TextChange = Literal["given", "typos", "dropped_words", "word_order", "telegraphic"]
ImageChange = Literal[
    "given", "blur", "noise", "jpeg", "darker", "brighter", "low_contrast", "pixelated", "occluded"
]
IOUS: dict[str, float] = {"scaled": 0.8, "shifted": 0.5}
"""IoU with the benchmark's box where a recipe names none: the two that the paper measures."""
BOX_WORDS = {
    "scaled": "boxes scaled to IoU {iou:g}",
    "shifted": "boxes scaled and shifted to IoU {iou:g}",
    "none": "no boxes",
}
TEXT_WORDS = {
    "typos": "a typing error in {share:.0%} of the words",
    "dropped_words": "{share:.0%} of the words left out",
    "word_order": "{share:.0%} of the words in another order",
    "telegraphic": "texts without function words",
}


class PerturbSection(Config):
    """What is changed about the queries. The galleries never are."""

    box: BoxChange = "given"
    """scaled: about its centre, smaller or larger, kept inside the picture; shifted: scaled, then moved; both to
    box_iou; none: asked without box and mask."""
    box_iou: Annotated[float, Field(ge=0.05, lt=1)] | None = None
    """IoU of the changed box with the benchmark's; null takes the paper's, 0.8 scaled and 0.5 shifted."""
    text: TextChange = "given"
    """typos: one wrong letter in a word; dropped_words; word_order: words change places; telegraphic: without articles,
    prepositions and the like. Words that name the object for the model (text_entity) are added afterwards."""
    text_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of a text's words that is changed, at least one; telegraphic takes no notice of it."""
    image: ImageChange = "given"
    """What is done to the photo of the reference before its box is looked at; the model's tower encodes it."""
    image_severity: Annotated[int, Field(ge=1, le=5)] = 3
    """From 1, hardly seen, to 5."""
    seed: int = 0
    """Of every draw, together with the query's id."""

    def stated(self) -> dict[str, Any]:
        """What is changed, resolved; empty where nothing is. Equal for sections that change queries alike."""
        found: dict[str, Any] = {}
        if self.box != "given":
            found["box"] = {"how": self.box, **({"iou": self.iou} if self.box in IOUS else {})}
        if self.text != "given":
            share = {} if self.text == "telegraphic" else {"share": self.text_share}
            found["text"] = {"how": self.text, **share}
        if self.image != "given":
            found["image"] = {"how": self.image, "severity": self.image_severity}
        return found | {"seed": self.seed} if found else {}

    @property
    def iou(self) -> float:
        """Of a changed box with the benchmark's."""
        return IOUS.get(self.box, 1.0) if self.box_iou is None else self.box_iou


def in_words(stated: dict[str, Any]) -> str:
    """What `PerturbSection.stated` says, as people read it; "" where nothing is changed."""
    said = []
    if "box" in stated:
        said.append(BOX_WORDS[stated["box"]["how"]].format(**stated["box"]))
    if "text" in stated:
        said.append(TEXT_WORDS[stated["text"]["how"]].format(**stated["text"]))
    if "image" in stated:
        what = stated["image"]["how"].replace("_", " ")
        said.append(f"references {what}, severity {stated['image']['severity']} of 5")
    return "; ".join(said)
