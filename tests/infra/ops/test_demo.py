"""What the demo says and demands at its end, on figures written by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from infra.base.command import Context, Outcome
from infra.base.errors import RefusedError
from infra.ops.demo import DemoRecipe, check_demo, demo, full_size, score_table, time_line, verdict


def measure(
    value: float,
    spread: float | None = 2.0,
    chance: float = 0.25,
    text: float | None = 2.0,
    reference: float | None = 3.0,
) -> dict[str, Any]:
    """A recall in percent; no interval where the spread is None."""
    return {
        "value": value,
        "low": None if spread is None else value - spread,
        "high": None if spread is None else value + spread,
        "chance": chance,
        "text_only": text,
        "reference_only": reference,
    }


def model(r_id_1: dict[str, Any], r_1: dict[str, Any], images: int = 400) -> dict[str, Any]:
    """The figures of an evaluation over two domains."""
    return {
        "overall": {
            "queries": 5558,
            "instances": 261,
            "gallery": {"images": 2 * images},
            "metrics": {"R_ID@1": r_id_1, "R@1": r_1, "R@5": measure(53.8)},
        },
        "domains": {d: {"gallery": {"images": images}} for d in ("car", "fashion")},
    }


def pair(first: dict[str, Any], second: dict[str, Any] | None = None) -> dict[str, dict[str, Any]]:
    return {"AdaFocal": first, "β = 0": second or model(measure(3.3, 0.6), measure(3.2))}


def overall(figures: dict[str, Any]) -> dict[str, Any]:
    return {label: part["overall"] for label, part in figures.items()}


def test_a_demo_that_shows_what_it_has_to_has_no_problem() -> None:
    assert check_demo(pair(model(measure(22.7), measure(21.8)))) == []


@pytest.mark.parametrize(
    ("figures", "said"),
    [
        # 4.9 < 1.5 × 3.3 = 4.95 by a hair, though the intervals are apart
        (pair(model(measure(4.9, 0.1), measure(21.8))), ["R_ID@1 4.9 % is below 1.5 times the 3.3 %"]),
        (
            pair(model(measure(6.0, 3.0), measure(21.8))),
            ["the 95 % intervals of both models' R_ID@1 overlap"],
        ),
        (
            pair(model(measure(22.7, None), measure(21.8))),
            ["the 95 % intervals of both models' R_ID@1 overlap"],
        ),
        # 21.8 < 20 × 1.1 = 22
        (
            pair(model(measure(22.7), measure(21.8, chance=1.1))),
            ["R@1 21.8 % is below 20 times chance (1.10 %)"],
        ),
        (pair(model(measure(22.7), measure(9.9))), ["R@1 9.9 % lies outside 10 to 95 %"]),
        (pair(model(measure(97.0), measure(95.1))), ["R@1 95.1 % lies outside 10 to 95 %"]),
        (
            pair(model(measure(22.7), measure(21.8), images=149)),
            ["the gallery of car holds 149 images", "the gallery of fashion holds 149 images"],
        ),
        (
            pair(model(measure(22.7), measure(21.8, text=10.9))),
            ["R@1 from the text alone 10.9 % is not below half of 21.8 %"],
        ),
        (
            pair(model(measure(22.7), measure(21.8, reference=None))),
            ["R@1 from the reference alone is unknown"],
        ),
    ],
)
def test_every_demand_that_is_missed_is_named_and_no_other(figures: dict[str, Any], said: list[str]) -> None:
    problems = check_demo(figures)
    assert len(problems) == len(said)
    assert all(problem.startswith(start) for problem, start in zip(problems, said, strict=True))


def test_a_model_that_finds_nothing_misses_nearly_everything() -> None:
    nothing = model(measure(0.0, 0.0), measure(0.0, text=0.0, reference=0.0))
    problems = check_demo(pair(nothing, nothing))
    assert len(problems) == 6  # ratio, intervals, chance, range, text only, reference only


@pytest.mark.parametrize(
    ("first", "second", "said"),
    [
        (measure(22.7), measure(3.3, 0.6), "a factor of 6.88 in R_ID@1 (the intervals do not overlap)"),
        (measure(4.0), measure(3.3, 0.6), "a factor of 1.21 in R_ID@1 (the intervals overlap)"),
        (
            measure(0.0),
            measure(3.3),
            "worth nothing here: AdaFocal ranks the right instance first for no query",
        ),
        (measure(0.0), measure(3.3), "β = 0 does so for 3.3 %"),
        (measure(0.0), measure(0.0), "nor does β = 0"),
        (measure(5.0), measure(0.0, 0.0), "only AdaFocal ever ranks the right instance first"),
    ],
)
def test_the_verdict_says_what_is_so(first: dict[str, Any], second: dict[str, Any], said: str) -> None:
    line = verdict(overall(pair(model(first, measure(20.0)), model(second, measure(20.0)))))
    assert said in line
    assert ("factor" in line) == ("factor" in said)


def test_the_table_has_the_models_chance_and_the_blind_baselines() -> None:
    lines = score_table(overall(pair(model(measure(22.7), measure(21.8)))))
    cells = [[c for c in line.split("  ") if c] for line in lines[:6]]
    assert [c.strip() for c in cells[0]] == ["R_ID@1", "R@1", "R@5"]
    assert [c.strip() for c in cells[1]] == [
        "AdaFocal",
        "22.7 (20.7-24.7)",
        "21.8 (19.8-23.8)",
        "53.8 (51.8-55.8)",
    ]
    assert [c.strip() for c in cells[2]][:2] == ["β = 0", "3.3 (2.7-3.9)"]
    assert [c.strip() for c in cells[3]] == ["chance", "0.25", "0.25", "0.25"]
    assert cells[4][0].strip() == "AdaFocal, text only"
    assert [c.strip() for c in cells[5]] == ["AdaFocal, reference only", "3.0", "3.0", "3.0"]
    assert len({len(line) for line in lines[:6]}) == 1  # aligned
    assert "5,558 held-out queries of 261 instances, 800 gallery images in all" in lines[6]


def test_the_time_line_adds_up() -> None:
    assert time_line({"build": 36.1, "train": 166.5}) == "time: build 36 s, train 166 s; 3:23 min in all"


def test_only_a_demo_of_the_shipped_size_is_checked() -> None:
    assert full_size(DemoRecipe(seed=3, workers=1))
    for change in ({"instances_per_domain": 14}, {"scenes_per_instance": 4}, {"epochs": 1}, {"steps": 2}):
        assert not full_size(DemoRecipe.model_validate(change))


def stub_stages(monkeypatch: pytest.MonkeyPatch, evaluations: dict[str, Any], refused: str | None) -> None:
    """In place of the stages: outcomes as they would give, after no work."""

    def give(outcome: Outcome) -> Callable[[Any, Context], Outcome]:
        return lambda recipe, context: outcome

    by_name = dict(zip(("adafocal", "beta0"), evaluations.values(), strict=True))

    def evaluate(recipe: Any, context: Context) -> Outcome:
        return Outcome("evaluated", f"there/{recipe.name}", by_name[recipe.name] | {"beta": None})

    monkeypatch.setattr("pipelines.build.build", give(Outcome("built", "there/world", refused=refused)))
    monkeypatch.setattr("pipelines.embed.embed", give(Outcome("embedded", "there/features")))
    monkeypatch.setattr("training.trainer.train", give(Outcome("trained", "there/run")))
    monkeypatch.setattr("pipelines.retrieval.evaluate.evaluate", evaluate)
    monkeypatch.setattr("pipelines.retrieval.report.report", give(Outcome("page", "there/report.html")))


def test_a_full_demo_that_misses_a_demand_is_refused_with_its_report(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_stages(monkeypatch, pair(model(measure(22.7), measure(9.0))), None)
    outcome = demo(DemoRecipe(), Context(root="R"))
    assert outcome.location == "there/report.html"
    assert outcome.refused is not None
    assert "R@1 9.0 % lies outside 10 to 95 %" in outcome.refused
    assert demo(DemoRecipe(steps=2), Context(root="R")).refused is None  # small: said to be left out
    assert any("full size only" in line for line in demo(DemoRecipe(steps=2), Context(root="R")).details)
    stub_stages(monkeypatch, pair(model(measure(22.7), measure(21.8))), None)
    assert demo(DemoRecipe(), Context(root="R")).refused is None


def test_the_demo_stops_at_a_stage_that_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    stub_stages(monkeypatch, pair(model(measure(22.7), measure(21.8))), "it ends with no query")
    with pytest.raises(RefusedError, match="build: it ends with no query"):
        demo(DemoRecipe(), Context(root="R"))
