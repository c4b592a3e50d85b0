"""Metrics by name, worked out by hand, and what a declared benchmark says of what it is held against."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.base.errors import OacirError
from pipelines.retrieval.protocols.base import AVERAGE, Benchmark, Candidates, Found, Ranks
from pipelines.retrieval.protocols.circo import CIRCO
from pipelines.retrieval.protocols.cirr import CIRR
from pipelines.retrieval.protocols.fashioniq import FASHIONIQ
from pipelines.retrieval.protocols.genecis import GENECIS
from pipelines.retrieval.protocols.known import BENCHMARKS
from pipelines.retrieval.protocols.oacirr import BUILT, OACIRR, cross_domain

RANKS = Ranks(
    target=np.array([1, 6, 12]),
    instance=np.array([1, 2, 12]),
    targets=[np.array([1, 3]), np.array([6]), np.array([12, 2, 40])],
    group=np.array([1, 1, 4]),
)


def test_recalls_and_precisions_by_hand() -> None:
    assert BUILT.hits("R@5", RANKS).tolist() == [100, 0, 0]
    assert BUILT.hits("R_ID@5", RANKS).tolist() == [100, 100, 0]
    assert BUILT.hits(AVERAGE, RANKS).tolist() == pytest.approx([100, 0, 0])
    assert CIRR.hits("R_subset@1", RANKS).tolist() == [100, 100, 0]
    # mean of R@5 and R_subset@1
    assert CIRR.hits(AVERAGE, RANKS).tolist() == [100, 50, 0]
    # targets at 1 and 3; none in five; at 2 of min(5, 3)
    assert CIRCO.hits("mAP@5", RANKS).tolist() == pytest.approx([100 * (1 + 2 / 3) / 2, 0, 100 / 2 / 3])
    assert CIRCO.hits("R@25", RANKS).tolist() == [100, 100, 100]
    assert FASHIONIQ["split"].hits(AVERAGE, RANKS).tolist() == [100, 100, 50]
    assert GENECIS.hits(AVERAGE, RANKS).tolist() == GENECIS.hits("R_subset@1", RANKS).tolist()


def test_without_further_targets_the_primary_one_counts() -> None:
    alone = RANKS._replace(targets=None)
    assert CIRCO.hits("mAP@10", alone).tolist() == pytest.approx([100, 100 / 6, 0])


def test_what_the_ranks_do_not_hold_is_refused() -> None:
    with pytest.raises(ValueError, match="not ranked within their groups"):
        CIRR.hits("R_subset@1", RANKS._replace(group=None))
    with pytest.raises(ValueError, match="no metric 'nDCG@5'"):
        BUILT.hits("nDCG@5", RANKS)
    with pytest.raises(ValueError, match=r"\['mAP@5'\] is not among its metrics"):
        Benchmark(name="x", title="x", revision="x", rules="x", main="mAP@5")


def test_chance_by_hand() -> None:
    asked = Candidates(
        images=np.array([10, 20]), instance=np.array([2, 2]), targets=np.array([1, 1]), group=np.array([5, 5])
    )
    assert CIRR.chance("R_subset@2", asked) == pytest.approx(40)
    assert CIRR.chance("R@5", asked) == pytest.approx((50 + 25) / 2)
    assert CIRR.chance(AVERAGE, asked) == pytest.approx((37.5 + 20) / 2)
    # one target of ten: AP@5 is 1/rank for ranks 1 to 5
    harmonic = 1 + 1 / 2 + 1 / 3 + 1 / 4 + 1 / 5
    assert CIRCO.chance("mAP@5", asked) == pytest.approx(100 * harmonic * (1 / 10 + 1 / 20) / 2)
    with pytest.raises(ValueError, match="groups"):
        CIRR.chance("R_subset@1", dataclasses.replace(asked, group=None))


@given(st.integers(0, 2**32 - 1))
def test_more_places_never_lower_a_recall_and_the_instance_is_never_behind(seed: int) -> None:
    draw = np.random.default_rng(seed)
    target = draw.integers(1, 60, 20)
    ranks = Ranks(target, draw.integers(1, target + 1), None, draw.integers(1, 6, 20))
    for metrics in (("R@1", "R@5", "R@10", "R@50"), ("R_subset@1", "R_subset@2", "R_subset@3")):
        shares = [CIRR.hits(m, ranks).mean() for m in metrics]
        assert shares == sorted(shares)
    for k in (1, 5, 10):
        assert (BUILT.hits(f"R_ID@{k}", ranks) >= BUILT.hits(f"R@{k}", ranks)).all()
    assert (CIRCO.hits("mAP@50", ranks) <= CIRCO.hits("R@50", ranks)).all()


def test_departures_name_what_differs_from_the_declared_benchmark() -> None:
    declared = next(iter(CIRR.galleries["cirr/test"].sha256))
    own = Found("cirr/test", declared, 2297, 4181)
    assert CIRR.departures([own]) == []
    assert CIRR.departures([own._replace(images=2200)]) == [
        "cirr/test holds 2,200 images, CIRR val has 2,297: compare with no published score"
    ]
    assert CIRR.departures([own._replace(gallery_hash="0" * 64)]) == [
        "cirr/test holds other images than CIRR val has: compare with no published score"
    ]
    assert CIRR.departures([own._replace(queries=4000)]) == [
        "cirr/test has 4,000 queries, CIRR val has 4,181: compare with no published score"
    ]
    car = Found("car/test", "any", 4717, 3586)
    assert OACIRR.departures([car]) == [
        "fashion/test, landmark/test, product/test of OACIRR are missing: compare with no published score"
    ]
    assert BUILT.departures([car]) == []


def test_every_declared_benchmark_says_what_it_is() -> None:
    for name, one in BENCHMARKS.items():
        assert one.name == name
        assert set(one.queries) == set(one.galleries)
        assert one.rules.startswith(one.title.split()[0])
        assert one.stated()["main"] == one.main
        assert all(len(digest) == 64 for g in one.galleries.values() for digest in g.sha256)
    names = [one.rules for one in FASHIONIQ.values()]
    assert len(set(names)) == 3


def part(unseen: list[str], **values: float) -> dict[str, object]:
    return {
        "unseen": unseen,
        "domains": {
            d: {"gallery": {"hash": d}, "metrics": {"R@1": {"value": v}, "Avg": {"value": v + 1}}}
            for d, v in values.items()
        },
    }


def test_leave_one_domain_out_takes_each_domain_from_the_model_that_did_not_see_it() -> None:
    without_car, without_mug = part(["car"], car=20, mug=90), part(["mug"], car=80, mug=30)
    assert cross_domain([without_car, without_mug]) == {"R@1": 25, "Avg": 26}
    with pytest.raises(OacirError, match="no model was trained without mug"):
        cross_domain([without_car])
    with pytest.raises(OacirError, match="car was left out by two"):
        cross_domain([without_car, without_car])
    other = part(["mug"], car=80, mug=30, cup=1)
    with pytest.raises(OacirError, match="different galleries"):
        cross_domain([without_car, other])
    with pytest.raises(OacirError, match="without any domain"):
        cross_domain([part([], car=1)])
