"""Label Studio's formats, written: the labelling configuration and tasks with pre-annotations.

Tags: https://labelstud.io/tags/ (View, Image, RectangleLabels, TextArea, Choices). Tasks and predictions:
https://labelstud.io/guide/task_format and https://labelstud.io/guide/predictions. Coordinates are percent of the
photo as it is seen, upright (https://labelstud.io/guide/predictions#Units-of-image-annotations), so that the size of
the picture does not matter.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

BOX, TEXT, VERDICT, WORDS = "box", "text", "verdict", "words"
"""Names of the controls; an export speaks of them."""
LABEL = "anchor"
VERDICTS = ("accept", "edit", "reject")

CONFIGURATION = f"""<View>
  <Header value="$about" size="5"/>
  <View style="display: flex; gap: 1em">
    <View style="flex: 1">
      <Header value="Reference" size="6"/>
      <Image name="reference" value="$reference" zoom="true" rotateControl="false"/>
      <RectangleLabels name="{BOX}" toName="reference" canRotate="false">
        <Label value="{LABEL}" hotkey="b" background="#d62728"/>
      </RectangleLabels>
    </View>
    <View style="flex: 1">
      <Header value="Target" size="6"/>
      <Image name="target" value="$target" zoom="true" rotateControl="false"/>
    </View>
  </View>
  <Header value="What changes from reference to target, without naming the object" size="6"/>
  <TextArea name="{TEXT}" toName="reference" rows="2" maxSubmissions="1" editable="true"/>
  <Choices name="{VERDICT}" toName="reference" choice="single" showInline="true" required="true"
           requiredMessage="Accept, edit or reject?">
    <Choice value="accept" hotkey="1" hint="text and box are right as they are"/>
    <Choice value="edit" hotkey="2" hint="you changed the text or the box, and now they are right"/>
    <Choice value="reject" hotkey="3" hint="no sentence would make this pair useful"/>
  </Choices>
  <TextArea name="{WORDS}" toName="target" rows="1" maxSubmissions="1" editable="true"
            placeholder="why (as you like)"/>
</View>
"""
"""What a project's labelling interface is set up with."""


def task_id(pair_id: str, photos: Sequence[str], text: str | None, box: Sequence[float] | None) -> str:
    """The name of a task: 24 hex digits over the pair, the SHA-256 of its two photos, and the text and box shown."""
    shown = json.dumps([pair_id, *photos, text, None if box is None else [float(v) for v in box]])
    return hashlib.sha256(shown.encode()).hexdigest()[:24]


def task(
    row: Mapping[str, Any],
    benchmark: str,
    images: tuple[str, str],
    writer: str | None,
    about: str,
) -> dict[str, Any]:
    """One task for import into Label Studio; its prediction shows text and box as they are, to be changed.

    Args:
        row: of `records.REVIEW_TASKS`.
        benchmark: name of the dataset.
        images: addresses of reference and target, or data URIs.
        writer: of the text; null where there is none.
        about: a line above the photos.
    """
    data = {"task": row["task"], "pair": row["pair_id"], "benchmark": benchmark, "about": about}
    made: dict[str, Any] = {"data": data | {"reference": images[0], "target": images[1]}}
    result = []
    if row["box"] is not None:
        result.append(_rectangle(row["box"], row["width"], row["height"]))
    if row["text"] is not None:
        value = {"text": [row["text"]]}
        result.append(
            {"id": TEXT, "type": "textarea", "from_name": TEXT, "to_name": "reference", "value": value}
        )
    if result:
        made["predictions"] = [{"model_version": writer or "machine", "result": result}]
    return made


def _rectangle(box: Sequence[float], width: int, height: int) -> dict[str, Any]:
    x1, y1, x2, y2 = box
    place = {
        "x": 100 * x1 / width,
        "y": 100 * y1 / height,
        "width": 100 * (x2 - x1) / width,
        "height": 100 * (y2 - y1) / height,
    }
    return {
        "id": BOX,
        "type": "rectanglelabels",
        "from_name": BOX,
        "to_name": "reference",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": place | {"rotation": 0, "rectanglelabels": [LABEL]},
    }
