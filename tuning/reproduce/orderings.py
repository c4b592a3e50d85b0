"""Which model has to be better than which, as the paper found it, and whether the measured ones are: pure functions.

A gate reads: not significantly reversed, and significantly so where the paper's gap exceeds 2 points.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from training.significance import LEVEL, Difference, holm
from tuning.reproduce.measure import OWN, REFERENCE_ONLY, TEXT_ONLY, box_variant
from tuning.reproduce.rows import BARE, BOX_IOUS, CROP, CROSSED, FULL, SPRC, SPRC_CAAM, Row

CLEAR = 2.0
"""Points of the paper's gap above which ours has to be significant; and how near is near."""
AVG, R_ID, R = "Avg", "R_ID@1", "R@1"
RISES = "R_ID@1 rises, then saturates with β"
PEAKS = "R@1 peaks, then falls with β"
BEST_FIXED = "AdaFocal within noise of, or above, the best fixed β"
ON_THE_BEST = (RISES, PEAKS, BEST_FIXED)
"""Orderings of the set [S] whose comparisons hang on the best fixed β."""
Kind = Literal["above", "clearly above", "about equal"]


@dataclass(frozen=True, order=True)
class Side:
    """A row of the matrix as it is asked."""

    row: str
    variant: str = OWN


@dataclass(frozen=True)
class Gate:
    """One comparison that an ordering rests on."""

    ordering: str
    """What the paper shows, in words."""
    level: Literal["S", "W"]
    """S is demanded, W is reported."""
    first: Side
    second: Side
    metric: str
    kind: Kind
    paper: float | None = None
    """The paper's gap in points of Avg; None where it states none."""


@dataclass(frozen=True)
class Judged:
    """A gate with what was found."""

    gate: Gate
    difference: Difference
    corrected: float
    """p-value corrected for all comparisons of the report (Holm)."""
    passed: bool
    why: str


def gates(rows: Sequence[Row]) -> Iterator[Gate]:
    """The comparisons for these rows; the two that hang on the best β are `peaks`."""
    there = {row.name: row for row in rows}

    def above(
        ordering: str, level: Literal["S", "W"], first: str, second: str, *metrics: str
    ) -> Iterator[Gate]:
        if first in there and second in there:
            gap = _gap(there[first].paper, there[second].paper)
            kind: Kind = "clearly above" if gap is not None and gap > CLEAR else "above"
            for metric in metrics:
                yield Gate(ordering, level, Side(first), Side(second), metric, kind, gap)

    for first, second in ((FULL, CROP), (CROP, BARE), (FULL, BARE)):
        yield from above("AdaFocal > ROI crop > β = 0", "S", first, second, R_ID, AVG)
    for row in rows:
        if row.beta:
            yield from above("any fixed β > β = 0", "S", row.name, BARE, R_ID)
    yield from _boxes(there)
    yield from above("SPRC† > SPRC", "S", SPRC_CAAM, SPRC, AVG)
    yield from above("left out: AdaFocal > SPRC", "S", CROSSED[FULL], CROSSED[SPRC], AVG)
    for own in (FULL, SPRC):
        yield from above("full > domain left out", "S", own, CROSSED[own], AVG)
    yield from _blind(there)
    for first, second in ((FULL, "mlp"), ("mlp", "average")):
        yield from above("transformer > MLP > average pool", "W", first, second, AVG)
    for first, second in ((FULL, "transformer_frozen"), ("mlp", "mlp_frozen")):
        yield from above("learnable ≥ frozen probes", "W", first, second, AVG)
    yield from above("depth 2 > 1", "W", FULL, "depth_1", AVG)
    flat = [("then flat", f"depth_{n}") for n in (3, 4)]
    flat += [("probes flat from 2 to 32", f"probes_{n}") for n in (2, 8, 16, 32)]
    for ordering, name in (*flat, ("scalar ≈ vector", "vector")):
        if name in there:
            gap = _gap(there[FULL].paper, there[name].paper)
            yield Gate(ordering, "W", Side(FULL), Side(name), AVG, "about equal", gap)


