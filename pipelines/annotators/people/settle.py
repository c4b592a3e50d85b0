"""Several people, one answer: the decisions of a task → what becomes of its quadruple. Pure functions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipelines.annotators.people.agreement import iou, keeps
from pipelines.annotators.people.store import Row

SAME_BOX = 0.8
"""Two people mean the same box if theirs overlap by as much (intersection over union)."""
Conflict = Literal["pending", "reject", "first", "latest"]


@dataclass(frozen=True)
class Settled:
    """What the decisions of a task come to."""

    outcome: Literal["keep", "reject", "pending", "disagree"]
    """`pending`: there is no decision; `disagree`: there is no majority."""
    text: str | None = None
    """Of a quadruple that is kept."""
    box: list[float] | None = None
    by: tuple[Row, ...] = ()
    """The decisions that carry it."""


def settle(decisions: Sequence[Row], conflict: Conflict) -> Settled:
    """The answer of a task.

    First whether it stays: more people for keeping (accept, edit) than for rejecting, or the other way. Then how: the
    text and box that more of those say than any other. Equal texts whose boxes overlap by SAME_BOX are one answer, with
    the box of the earliest. Where neither has more, `conflict` decides: the first or the latest decision, or nobody.

    Args:
        decisions: one of each person.
        conflict: see `options.PeopleOptions`; with `pending` and `reject` the outcome is `disagree`.
    """
    if not decisions:
        return Settled("pending")
    ordered = sorted(decisions, key=lambda d: (d["decided_at"], d["person"]))
    keep = [d for d in ordered if keeps(d) == "keep"]
    reject = [d for d in ordered if keeps(d) == "reject"]
    answers = _answers(keep) if len(keep) > len(reject) else [reject] if len(reject) > len(keep) else []
    answers.sort(key=len, reverse=True)
    if answers and (len(answers) == 1 or len(answers[0]) > len(answers[1])):
        return _settled(answers[0])
    if conflict == "first":
        return _settled(ordered[:1])
    if conflict == "latest":
        return _settled(ordered[-1:])
    return Settled("disagree", by=tuple(ordered))


def counting(
    tasks: Sequence[Row],
    by_task: Mapping[str, Sequence[Row]],
    photos: tuple[str, str],
    text: str | None,
    box: Sequence[float] | None,
) -> tuple[list[Row], list[Row]]:
    """The decisions that count for a pair as it is now, and those on what it no longer is.

    What was shown must be what is there; of a pair without a quadruple, that there was none. Where nobody decided on
    that, an edit of another text counts as long as the photos are the same: it says what text and box have to be, not
    whether those shown are right. Of several such tasks the one with the latest edit is taken.

    Args:
        tasks: rows of `records.REVIEW_TASKS` of the pair.
        by_task: task → decisions.
        photos: SHA-256 of reference and target.
        text: that the pair has without people; null = it has no quadruple.
        box: likewise.
    """
    now: dict[str, list[Row]] = {}
    edits: dict[str, list[Row]] = {}
    everything = [d for task in tasks for d in by_task.get(task["task"], ())]
    for task in tasks:
        said = by_task.get(task["task"], ())
        if (task["reference_sha256"], task["target_sha256"]) != photos:
            continue
        if task["text"] == text and (text is None or task["box"] == box):
            now[task["task"]] = list(said)
        edits[task["task"]] = [d for d in said if d["verdict"] == "edit"]
    taken = _latest(now) or _latest(edits)
    return taken, [d for d in everything if d not in taken]


def _latest(found: Mapping[str, list[Row]]) -> list[Row]:
    return max(found.values(), key=lambda said: max((d["decided_at"] for d in said), default=""), default=[])


def _answers(keep: Sequence[Row]) -> list[list[Row]]:
    """Decisions that say the same, together."""
    found: list[list[Row]] = []
    for decision in keep:
        for answer in found:
            if _same(answer[0], decision):
                answer.append(decision)
                break
        else:
            found.append([decision])
    return found


def _same(a: Row, b: Row) -> bool:
    if a["text_after"] != b["text_after"]:
        return False
    boxes: tuple[Any, Any] = a["box_after"], b["box_after"]
    return boxes[0] == boxes[1] or iou(*boxes) >= SAME_BOX


def _settled(by: Sequence[Row]) -> Settled:
    first = by[0]
    return Settled(
        "reject" if keeps(first) == "reject" else "keep", first["text_after"], first["box_after"], tuple(by)
    )
