"""What a challenger has to pass to become champion: declared in a recipe, judged from what was measured just now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from infra.base.config import Config

Metric = Literal["R_ID@1", "R@1", "R_ID@5", "R@5", "Avg"]
Percent = Annotated[float, Field(ge=0, le=100)]


class GatesSection(Config):
    """The gates. A tolerance of 0 takes no loss at all."""

    metrics: Annotated[tuple[Metric, ...], Field(min_length=1)] = ("R_ID@1", "R@1")
    """Figures that may not fall, each in every domain of the split."""
    tolerance: Percent = 1.0
    """Percentage points that a figure of a domain may lie below the champion's."""
    least: dict[Metric, Percent] = Field(default_factory=dict)
    """Percent that a figure has to reach over all domains, with a champion and without one."""
    latency_p95_ms: Annotated[float, Field(gt=0)] | None = None
    """Longest p95 of one query's time, decoded and embedded on this machine; null has no limit."""
    size_bytes: Annotated[int, Field(gt=0)] | None = None
    """Largest size of the model's files; null has no limit."""
    same_schema: bool = True
    """What goes in and comes out has to be as with the champion."""


@dataclass(frozen=True)
class Measured:
    """What was found out about a version.

    Attributes:
        version: its number.
        figures: of its evaluation (`pipelines.retrieval.summary.figures`).
        schema_hash: of its signature.
        size_bytes: of its files.
        latency_ms: of single queries, sorted; empty where no gate asks.
    """

    version: str
    figures: Mapping[str, Any]
    schema_hash: str
    size_bytes: int
    latency_ms: Sequence[float] = field(default_factory=tuple)


@dataclass(frozen=True)
class Check:
    """One line of the verdict, its values as people read them."""

    gate: str
    champion: str
    challenger: str
    allowed: str
    passed: bool


def judge(gates: GatesSection, challenger: Measured, champion: Measured | None) -> list[Check]:
    """Every gate, passed or not; without a champion those that compare have nothing to compare with.

    Domains that one of the two was not asked in, and galleries that are not the same, do not pass.
    """
    checks: list[Check] = []
    if champion is not None:
        checks += _galleries(challenger, champion)
        for domain in sorted(set(challenger.figures["domains"]) & set(champion.figures["domains"])):
            checks += [_no_loss(gates, metric, domain, challenger, champion) for metric in gates.metrics]
    for metric, least in gates.least.items():
        value = challenger.figures["overall"]["metrics"][metric]["value"]
        there = "" if champion is None else f"{champion.figures['overall']['metrics'][metric]['value']:.2f}"
        checks.append(Check(f"{metric}, all domains", there, f"{value:.2f}", f"≥ {least:g}", value >= least))
    if gates.latency_p95_ms is not None:
        own, limit = p95(challenger.latency_ms), gates.latency_p95_ms
        there = f"{p95(champion.latency_ms):.1f}" if champion and champion.latency_ms else ""
        checks.append(Check("latency p95, ms", there, f"{own:.1f}", f"≤ {limit:g}", own <= limit))
    if gates.size_bytes is not None:
        size = challenger.size_bytes
        there = "" if champion is None else f"{champion.size_bytes:,}"
        checks.append(
            Check("size, bytes", there, f"{size:,}", f"≤ {gates.size_bytes:,}", size <= gates.size_bytes)
        )
    if gates.same_schema and champion is not None:
        same = challenger.schema_hash == champion.schema_hash
        checks.append(
            Check("schema", champion.schema_hash[:12], challenger.schema_hash[:12], "the same", same)
        )
    return checks


def p95(values: Sequence[float]) -> float:
    """The smallest value that at least 95 of 100 do not exceed (nearest rank).

    Raises:
        ValueError: there is none.
    """
    if not values:
        raise ValueError("nothing was timed")
    ordered = sorted(values)
    return ordered[-(-95 * len(ordered) // 100) - 1]


def table(checks: Sequence[Check]) -> list[list[str]]:
    """Rows for people, with a head; what failed comes first."""
    rows = [["gate", "champion", "challenger", "allowed", ""]]
    for check in sorted(checks, key=lambda c: c.passed):
        passed = "passed" if check.passed else "FAILED"
        rows.append([check.gate, check.champion, check.challenger, check.allowed, passed])
    return rows


def _galleries(challenger: Measured, champion: Measured) -> list[Check]:
    own, theirs = (_hashes(m) for m in (challenger, champion))
    return [
        Check(f"gallery of {domain}", _short(theirs, domain), _short(own, domain), "the same", False)
        for domain in sorted(set(own) | set(theirs))
        if own.get(domain) != theirs.get(domain)
    ]


def _no_loss(
    gates: GatesSection, metric: str, domain: str, challenger: Measured, champion: Measured
) -> Check:
    own, theirs = (
        float(m.figures["domains"][domain]["metrics"][metric]["value"]) for m in (challenger, champion)
    )
    least = theirs - gates.tolerance
    # both are recalls in percent: a difference below a millionth of a point is rounding
    return Check(f"{metric}, {domain}", f"{theirs:.2f}", f"{own:.2f}", f"≥ {least:.2f}", own >= least - 1e-6)


def _hashes(measured: Measured) -> dict[str, str]:
    return {domain: part["gallery"]["hash"] for domain, part in measured.figures["domains"].items()}


def _short(hashes: Mapping[str, str], domain: str) -> str:
    return hashes[domain][:12] if domain in hashes else "absent"
