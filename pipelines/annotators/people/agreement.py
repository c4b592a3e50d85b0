"""How far people agree who judged the same tasks. Pure functions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

Decision = Mapping[str, Any]
"""A row of `records.REVIEWS`."""


def agreement(by_task: Mapping[str, Sequence[Decision]]) -> dict[str, Any]:
    """Agreement over all tasks that two or more people decided; a task with k people counts k (k - 1) / 2 pairs.

    Args:
        by_task: task → one decision of each person.

    Returns:
        `tasks` and `pairs` compared; `verdict`: share of pairs that say the same of accept, edit and reject; `kept`:
        share that say the same of keep (accept, edit) and reject; `alpha`: Krippendorff's, of keep and reject; `kappa`:
        "person, person" → Cohen's, of keep and reject; of pairs that both keep: `text_equal`, the share of equal texts,
        and `box_iou`, the mean overlap of boxes. None where it is not defined.
    """
    shared = [sorted(d, key=lambda r: str(r["person"])) for d in by_task.values() if len(d) > 1]
    pairs = [pair for decisions in shared for pair in combinations(decisions, 2)]
    kept = [(a, b) for a, b in pairs if "reject" not in (a["verdict"], b["verdict"])]
    boxed = [(a["box_after"], b["box_after"]) for a, b in kept if a["box_after"] and b["box_after"]]
    couples: dict[str, list[tuple[str, str]]] = {}
    for a, b in pairs:
        couples.setdefault(f"{a['person']}, {b['person']}", []).append((keeps(a), keeps(b)))
    return {
        "tasks": len(shared),
        "pairs": len(pairs),
        "verdict": _mean([a["verdict"] == b["verdict"] for a, b in pairs]),
        "kept": _mean([keeps(a) == keeps(b) for a, b in pairs]),
        "alpha": krippendorff_alpha([[keeps(d) for d in decisions] for decisions in shared]),
        "kappa": {names: cohen_kappa(said) for names, said in sorted(couples.items())},
        "text_equal": _mean([a["text_after"] == b["text_after"] for a, b in kept]),
        "box_iou": _mean([iou(a, b) for a, b in boxed]),
    }


def keeps(decision: Decision) -> str:
    """Whether a decision keeps the quadruple: keep or reject."""
    return "reject" if decision["verdict"] == "reject" else "keep"


def cohen_kappa(pairs: Sequence[tuple[str, str]]) -> float | None:
    """Cohen's kappa (1960) of two people: (observed - expected) / (1 - expected), expected from each one's own shares.

    Args:
        pairs: what the first and the second said of each task.

    Returns:
        -1..1; None without a task, or where both always said one and the same thing.
    """
    if not pairs:
        return None
    n = len(pairs)
    first, second = Counter(a for a, _ in pairs), Counter(b for _, b in pairs)
    observed = sum(a == b for a, b in pairs) / n
    expected = sum(first[label] * second[label] for label in first) / n**2
    return None if expected == 1 else (observed - expected) / (1 - expected)


def krippendorff_alpha(units: Sequence[Sequence[str]]) -> float | None:
    """Krippendorff's alpha for names (2011, section C): any number of people, of whom each may have done some tasks.

    Args:
        units: what the people of each task said; tasks of one person do not count.

    Returns:
        At most 1; None without a task of two people, or where everybody always said one and the same thing.
    """
    units = [unit for unit in units if len(unit) > 1]
    total: Counter[str] = Counter(label for unit in units for label in unit)
    n = sum(total.values())
    expected = n**2 - sum(count**2 for count in total.values())
    if not expected:
        return None
    observed = sum(
        (len(unit) ** 2 - sum(count**2 for count in Counter(unit).values())) / (len(unit) - 1)
        for unit in units
    )
    return 1 - (n - 1) * observed / expected


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes x1, y1, x2, y2."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    both = max(0.0, width) * max(0.0, height)
    return both / (_area(a) + _area(b) - both)


def lines(found: Mapping[str, Any]) -> list[str]:
    """The same for people; none where nobody judged what another did."""
    if not found["tasks"]:
        return []
    kappas = "; ".join(f"{names}: {_number(kappa)}" for names, kappa in found["kappa"].items())
    return [
        f"agreement over {found['tasks']:,} tasks of two or more people: verdict {_share(found['verdict'])}, keep or"
        f" reject {_share(found['kept'])}, Krippendorff's alpha {_number(found['alpha'])}",
        f"Cohen's kappa of {kappas}",
        f"where both keep: equal texts {_share(found['text_equal'])}, mean overlap of boxes"
        f" {_number(found['box_iou'])}",
    ]


def _area(box: Sequence[float]) -> float:
    return (box[2] - box[0]) * (box[3] - box[1])


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


def _number(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
