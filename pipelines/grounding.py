"""Between filter and annotate: boxes of photos whose source has none, by a detector; unsure ones wait for people."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
from pydantic import Field

from infra.base import storage
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.annotators.grounder import Grounder, Seen
from pipelines.earlier import Earlier
from pipelines.images import ImageLimits, ImageRejected, decode
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult

EXECUTION_ONLY = frozenset({"gpus", "images_at_once"})
"""Options that change how a detector runs, never what it finds."""
ANY = ImageLimits(min_side_px=1, max_pixels=2**40, max_aspect=2.0**40)
"""What an image may measure was judged when it was collected."""
WORKING_SIDE_PX = 800
"""JPEGs are decoded at a reduced size whose shorter side is at least this; detectors scale their input to it anyway."""


class GroundingOptions(Config):
    """A detector that finds boxes where the source has none."""

    model: str
    """Grounding DINO or MM-Grounding-DINO: a Hub id or a local folder."""
    min_score: float = Field(0.3, ge=0.0, le=1.0)
    """A box of lower confidence is not used; it waits for a person (table boxes, state review)."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Category → what to look for instead of its name."""
    images_at_once: int = Field(4, ge=1)
    """Photos of one forward."""
    gpus: float = Field(0.0, ge=0.0)
    """GPUs that each worker holds; 0 = CPU."""


@dataclass
class GroundStage(Stage):
    """Photos of pairs without a box → the likeliest box of each, used or to be reviewed."""

    options: GroundingOptions
    gpus: float = 0.0
    earlier: Earlier | None = None
    """What an earlier version knows; the detector looks at other photos only."""
    name = "ground"
    inputs = ("listing", "_work/images/filtered", "instances", "pairs")
    outputs = ("boxes", "rejects/ground")
    _grounder: Grounder | None = field(default=None, init=False, repr=False)

    def setup(self) -> None:
        """Load the detector."""
        self._grounder = Grounder(self.options.model, gpu=self.gpus > 0)

    def __call__(self, part: Part) -> StageResult:
        """Look for the object in every photo of the part that is in a pair and has no box."""
        pairs = part.tables["pairs"]
        used = {*pairs["reference_id"].to_pylist(), *pairs["target_id"].to_pylist()}
        objects = {row["image_id"]: row for row in part.tables["instances"].to_pylist()}
        wanted = [
            row | objects[row["image_id"]]
            for row in part.tables["_work/images/filtered"].to_pylist()
            if row["image_id"] in used and objects[row["image_id"]]["box"] is None
        ]
        boxes: list[dict[str, Any]] = []
        counts: dict[str, Counter[str]] = {}
        known = self._known(part.tables["listing"], wanted)
        found = dict(known)
        new = [row for row in wanted if row["image_id"] not in known]
        for first in range(0, len(new), self.options.images_at_once):
            group = new[first : first + self.options.images_at_once]
            found |= {row["image_id"]: seen for row, seen in zip(group, self._look(group), strict=True)}
        for row in wanted:
            boxes.append(self._row(row, found[row["image_id"]]))
            count = counts.setdefault(row["domain"], Counter())
            count[f"boxes {boxes[-1]['state']}"] += 1
            count["boxes taken over"] += row["image_id"] in known
        rejects = [_reject(row) for row in boxes if row["state"] != "found"]
        refused = Counter(row["reason"] for row in rejects)
        account = Account(
            entity="boxes", taken_in=len(boxes), kept=len(boxes) - len(rejects), rejected=dict(refused)
        )
        made = {
            "boxes": pa.Table.from_pylist(boxes, TABLES["boxes"]),
            "rejects/ground": pa.Table.from_pylist(rejects, TABLES["rejects"]),
        }
        return StageResult(made, [account], counts)

    def _known(self, listing: pa.Table, rows: Sequence[dict[str, Any]]) -> dict[str, Seen | None]:
        """Image → what the detector saw in the same bytes, told to look for the same thing."""
        before = self.earlier.boxes(listing, rows) if self.earlier else {}
        same = {
            n: box
            for row in rows
            if (box := before.get(n := row["image_id"])) and box["label"] == self._label(row)
        }
        return {n: Seen(tuple(box["box"]), box["score"]) if box["box"] else None for n, box in same.items()}

    def _look(self, rows: Sequence[dict[str, Any]]) -> list[Seen | None]:
        if self._grounder is None:
            raise ValueError("setup comes first")
        photos = [_open(row) for row in rows]
        labels = [self._label(row) for row in rows]
        return self._grounder.look_for(photos, labels, [(row["width"], row["height"]) for row in rows])

    def _label(self, row: dict[str, Any]) -> str:
        return self.options.labels.get(row["category"], row["category"].replace("_", " "))

    def _row(self, row: dict[str, Any], seen: Seen | None) -> dict[str, Any]:
        state = "none" if seen is None else "found" if seen.score >= self.options.min_score else "review"
        return {
            "image_id": row["image_id"],
            "instance_id": row["instance_id"],
            "label": self._label(row),
            "box": list(seen.box) if seen else None,
            "score": seen.score if seen else None,
            "state": state,
        }


def _open(row: dict[str, Any]) -> Any:
    data = storage.read_bytes(row["uri"])
    if hashlib.sha256(data).hexdigest() != row["sha256"]:
        raise OacirError(f"{row['uri']}: changed since it was collected (another sha256); build again")
    try:
        return decode(data, ANY, target_px=WORKING_SIDE_PX).image
    except ImageRejected as error:
        raise OacirError(f"{row['uri']}: cannot be decoded ({error}); build again") from error


def _reject(row: dict[str, Any]) -> dict[str, Any]:
    why = {"stage": "ground", "entity": "boxes", "key": row["image_id"]}
    if row["state"] == "none":
        return why | {"reason": "no_box", "detail": f"no place for {row['label']!r}"}
    box = ", ".join(f"{v:g}" for v in row["box"])
    return why | {"reason": "box_unsure", "detail": f"{row['label']!r} at {box} with {row['score']:.3f}"}


def with_boxes(known: dict[str, dict[str, Any]], boxes: pa.Table) -> None:
    """Give photos (image_id → what is known of it) the boxes that were found, or say that theirs is to be reviewed."""
    for row in boxes.to_pylist():
        photo = known.get(row["image_id"])
        if photo is None or photo.get("box") is not None:
            continue
        if row["state"] == "found":
            photo["box"] = row["box"]
        elif row["state"] == "review":
            photo["unsure"] = (
                f"{row['image_id']}: the detector's box has {row['score']:.3f} and waits for a person"
            )
