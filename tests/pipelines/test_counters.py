"""What becomes of records, as it is handed to Ray."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from infra.base.accounts import Account
from infra.base.metrics import Metrics
from pipelines import counters

ACCOUNT = Account(
    entity="images", taken_in=20, kept=11, rejected={"corrupt": 4, "too_small": 2}, reserved=3, not_sampled=0
)
URL = "s3://bucket/root/datasets/photos/0123"


def test_every_record_of_an_account_is_counted_by_its_way(monkeypatch: pytest.MonkeyPatch) -> None:
    told: Counter[tuple[str, ...]] = Counter()

    def add(self: Metrics, name: str, count: float, **tags: str) -> None:
        told[(name, *self.tags.values(), *tags.values())] += int(count)

    monkeypatch.setattr(counters, "served", lambda: True)
    monkeypatch.setattr(Metrics, "add", add)
    counters.count(URL, "collect", [ACCOUNT, ACCOUNT])
    where = ("photos/0123", "collect", "images")
    assert +told == {
        ("records", *where, "kept"): 22,
        ("records", *where, "rejected"): 12,
        ("records", *where, "reserved"): 6,
        ("rejects", *where, "corrupt"): 8,
        ("rejects", *where, "too_small"): 4,
    }


def test_nothing_is_made_where_nobody_serves_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("no Ray session")

    monkeypatch.setattr(counters, "served", lambda: False)
    monkeypatch.setattr(Metrics, "_metric", refused)
    counters.count(URL, "collect", [ACCOUNT])


def test_ray_takes_names_and_tags_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray refuses a tag that was not declared and one that is missing; here the real classes say so."""
    monkeypatch.setattr(counters, "served", lambda: True)
    counters.count(URL, "collect", [ACCOUNT])
    with pytest.raises(ValueError, match=r"Missing value for tag key\(s\): entity"):
        Metrics("test_", {"n": "x"}, {"version": "v"}, ("entity",)).add("n", 1)
