"""The page of a sweep from records that were made up, so that every number on it is known."""

from __future__ import annotations

import re
from typing import Any

import pytest
from small_benchmark import write_benchmark
from small_sweep import ended, sweep

from infra.base.versions import Version
from tuning.config import SweepRecipe
from tuning.describe import OVERALL
from tuning.records import TrialRecord
from tuning.report import curve, notes, page
from tuning.sweep import summary

BETAS = (0, 1, 4)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return write_benchmark(tmp_path_factory.mktemp("page"), identities=6)


def fixed(**fields: Any) -> SweepRecipe:
    space = {
        "model.fixed_beta": {"kind": "grid", "values": list(BETAS)},
        "training.seed": {"kind": "grid", "values": [0, 1]},
    }
    return sweep(space, algorithm={"kind": "grid"}, **fields)


def with_intervals(record: TrialRecord, half: float) -> TrialRecord:
    domains: dict[str, dict[str, Any]] = {}
    for name, value in record.figures.items():
        domain, _, metric = name.rpartition("/")
        if metric in ("avg", "R_ID@1", "R@1", "R@5"):
            found = {"value": value, "low": value - half, "high": value + half}
            domains.setdefault(domain or OVERALL, {})[metric] = found
    return TrialRecord.model_validate(record.model_dump() | {"domains": domains})


def figures(value: float) -> dict[str, float]:
    found = {"avg": value, "R_ID@1": value, "R@1": value - 5, "R@5": value + 5}
    return found | {f"{d}/{m}": v for d in "ab" for m, v in found.items() if m != "avg"}


def six() -> list[TrialRecord]:
    records = []
    for number, values in enumerate(fixed().given or ()):
        value = 20.0 + 10 * BETAS.index(values["model.fixed_beta"]) + 2 * values["training.seed"]
        records.append(with_intervals(ended(number, values, **figures(value)), 3.0 + values["training.seed"]))
    return records


def test_a_point_is_the_mean_over_seeds_and_its_band_the_mean_interval() -> None:
    points, band = curve(six(), "model.fixed_beta", "a", "R@1")
    assert points == [(0.0, 16.0), (1.0, 26.0), (4.0, 36.0)]
    assert band == [3.5, 3.5, 3.5]
    bare = [r.model_copy(update={"domains": {}}) for r in six()]
    assert curve(bare, "model.fixed_beta", "a", "R@1") == (points, None)
    stopped = [
        r.model_copy(update={"state": "stopped"}) if r.values["model.fixed_beta"] == 4 else r for r in six()
    ]
    assert [x for x, _ in curve(stopped, "model.fixed_beta", OVERALL, "avg")[0]] == [0.0, 1.0]


def test_the_page_shows_what_was_found(dataset: Version) -> None:
    records = [*six(), ended(6, {"model.fixed_beta": 4, "training.seed": 9}, "failed")]
    records.append(ended(7, {"model.fixed_beta": 1, "training.seed": 9}, "stopped", **figures(1.0)))
    text = page(fixed(), dataset, records, summary(records, fixed()))
    for title in ("R_ID@1 against fixed β, dev", "R@1 against fixed β, dev", "Every finished trial"):
        assert text.count(f"<h3>{title}</h3>") == 1
    # in the best table the best comes first, with its interval
    best = text[text.index('id="best"') : text.index('id="beta"')]
    assert re.findall(r'<th scope="row">(\d+)</th>', best) == ["5", "4", "3", "2", "1", "0"]
    assert "38.0 – 46.0" in best
    assert "the loss is nan" in text
    left = text[text.index('id="ended"') : text.index('id="provenance"')]
    assert re.findall(
        r'<th scope="row">(\d+)</th><td>(\d)</td><td>(\d)</td><td class="words">(\w+)', left
    ) == [
        ("6", "4", "9", "failed"),
        ("7", "1", "9", "stopped"),
    ]
    assert ">β</th>" not in best  # no trial has one
    assert "1 of 8 trials failed" in text
    assert "oacir evaluate" in text
    # nothing is fetched and nothing runs
    assert not re.search(r"<script|<link|src=\"(?!data:)|@import|url\(", text)
    # two domains have a curve each, with a band
    section = text[text.index('id="beta"') : text.index('id="values"')]
    assert section.count('class="band') == 4


@pytest.mark.parametrize(
    ("name", "values", "published"),
    [
        ("model.crm_layers", [1, 2], ["78.10", "79.00", "78.83", "78.59"]),
        ("model.probe_tokens", [2, 64], ["78.85", "78.65", "79.00", "78.95", "78.83"]),
    ],
)
def test_the_papers_figures_stand_beside_ours_and_are_called_theirs(
    dataset: Version, name: str, values: list[int], published: list[str]
) -> None:
    recipe = sweep(
        {name: {"kind": "grid", "values": values}},
        {"model": {"modulation": "scalar", "overrides": {}}},
        algorithm={"kind": "grid"},
    )
    records = [ended(n, {name: v}, **figures(30.0 + n)) for n, v in enumerate(values)]
    text = page(recipe, dataset, records, summary(records, recipe))
    section = text[text.index('id="table-1') : text.index('id="values"')]
    assert "published, not ours" in section
    rows = re.findall(r'<th scope="row">(\d+)</th><td>([\d.–]+)</td><td class="soft">([\d.–]+)</td>', section)
    assert [theirs for _, _, theirs in rows if theirs != "–"] == published
    assert [(int(v), ours) for v, ours, _ in rows if ours != "–"] == [
        (values[0], "30.00"),
        (values[1], "31.00"),
    ]


def test_a_value_that_is_the_models_own_has_no_place_on_the_curve(dataset: Version) -> None:
    recipe = sweep(
        {"model.probe_tokens": {"kind": "grid", "values": [None, 2]}},
        {"model": {"modulation": "scalar", "overrides": {}}},
        algorithm={"kind": "grid"},
    )
    records = [ended(n, v, **figures(30.0 + n)) for n, v in enumerate(recipe.given or ())]
    assert curve(records, "model.probe_tokens", OVERALL, "avg")[0] == [(2.0, 31.0)]
    assert "Table 13" in page(recipe, dataset, records, summary(records, recipe))


def test_two_objectives_have_a_front_and_one_has_none(dataset: Version) -> None:
    recipe = fixed(objectives=["avg", "query_ms"])
    records = [
        r.model_copy(update={"figures": {**r.figures, "query_ms": ms}})
        for r, ms in zip(six(), (1.0, 9.0, 2.0, 9.0, 9.0, 3.0), strict=True)
    ]
    found = summary(records, recipe)
    assert found["front"] == [5, 2, 0]
    assert found["best"]["number"] == 5
    text = page(recipe, dataset, records, found)
    section = text[text.index('id="pareto"') : text.index('id="beta"')]
    assert re.findall(r'<th scope="row">(\d+)</th>', section) == ["5", "2", "0"]
    assert section.count("<circle") == 6
    assert 'id="pareto"' not in page(fixed(), dataset, six(), summary(six(), fixed()))


def test_a_page_without_a_finished_trial_has_no_best(dataset: Version) -> None:
    records = [ended(0, fixed().given[0], "stopped", **figures(3.0))]
    found = summary(records, fixed())
    assert "best" not in found
    assert "nothing is said about importance" in page(fixed(), dataset, records, found)


def test_what_is_missing_is_said() -> None:
    assert any(
        "No trial was evaluated for intervals" in line for line in notes([ended(0, {}, avg=1.0)], fixed())
    )
    assert not any("intervals" in line and "No trial" in line for line in notes(six(), fixed()))
