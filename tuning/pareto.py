"""Which trials no other one beats."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from tuning.config import better
from tuning.records import TrialRecord

Figures = Mapping[str, float]


def beats(one: Figures, other: Figures, objectives: Sequence[str]) -> bool:
    """Whether one is nowhere worse than the other and somewhere better."""
    gains = [better(name) * (one[name] - other[name]) for name in objectives]
    return min(gains) >= 0 < max(gains)


def front(records: Sequence[TrialRecord], objectives: Sequence[str]) -> list[TrialRecord]:
    """Finished trials that none beats, the best by the first objective first; of equal ones all."""
    finished = [r for r in records if r.state == "finished"]
    kept = [r for r in finished if not any(beats(o.figures, r.figures, objectives) for o in finished)]
    return sorted(kept, key=lambda r: (-better(objectives[0]) * r.figures[objectives[0]], r.number))


def ranked(records: Sequence[TrialRecord], objective: str) -> list[TrialRecord]:
    """Finished trials by an objective, best first; equal ones in the order of their numbers."""
    finished = [r for r in records if r.state == "finished"]
    return sorted(finished, key=lambda r: (-better(objective) * r.figures[objective], r.number))
