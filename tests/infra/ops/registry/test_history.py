"""The history of champions, worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from infra.ops.registry.history import Entry, champion, dump, following, parse, stack, table


def grown(*decisions: tuple[Any, str]) -> list[Entry]:
    log: list[Entry] = []
    for action, version in decisions:
        log.append(following(log, action, version, "why"))
    return log


def test_the_champion_is_what_was_decided_last() -> None:
    assert champion([]) is None
    log = grown(("promote", "1"), ("refuse", "2"), ("promote", "3"), ("rollback", "1"), ("refuse", "4"))
    assert [e.champion for e in log] == ["1", "1", "3", "1", "1"]
    assert [e.before for e in log] == [None, "1", "1", "3", "1"]
    assert [e.number for e in log] == [1, 2, 3, 4, 5]
    assert champion(log) == "1"


@pytest.mark.parametrize(
    ("decisions", "left"),
    [
        ([("promote", "1"), ("promote", "2"), ("promote", "3")], ["1", "2", "3"]),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1")], ["1"]),
        ([("promote", "1"), ("promote", "2"), ("rollback", "1"), ("promote", "3")], ["1", "3"]),
        ([("promote", "1"), ("promote", "2"), ("promote", "1"), ("rollback", "2")], ["1", "2"]),
        ([("promote", "1"), ("refuse", "2")], ["1"]),
        ([("refuse", "1")], []),
    ],
)
def test_a_rollback_leads_through_the_champions_before(decisions: list[Any], left: list[str]) -> None:
    assert stack(grown(*decisions)) == left


def test_it_comes_back_from_a_servers_parameters_in_order() -> None:
    log = grown(*(("promote", str(n)) for n in range(1, 12)))
    params = {e.key: dump(e) for e in reversed(log)}
    assert parse(params | {"other": "a parameter of someone's"}) == log
    long = following(log, "refuse", "12", "x" * 9000)
    assert len(dump(long)) < 6000  # MLflow's limit
    assert (
        len({dump(following(log, "promote", "1", "why")) for _ in range(9)}) == 9
    )  # processes are told apart


def test_people_can_read_it() -> None:
    rows = table(grown(("promote", "1"), ("refuse", "2"), ("promote", "3")))
    assert [row[5] for row in rows[1:]] == ["none → 1", "1", "1 → 3"]
