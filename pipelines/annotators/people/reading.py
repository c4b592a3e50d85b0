"""Label Studio's exports, read strictly: JSON and JSON-MIN → decisions, and a line for each thing that is wrong.

JSON: https://labelstud.io/guide/export#JSON and https://labelstud.io/guide/task_format. JSON-MIN holds one record for
each annotation, the task's data and the controls side by side (`convert_to_json_min` of label_studio_sdk's converter,
https://github.com/HumanSignal/label-studio-sdk).
"""

from __future__ import annotations

import datetime
import hashlib
import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pipelines.annotators.people.label_studio import BOX, TEXT, VERDICT, VERDICTS, WORDS

OUTSIDE_PERCENT = 0.5
"""By so much a box may pass the photo's edge: drawing and rounding do it. It is cut there."""
SAME_PX = 1.0
"""A box whose edges moved by less is the one that was shown."""
ASPECT = 0.02
"""Two pictures whose ratios of width to height differ by a larger share are not the same."""
TYPES = {TEXT: "textarea", VERDICT: "choices", WORDS: "textarea", BOX: "rectanglelabels"}


@dataclass
class Read:
    """What an export holds."""

    decisions: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `records.REVIEWS`, one for each person and task."""
    faults: list[str] = field(default_factory=list)
    """A line for each annotation or task that cannot be used."""
    counts: Counter[str] = field(default_factory=Counter)


class Fault(Exception):  # noqa: N818 - a verdict on one annotation of many, not an error of the program
    """Why an annotation cannot be used."""


def read_export(data: Any, tasks: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]) -> Read:
    """Read an export of a project that was set up with our tasks.

    Args:
        data: the parsed file.
        tasks: task → its row of `records.REVIEW_TASKS`, of all that were exported.
        names: Label Studio's number or e-mail address of a person → the name to keep. Without one the number is kept,
            of an address its hash: a benchmark is no place for addresses.

    Returns:
        Decisions, faults, and counts: tasks, annotations, skipped (by the person), open (tasks without an annotation),
        drafts (not submitted), superseded (earlier annotations of the same person and task), and of verdicts that the
        contents contradict: "accepted but changed" (read as edit), "edited but unchanged" (read as accept).
    """
    read = Read()
    if not isinstance(data, list):
        read.faults.append("the file is no list of tasks; export the project as JSON or JSON-MIN")
        return read
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for number, entry in enumerate(data, 1):
        if not isinstance(entry, dict):
            read.faults.append(f"task number {number}: no object")
            continue
        where = f"task {entry.get('id', f'number {number}')}"
        read.counts["tasks"] += "annotations" in entry
        try:
            known = _known(entry, tasks)
        except Fault as fault:
            read.faults.append(f"{where}: {fault}")
            continue
        for said in _annotations(entry, read.counts):
            place = f"{where}, annotation {said['id']}"
            try:
                row = _decision(said, known, names, read.counts)
            except Fault as fault:
                read.faults.append(f"{place}: {fault}")
                continue
            key = row["task"], row["person"]
            if key in found:
                read.counts["superseded"] += 1
            if key not in found or found[key]["decided_at"] <= row["decided_at"]:
                found[key] = row
    read.decisions = [found[key] for key in sorted(found)]
    return read


def _known(entry: Mapping[str, Any], tasks: Mapping[str, Mapping[str, Any]]) -> Mapping[str, Any]:
    data = entry.get("data", {}) if "annotations" in entry else entry
    name = data.get("task") if isinstance(data, dict) else None
    if not isinstance(name, str):
        raise Fault("names no task of an export of ours (no data.task)")
    if name not in tasks:
        raise Fault(
            f"{data.get('pair', name)}: was not exported from this benchmark, or by another root; import where"
            " `oacir review export` wrote it"
        )
    return tasks[name]


def _annotations(entry: Mapping[str, Any], counts: Counter[str]) -> Iterator[dict[str, Any]]:
    """The submitted annotations of an entry in one form: id, person, times, and values by control."""
    if "annotations" not in entry:
        if entry.get("annotation_id") is None:
            counts["open"] += 1
            return
        counts["annotations"] += 1
        times = {k: entry.get(k) for k in ("created_at", "updated_at", "lead_time")}
        controls = {c: entry[c] if isinstance(entry[c], list) else [entry[c]] for c in TYPES if c in entry}
        yield {"id": entry["annotation_id"], "person": entry.get("annotator"), "controls": controls, **times}
        return
    drafts = entry.get("drafts")
    counts["drafts"] += len(drafts) if isinstance(drafts, list) else 0
    said = entry["annotations"] if isinstance(entry["annotations"], list) else []
    counts["open"] += not said
    for annotation in said:
        if annotation.get("was_cancelled"):
            counts["skipped"] += 1
            continue
        counts["annotations"] += 1
        controls = {}
        for item in annotation.get("result") or []:
            controls.setdefault(str(item.get("from_name")), []).append(item)
        times = {k: annotation.get(k) for k in ("created_at", "updated_at", "lead_time")}
        yield {
            "id": annotation.get("id"),
            "person": annotation.get("completed_by"),
            "controls": controls,
            **times,
        }


def _decision(
    said: Mapping[str, Any], task: Mapping[str, Any], names: Mapping[str, str], counts: Counter[str]
) -> dict[str, Any]:
    controls = said["controls"]
    if unknown := sorted(set(controls) - set(TYPES)):
        raise Fault(f"speaks of {', '.join(unknown)}, which is not in our labelling configuration")
    verdict, text, box = _verdict(controls), _text(controls, TEXT), _box(controls, task)
    if verdict == "reject":
        text, box = None, None
    else:
        if text is None:
            raise Fault(f"{verdict} without a text")
        if box is None:
            raise Fault(f"{verdict} without a box")
        if task["box"] is not None and _moved(box, task["box"]) < SAME_PX:
            box = list(task["box"])
        changed = text != task["text"] or box != task["box"]
        if changed and verdict == "accept":
            verdict = "edit"
            counts["accepted but changed"] += 1
        elif not changed and verdict == "edit":
            verdict = "accept"
            counts["edited but unchanged"] += 1
    return {
        "task": task["task"],
        "pair_id": task["pair_id"],
        "person": _person(said["person"], names),
        "decided_at": _time(said["updated_at"] or said["created_at"]),
        "seconds": _seconds(said["lead_time"]),
        "verdict": verdict,
        "words": _text(controls, WORDS),
        "text_before": task["text"],
        "text_after": text,
        "box_before": task["box"],
        "box_after": box,
        "state": None,
    }


def _verdict(controls: Mapping[str, Sequence[Any]]) -> str:
    items = controls.get(VERDICT, ())
    chosen = [c for item in items for c in _value(item, "choices")]
    if not chosen:
        raise Fault(f"no verdict; allowed are {', '.join(VERDICTS)}")
    if len(chosen) > 1:
        raise Fault(f"{len(chosen)} verdicts ({', '.join(map(str, chosen))})")
    if chosen[0] not in VERDICTS:
        raise Fault(f"verdict {chosen[0]!r}; allowed are {', '.join(VERDICTS)}")
    return str(chosen[0])


def _text(controls: Mapping[str, Sequence[Any]], control: str) -> str | None:
    """What a text field says, white space made single; None where it is empty."""
    said = [t for item in controls.get(control, ()) for t in _value(item, "text")]
    texts = [words for t in said if (words := " ".join(str(t).split()))]
    if len(texts) > 1:
        raise Fault(f"{len(texts)} texts in {control}; one is allowed")
    return texts[0] if texts else None


def _value(item: Any, key: str) -> list[Any]:
    """The values of a result of the full format or of JSON-MIN, which leaves a single one bare."""
    if isinstance(item, dict):
        item = item.get("value", item)
        item = item.get(key, []) if isinstance(item, dict) else item
    return item if isinstance(item, list) else [item]


def _box(controls: Mapping[str, Sequence[Any]], task: Mapping[str, Any]) -> list[float] | None:
    items = controls.get(BOX, ())
    if not items:
        return None
    if len(items) > 1:
        raise Fault(f"{len(items)} boxes; one is allowed")
    item = items[0]
    if not isinstance(item, dict):
        raise Fault("its box is no rectangle")
    value = item.get("value", item)
    try:
        left, top, width, height = (float(value[k]) for k in ("x", "y", "width", "height"))
    except (KeyError, TypeError, ValueError) as error:
        raise Fault("its box is no rectangle") from error
    if value.get("rotation") or item.get("image_rotation"):
        raise Fault("its box, or the photo, is rotated; boxes stand upright")
    across, down = item.get("original_width"), item.get("original_height")
    if across and down and abs((across / down) / (task["width"] / task["height"]) - 1) > ASPECT:
        raise Fault(
            f"its box was drawn on a picture of {across} x {down}, the reference has {task['width']} x"
            f" {task['height']}; it is another picture, or it was not shown upright"
        )
    if not all(map(math.isfinite, (left, top, width, height))) or width <= 0 or height <= 0:
        raise Fault("its box has no area")
    low, high = min(left, top), max(left + width, top + height)
    if low < -OUTSIDE_PERCENT or high > 100 + OUTSIDE_PERCENT:
        raise Fault(
            f"its box leaves the photo ({left:g}, {top:g} to {left + width:g}, {top + height:g} of 100 %)"
        )
    w, h = task["width"], task["height"]
    x1, y1 = max(0, round(left * w / 100)), max(0, round(top * h / 100))
    x2, y2 = min(w, round((left + width) * w / 100)), min(h, round((top + height) * h / 100))
    if x2 <= x1 or y2 <= y1:
        raise Fault("its box has less than a pixel")
    return [float(x1), float(y1), float(x2), float(y2)]


def _moved(box: Sequence[float], before: Sequence[float]) -> float:
    return max(abs(a - b) for a, b in zip(box, before, strict=True))


def _person(said: Any, names: Mapping[str, str]) -> str:
    number, address = (said.get("id"), said.get("email")) if isinstance(said, dict) else (said, None)
    for known in (number, address):
        if known is not None and str(known) in names:
            return names[str(known)]
    if number in (None, ""):
        raise Fault("nobody is named as its author")
    if "@" in str(number):
        return f"person-{hashlib.sha256(str(number).casefold().encode()).hexdigest()[:8]}"
    return str(number)


def _time(said: Any) -> str:
    try:
        moment = datetime.datetime.fromisoformat(said)
    except (TypeError, ValueError) as error:
        raise Fault(f"its time {said!r} is no date") from error
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=datetime.UTC)
    return moment.astimezone(datetime.UTC).isoformat(timespec="milliseconds")


def _seconds(said: Any) -> float | None:
    return float(said) if isinstance(said, int | float) and not isinstance(said, bool) else None
