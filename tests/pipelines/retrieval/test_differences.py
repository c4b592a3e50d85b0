"""Pairs of models on the same queries: from stored rankings to a verdict, and what the page says."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import pytest

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.versions import Version
from pipelines.retrieval.compared import Compared, compare
from pipelines.retrieval.config import EvaluateRecipe, ReportRecipe
from pipelines.retrieval.differences import NO_DIFFERENCE, differences
from pipelines.retrieval.evaluate import evaluate
from pipelines.retrieval.report import report

Rank = Callable[[int], int]


@pytest.fixture(scope="module")
def evaluated(context: Context) -> Context:
    for name in ("adafocal", "beta0"):
        evaluate(EvaluateRecipe(name=name, model=name, dataset="benchmark", bootstrap_samples=100), context)
    return context


def ranked(one: Compared, label: str, rank: Rank, seed_of: str | None = None) -> Compared:
    """The evaluation with other ranks: of the n-th query in order of its id."""
    made = dataclasses.replace(one, label=label, seed_of=seed_of)
    rows = {
        query_id: row | {"target_rank": rank(n), "instance_rank": rank(n)}
        for n, (query_id, row) in enumerate(sorted(one.rankings.items()))
    }
    made.__dict__["rankings"] = rows
    return made


def verdicts(dataset: Version, compared: Sequence[Compared]) -> dict[tuple[str, str, str], str]:
    return {(r["first"], r["second"], r["metric"]): r["verdict"] for r in differences(dataset, compared)}


def test_who_is_better_and_where_no_difference_is_shown(evaluated: Context) -> None:
    dataset = versions.resolve(evaluated.root, "datasets", "benchmark")
    (one,) = compare(evaluated.root, ["adafocal"], None)
    # 48 queries of 12 instances in two domains; `second` misses every fourth at R@1 and never at R@5
    good, second, bad = (
        ranked(one, "good", lambda n: 1),
        ranked(one, "second", lambda n: 1 + n % 4 // 3),
        ranked(one, "bad", lambda n: 60),
    )
    rows = differences(dataset, [good, second, bad])
    assert len(rows) == 3 * 4
    told = {(r["first"], r["second"], r["metric"]): r for r in rows}
    assert told["good", "second", "R@1"]["value"] == pytest.approx(25)
    assert told["good", "second", "R@5"]["value"] == 0
    assert told["good", "second", "R@5"]["verdict"] == NO_DIFFERENCE
    assert told["good", "second", "R@1"]["verdict"] == "good is better"
    assert told["second", "bad", "Avg"]["verdict"] == "second is better"
    assert verdicts(dataset, [bad, good])["bad", "good", "R@1"] == "good is better"
    # one instance alone differs: no evidence
    lucky = ranked(one, "lucky", lambda n: 1 if n < 4 else 60)
    assert set(verdicts(dataset, [lucky, bad]).values()) == {NO_DIFFERENCE}


def test_one_label_names_seeds_of_one_model(evaluated: Context) -> None:
    dataset = versions.resolve(evaluated.root, "datasets", "benchmark")
    (one,) = compare(evaluated.root, ["adafocal"], None)
    base = ranked(one, "base", lambda n: 60)
    seeds = [ranked(one, f"ours ({n})", lambda n: 1, "ours") for n in (1, 2)]
    rows = differences(dataset, [*seeds, base])
    assert {(r["first"], r["second"], r["seeds"], r["verdict"]) for r in rows} == {
        ("ours", "base", (2, 1), "ours is better")
    }
    # a second seed that fails throughout: the mean is half as good, and may be chance
    unsteady = [seeds[0], ranked(one, "ours (2)", lambda n: 60, "ours")]
    rows = differences(dataset, [*unsteady, base])
    assert {(r["value"], r["verdict"]) for r in rows} == {(50.0, NO_DIFFERENCE)}
    assert differences(dataset, seeds) == []  # one model: nothing to compare


def test_the_page_says_it(evaluated: Context) -> None:
    def page(labels: list[str], *names: str) -> str:
        recipe = ReportRecipe(evaluations=list(names), labels=labels, queries=0, attention=False)
        return storage.read_bytes(report(recipe, evaluated).location or "").decode()

    text = page(["same", "again"], "adafocal", "adafocal")
    assert text.count(f'<td class="words">{NO_DIFFERENCE}</td>') == 4
    assert "corrected for all 4 tests (Holm)" in text
    assert "and seeds" not in text
    text = page(["ours", "ours", "base"], "adafocal", "adafocal", "beta0")
    assert "ours (2 seeds)" in text
    assert "over instances and seeds; p of" in text
    assert "Differences on the same queries" not in page(["alone"], "adafocal")
