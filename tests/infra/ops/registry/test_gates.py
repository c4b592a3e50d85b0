"""Gates, judged by hand."""

from __future__ import annotations

from typing import Any

import pydantic
import pytest

from infra.ops.registry.gates import GatesSection, Measured, judge, p95, table


def measured(version: str, scores: dict[str, tuple[float, float]], **more: Any) -> Measured:
    """Domain → R_ID@1 and R@1."""
    domains = {
        d: {"metrics": {"R_ID@1": {"value": a}, "R@1": {"value": b}}, "gallery": {"hash": f"g-{d}"}}
        for d, (a, b) in scores.items()
    }
    means = {
        name: {"value": sum(v[i] for v in scores.values()) / len(scores)}
        for i, name in enumerate(("R_ID@1", "R@1"))
    }
    figures = {"domains": domains, "overall": {"metrics": means}}
    return Measured(version, figures, more.get("schema", "s"), more.get("size", 10), more.get("latency", ()))


def failed(gates: GatesSection, challenger: Measured, champion: Measured | None) -> list[str]:
    return [check.gate for check in judge(gates, challenger, champion) if not check.passed]


CHAMPION = measured("1", {"car": (50.0, 30.0), "toy": (20.0, 10.0)})


@pytest.mark.parametrize(
    ("scores", "missed"),
    [
        ({"car": (50.0, 30.0), "toy": (20.0, 10.0)}, []),
        ({"car": (49.0, 29.0), "toy": (90.0, 90.0)}, []),
        ({"car": (48.99, 30.0), "toy": (90.0, 90.0)}, ["R_ID@1, car"]),
        ({"car": (60.0, 40.0), "toy": (20.0, 8.9)}, ["R@1, toy"]),
        ({"car": (0.0, 0.0), "toy": (0.0, 0.0)}, ["R_ID@1, car", "R@1, car", "R_ID@1, toy", "R@1, toy"]),
    ],
)
def test_no_domain_may_lose_more_than_the_tolerance(
    scores: dict[str, tuple[float, float]], missed: list[str]
) -> None:
    """A mean that rises hides no domain that falls."""
    assert failed(GatesSection(tolerance=1.0), measured("2", scores), CHAMPION) == missed


def test_a_tolerance_of_nothing_takes_equal_figures() -> None:
    third = 100 / 3
    one, other = measured("1", {"car": (third, third)}), measured("2", {"car": (third - 1e-9, third)})
    assert failed(GatesSection(tolerance=0.0), other, one) == []
    worse = measured("2", {"car": (third - 0.001, third)})
    assert failed(GatesSection(tolerance=0.0), worse, one) == ["R_ID@1, car"]


def test_another_gallery_or_domain_compares_nothing() -> None:
    other = measured("2", {"car": (90.0, 90.0), "boat": (90.0, 90.0)})
    assert failed(GatesSection(), other, CHAMPION) == ["gallery of boat", "gallery of toy"]
    moved = measured("2", {"car": (90.0, 90.0), "toy": (90.0, 90.0)})
    moved.figures["domains"]["toy"]["gallery"]["hash"] = "another"
    assert failed(GatesSection(), moved, CHAMPION) == ["gallery of toy"]


def test_limits_of_time_size_and_schema() -> None:
    slow = measured(
        "2", {"car": (50.0, 30.0), "toy": (20.0, 10.0)}, latency=[10.0] * 18 + [50.0, 60.0], size=11
    )
    assert failed(GatesSection(latency_p95_ms=50.0, size_bytes=11), slow, CHAMPION) == []
    assert failed(GatesSection(latency_p95_ms=49.9, size_bytes=10), slow, CHAMPION) == [
        "latency p95, ms",
        "size, bytes",
    ]
    changed = measured("2", {"car": (50.0, 30.0), "toy": (20.0, 10.0)}, schema="t")
    assert failed(GatesSection(), changed, CHAMPION) == ["schema"]
    assert failed(GatesSection(same_schema=False), changed, CHAMPION) == []


def test_the_first_champion_is_compared_with_nobody_but_has_to_reach_what_is_demanded() -> None:
    first = measured("1", {"car": (50.0, 30.0), "toy": (20.0, 10.0)})
    assert judge(GatesSection(), first, None) == []
    assert failed(GatesSection(least={"R_ID@1": 35.0}), first, None) == []
    assert failed(GatesSection(least={"R_ID@1": 35.1, "R@1": 5.0}), first, None) == ["R_ID@1, all domains"]


def test_p95_is_of_the_nearest_rank() -> None:
    assert p95([5.0]) == 5.0
    assert p95([float(n) for n in range(1, 101)]) == 95.0
    assert p95([float(n) for n in range(20, 0, -1)]) == 19.0
    with pytest.raises(ValueError, match="nothing was timed"):
        p95([])


def test_the_table_begins_with_what_failed() -> None:
    rows = table(judge(GatesSection(), measured("2", {"car": (60.0, 20.0), "toy": (20.0, 10.0)}), CHAMPION))
    assert rows[1] == ["R@1, car", "30.00", "20.00", "≥ 29.00", "FAILED"]
    assert [row[-1] for row in rows[2:]] == ["passed"] * 4


def test_a_recipe_of_gates_is_judged_as_a_whole() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        GatesSection.model_validate({"metrics": ["R@3"], "tolerance": -1, "latency_p95_ms": 0})
    fields = {error["loc"][0] for error in caught.value.errors()}
    assert fields == {"metrics", "tolerance", "latency_p95_ms"}
