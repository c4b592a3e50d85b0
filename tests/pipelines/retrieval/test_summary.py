"""Figures worked out by hand from given ranks."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest

from pipelines.retrieval import summary
from pipelines.retrieval.engine import Gallery, QuerySet, Ranking
from pipelines.retrieval.inputs import DomainTask
from pipelines.retrieval.protocols.base import Ranks
from pipelines.retrieval.protocols.oacirr import BUILT
from pipelines.retrieval.summary import DomainResult, candidates


def result(
    domain: str, ranks: Sequence[tuple[str, int, int]], *, images_each: int = 5, blind: bool = True
) -> DomainResult:
    """Rows of instance, target rank, instance rank; the gallery shows each instance `images_each` times."""
    instances = sorted({r[0] for r in ranks})
    ids = [f"{i}/{n}" for i in instances for n in range(images_each)]
    gallery = Gallery(f"{domain}/test", ids, [i.split("/")[0] for i in ids])
    count = len(ranks)
    queries = QuerySet(
        query_ids=[f"{domain}{n}" for n in range(count)],
        instance_ids=[r[0] for r in ranks],
        reference_ids=[f"{r[0]}/0" for r in ranks],
        target_ids=[f"{r[0]}/1" for r in ranks],
        texts=["…"] * count,
        categories=["thing"] * count,
        anchors=[],
    )
    target, instance = np.array([r[1] for r in ranks]), np.array([r[2] for r in ranks])
    ranking = Ranking(Ranks(target, instance), [[]] * count, [[]] * count)
    last = Ranks(np.full(count, 9), np.full(count, 9))
    betas = [[float(n), float(n) + 2] for n in range(count)]
    lent = last if blind else None
    return DomainResult(DomainTask(domain, queries, gallery, "hash", 0), ranking, betas, lent, lent)


CAR = result("car", [("a", 1, 1), ("a", 3, 1), ("b", 6, 2), ("b", 2, 1)])
MUG = result("mug", [("x", 1, 1), ("y", 1, 1)])


def test_recalls_per_domain_and_their_macro_mean() -> None:
    data = summary.figures([CAR, MUG], samples=100, seed=0)
    car, overall = data["domains"]["car"]["metrics"], data["overall"]["metrics"]
    assert {m: car[m]["value"] for m in ("R_ID@1", "R@1", "R@5", "R@10", "Avg")} == pytest.approx(
        {"R_ID@1": 75, "R@1": 25, "R@5": 75, "R@10": 100, "Avg": 175 / 3}
    )
    # two queries of mug count as much as four of car
    assert overall["R@1"]["value"] == pytest.approx((25 + 100) / 2)
    assert overall["Avg"]["value"] == pytest.approx((175 / 3 + 100) / 2)
    assert data["overall"]["queries"] == 6
    assert data["overall"]["instances"] == 4
    assert overall["R@10"]["text_only"] == 100
    assert overall["R@5"]["text_only"] == 0


def test_chance_is_that_of_a_random_order_without_the_reference() -> None:
    # 10 images less the reference = 9 candidates, 4 of the instance
    assert BUILT.chance("R@1", CAR.candidates) == pytest.approx(100 / 9)
    assert BUILT.chance("R@5", CAR.candidates) == pytest.approx(500 / 9)
    assert BUILT.chance("R_ID@1", CAR.candidates) == pytest.approx(400 / 9)
    assert BUILT.chance("Avg", CAR.candidates) == pytest.approx((400 + 100 + 500) / 27)


def test_chance_where_each_image_is_its_own_instance_or_the_reference_is_kept() -> None:
    # one relevant image of ten less the reference, which is another instance
    own = result("loose", [("a", 1, 1), ("b", 1, 1)])
    ids = own.task.gallery.image_ids
    queries = dataclasses.replace(own.task.queries, instance_ids=["a/1", "b/1"])
    task = dataclasses.replace(own.task, queries=queries, gallery=Gallery("loose/test", ids, ids))
    assert BUILT.chance("R_ID@1", candidates(task)) == pytest.approx(100 / 9)
    # kept: ten candidates, five of the instance
    kept = dataclasses.replace(CAR.task.queries, reference_kept=True)
    task = dataclasses.replace(CAR.task, queries=kept)
    assert BUILT.chance("R@1", candidates(task)) == pytest.approx(10)
    assert BUILT.chance("R_ID@1", candidates(task)) == pytest.approx(50)


def test_intervals_hold_the_value_and_are_wider_by_instance() -> None:
    # all queries of an instance hit or miss together: six instances say less than 120 queries
    rows = [(f"i{n // 20}", 1 if n // 20 % 2 else 50, 1) for n in range(120)]
    measure = summary.figures([result("car", rows)], samples=2000, seed=0)["domains"]["car"]["metrics"]["R@1"]
    assert measure["low"] < measure["low_by_query"] < 50 < measure["high_by_query"] < measure["high"]
    assert measure["value"] == 50


def test_notes_say_what_is_missing() -> None:
    alone = result("nyala", [("n", 1, 1), ("n", 2, 1)], blind=False)
    data = summary.figures([CAR, alone], samples=100, seed=0) | {"absent": {"grocery": "no_box"}}
    notes = "\n".join(summary.notes(data))
    assert "6 queries: too few to rank models" in notes
    assert "no blind baselines and no interval in nyala" in notes
    assert "domain grocery is absent: no_box" in notes
    assert data["domains"]["nyala"]["metrics"]["R@1"]["low"] is None
    assert data["domains"]["nyala"]["metrics"]["R@1"]["low_by_query"] is not None
    assert data["overall"]["metrics"]["R@1"]["text_only"] is None


def test_no_interval_over_all_where_every_domain_has_one_instance() -> None:
    """One instance resampled is always itself: the interval would have no width."""
    alone = [result(d, [(d, 1, 1), (d, rank, 1)]) for d, rank in (("nyala", 2), ("video", 1))]
    data = summary.figures(alone, samples=100, seed=0)
    measure = data["overall"]["metrics"]["R@1"]
    assert (measure["low"], measure["high"]) == (None, None)
    assert summary.with_interval(measure) == "75.0 (n/a)"
    mixed = summary.figures([CAR, MUG], samples=100, seed=0)["overall"]["metrics"]["R@1"]
    assert mixed["low"] < mixed["value"] < mixed["high"]


def test_a_hundred_queries_are_enough() -> None:
    many = result("car", [(f"i{n % 9}", 1, 1) for n in range(100)])
    data = summary.figures([many], samples=100, seed=0)
    assert summary.notes(data) == []
    few = summary.figures([many, MUG], samples=100, seed=0)
    assert summary.notes(few) == ["too few queries to rank models in mug (2) (fewer than 100)"]


def test_the_table_has_a_row_per_domain_and_one_over_all() -> None:
    lines = summary.table(summary.figures([CAR, MUG], samples=100, seed=0))
    head, car, mug, overall = lines[:4]
    assert head.split() == [
        "domain", "queries", "gallery", "R_ID@1", "R@1", "R@5", "chance*", "text-only*", "reference-only*",
    ]  # fmt: skip
    assert car.split()[:5] == ["car", "4", "10", "75.0", car.split()[4]]
    assert "44.4 / 11.1" in car
    assert mug.split()[:4] == ["mug", "2", "10", "100.0"]
    assert overall.startswith("all (macro)")
    assert len({len(line) for line in (head, car, mug, overall)}) == 1


def test_beta_is_summed_up_over_the_queries() -> None:
    beta = summary.figures([MUG], samples=100, seed=0)["beta"]
    assert beta == {"queries": 2, "mean": 1.5, "std": 0.5, "min": 1.0, "max": 2.0}
