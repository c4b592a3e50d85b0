"""What of the reference the model sees, and how the text speaks of the object: the baselines' ways to name an anchor.

ROI crop, visual anchor and text entity of the paper's comparison (Settings 1 and 2). Pure functions; wordings are ours.
"""

from __future__ import annotations

import hashlib
import math
from typing import TYPE_CHECKING, Literal, Protocol, get_args

from infra.base.errors import OacirError
from training.model.regions import Box

if TYPE_CHECKING:
    from PIL import Image

ReferenceView = Literal["full", "crop", "drawn"]
"""full: the photo as it is; crop: only the pixels of the box; drawn: the box drawn on the photo."""
TextEntity = Literal["none", "named", "drawn"]
"""none: the modification text as it is; named (Setting 1): it names the category; drawn (Setting 2): the red box."""
RegionKind = Literal["box", "mask"]
"""Which region of a benchmark's query is asked with; a query without a mask is asked with its box."""
PixelBox = tuple[int, int, int, int]
"""x1, y1, x2, y2 in whole pixels, half-open."""


class Asking(Protocol):
    """How a model is asked: what its processor, or whoever stands in for one, says of it."""

    @property
    def reference_view(self) -> ReferenceView:
        """What it sees of the reference."""
        ...

    @property
    def text_entity(self) -> TextEntity:
        """How the text speaks of the object."""
        ...

    @property
    def region(self) -> RegionKind:
        """Which region marks the object."""
        ...


RED = (255, 0, 0)
LINE_PX = 3
DRAWN_ENTITY = "object in the red bounding box"
TEMPLATES = (
    "Keep the {entity}, {text}",
    "With the very same {entity}, {text}",
    "Leave the {entity} as it is, {text}",
    "Hold on to the {entity}, {text}",
    "It has to be this {entity}, {text}",
    "Do not change the {entity}, {text}",
    "Look for this same {entity}, {text}",
    "Let the {entity} stay what it is, {text}",
)


def check_choice(value: str, choices: object, name: str) -> None:
    """Whether a setting is one of a Literal's values.

    Raises:
        OacirError: it is not.
    """
    if value not in get_args(choices):
        raise OacirError(f"{name} {value!r} is none of {list(get_args(choices))}")


def pixel_box(box: Box, width: int, height: int) -> PixelBox:
    """The pixels of a `width` x `height` image that the box touches: all that a view's pixels depend on.

    Raises:
        OacirError: it touches none.
    """
    x1, y1 = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    x2, y2 = min(math.ceil(box[2]), width), min(math.ceil(box[3]), height)
    if x1 >= x2 or y1 >= y2:
        raise OacirError(f"the box {tuple(box)} holds no pixel of its image of {width} x {height} px")
    return x1, y1, x2, y2


def see(image: Image.Image, box: PixelBox, view: ReferenceView) -> Image.Image:
    """What is encoded of a reference: all of it, the pixels of the box, or a copy with the box's edge in red.

    The line is `LINE_PX` wide, inside the box; a box too small for an inner part is filled.
    """
    if view == "full":
        return image
    if view == "crop":
        return image.crop(box)
    drawn = image.convert("RGB")
    x1, y1, x2, y2 = box
    inner = (x1 + LINE_PX, y1 + LINE_PX, x2 - LINE_PX, y2 - LINE_PX)
    kept = drawn.crop(inner) if inner[0] < inner[2] and inner[1] < inner[3] else None
    drawn.paste(RED, box)
    if kept is not None:
        drawn.paste(kept, inner)
    return drawn


def view_id(image_id: str, box: PixelBox) -> str:
    """What a feature store of views calls the view of an image through a box."""
    return f"{image_id}#{','.join(map(str, box))}"


def view_key(view: ReferenceView) -> str:
    """What the tokens of a view depend on beside the image and the box."""
    return f"drawn {RED} {LINE_PX} px" if view == "drawn" else view


def name_entity(
    text: str, entity: TextEntity, category: str | None = None, query_id: str | None = None
) -> str:
    """The modification text inside one of eight sentences that say which object is meant.

    Which one is a fixed draw from the query's id, or from the text where there is none: training, evaluation and
    a query by hand agree.

    Args:
        text: the modification text.
        entity: none gives it back as it is.
        category: what the object is called; needed for `named`.
        query_id: of the benchmark.

    Raises:
        OacirError: `named` without a category.
    """
    if entity == "none":
        return text
    if entity == "named" and not category:
        raise OacirError(
            "this model is told the object's category in the text: give the category of every query"
        )
    digest = hashlib.sha256(f"text entity\0{text if query_id is None else query_id}".encode()).digest()
    template = TEMPLATES[int.from_bytes(digest[:8]) % len(TEMPLATES)]
    return template.format(entity=category if entity == "named" else DRAWN_ENTITY, text=text)