def peaks(rows: Sequence[Row], mean: Callable[[Side, str], float]) -> Iterator[Gate]:
    """The comparisons with the best fixed β, which hang on the figures.

    Args:
        rows: of the matrix.
        mean: figure of a side in a metric.
    """
    sweep = sorted((row for row in rows if row.beta), key=lambda row: row.beta or 0.0)
    if len(sweep) < 3:
        return
    best, largest = {}, Side(sweep[-1].name)
    for metric in (R_ID, R, AVG):
        best[metric] = max((Side(row.name) for row in sweep), key=lambda side: mean(side, metric))
    inner = max((Side(row.name) for row in sweep[:-1]), key=lambda side: mean(side, R))
    yield Gate(RISES, "S", best[R_ID], Side(BARE), R_ID, "clearly above")
    if best[R_ID] != largest:
        yield Gate(RISES, "S", largest, best[R_ID], R_ID, "about equal")
    yield Gate(PEAKS, "S", inner, largest, R, "above")
    yield Gate(BEST_FIXED, "S", Side(FULL), best[AVG], AVG, "above")


def judged(gates: Sequence[Gate], differences: Sequence[Difference]) -> list[Judged]:
    """Every gate with whether it passes; p-values are corrected for their number where significance is demanded.

    Reversal is judged by the value as it is, which is the stricter way.
    """
    corrected = holm([d.p for d in differences])
    return [
        Judged(gate, d, p, *_passed(gate, d, p))
        for gate, d, p in zip(gates, differences, corrected, strict=True)
    ]


def _passed(gate: Gate, found: Difference, corrected: float) -> tuple[bool, str]:
    differs = found.shown()
    if gate.kind == "about equal":
        near = found.low >= -CLEAR and found.high <= CLEAR
        why = "differ" if differs else "no difference shown"
        return near or not differs, f"within {CLEAR:g} points" if near else why
    if differs and found.value < 0:
        return False, "significantly reversed"
    significant = found.value > 0 and found.shown(corrected)
    if gate.kind == "clearly above":
        return significant, "significant" if significant else f"not significant (corrected p ≥ {LEVEL:g})"
    return True, "significant" if significant else "not significantly reversed"


def verdicts(found: Sequence[Judged]) -> Mapping[tuple[str, str], bool]:
    """(level, ordering) → whether all its comparisons pass, in order."""
    told: dict[tuple[str, str], bool] = {}
    for one in found:
        key = (one.gate.level, one.gate.ordering)
        told[key] = told.get(key, True) and one.passed
    return told


def _gap(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else round(first - second, 2)


def _boxes(there: Mapping[str, Row]) -> Iterator[Gate]:
    if FULL not in there or BARE not in there:
        return
    near, far = (Side(FULL, box_variant(iou)) for iou in BOX_IOUS)
    ordering = "box IoU 0.8 ≈ 1.0 > 0.5 > none"
    yield Gate(ordering, "S", Side(FULL), near, AVG, "about equal", 0.07)
    yield Gate(ordering, "S", Side(FULL), far, AVG, "above", 1.09)
    yield Gate(ordering, "S", far, Side(BARE), AVG, "clearly above", 3.00)


def _blind(there: Mapping[str, Row]) -> Iterator[Gate]:
    """What sees less must stay clearly below: else context and instance do not compete in the benchmark."""
    ordering = "text alone, reference alone and ROI crop stay below AdaFocal on R@1"
    others = [Side(FULL, TEXT_ONLY), Side(FULL, REFERENCE_ONLY), *([Side(CROP)] if CROP in there else [])]
    if FULL in there:
        yield from (Gate(ordering, "S", Side(FULL), other, R, "clearly above") for other in others)
