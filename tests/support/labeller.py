"""People in Label Studio: its exports of our tasks, in the form its server 1.23 gives them."""

from __future__ import annotations

import copy
from typing import Any

CREATED = "2026-03-01T10:00:00.000000Z"


def annotation(
    task: dict[str, Any],
    verdict: str | None,
    *,
    person: Any = 1,
    text: str | None = None,
    box: dict[str, Any] | None = None,
    words: str | None = None,
    at: str = CREATED,
    number: int = 1,
) -> dict[str, Any]:
    """What a person submits who starts from the prediction; `box` changes the rectangle's percentages."""
    result = copy.deepcopy(task["predictions"][0]["result"]) if "predictions" in task else []
    for item in result:
        item["origin"] = "prediction-changed"
        if item["type"] == "textarea" and text is not None:
            item["value"]["text"] = [text]
        if item["type"] == "rectanglelabels" and box is not None:
            item["value"] |= box
    if "predictions" not in task and text is not None:
        result.append(_text("text", text))
    if verdict is not None:
        chosen = {"choices": [verdict]}
        result.append(
            {"id": "v", "type": "choices", "from_name": "verdict", "to_name": "reference", "value": chosen}
        )
    if words is not None:
        result.append(_text("words", words) | {"to_name": "target"})
    return {
        "id": number,
        "completed_by": person,
        "result": result,
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": at,
        "updated_at": at,
        "draft_created_at": None,
        "lead_time": 12.5,
        "prediction": {},
        "result_count": len(result),
        "unique_id": f"u{number}",
        "import_id": None,
        "last_action": None,
        "bulk_created": False,
        "task": 1,
        "project": 1,
        "updated_by": 1,
        "parent_prediction": None,
        "parent_annotation": None,
        "last_created_by": None,
    }


def exported(task: dict[str, Any], *annotations: dict[str, Any], number: int = 1) -> dict[str, Any]:
    """A task of a JSON export."""
    return {
        "id": number,
        "annotations": list(annotations),
        "file_upload": "tasks.json",
        "drafts": [],
        "predictions": [],
        "data": task["data"],
        "meta": {},
        "created_at": CREATED,
        "updated_at": CREATED,
        "inner_id": number,
        "total_annotations": len(annotations),
        "cancelled_annotations": 0,
        "total_predictions": 1,
        "comment_count": 0,
        "unresolved_comment_count": 0,
        "last_comment_updated_at": None,
        "project": 1,
        "updated_by": 1,
        "comment_authors": [],
    }


def _text(control: str, words: str) -> dict[str, Any]:
    return {
        "id": control, "type": "textarea", "from_name": control, "to_name": "reference", "value": {"text": [words]},
    }  # fmt: skip
