"""The model of what workers send each other: by hand, against the committed counts, and as docs/scaling.md has it."""

from __future__ import annotations

from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def repository(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(REPOSITORY))


def test_a_ring_by_hand() -> None:
    """Three workers, ten parameters, six queries with targets of 100 bytes."""
    from benchmarks.communication import sent

    gathered, summed = (
        2 * 200,
        2 * 2 * 200,
    )  # each passes on two thirds of 600 bytes, twice where they are summed
    assert sent(0, 3, 10, 100, 6).rows == pytest.approx(gathered + summed)
    assert sent(0, 3, 30, 100, 6).state == pytest.approx(2 * 2 / 3 * 120)
    assert sent(2, 3, 30, 100, 6).state == pytest.approx(3 * 2 / 3 * 120)
    assert sent(2, 1, 30, 100, 6).total == 0


def test_the_model_is_what_was_counted_and_what_passed_the_wire() -> None:
    from benchmarks.communication import ON_GLOO, ON_RINGS, TOLERANCE, committed, model_bytes, operations_send

    groups = committed()
    found = {(g["workers"], g["stage"], g["released"]) for g in groups}
    plain = {(n, s, False) for n in (1, 2, 4) for s in (0, 2, 3)}
    assert found >= plain | {(2, 3, True)}
    for group in groups:
        on_rings, by_gloo = (operations_send(group, passes) for passes in (ON_RINGS, ON_GLOO))
        if not group["released"]:
            assert on_rings == pytest.approx(model_bytes(group), rel=TOLERANCE), group
        assert group["wire_bytes_of_a_worker"] == pytest.approx(by_gloo, rel=TOLERANCE, abs=2e5), group


def test_zero_3_gathers_the_weights_of_a_large_model_twice() -> None:
    from benchmarks.communication import KEPT, sent

    assert sent(3, 2, KEPT, 100, 6).state == pytest.approx(2 * 4 * KEPT / 2)
    assert sent(3, 2, KEPT + 1, 100, 6).state == pytest.approx(3 * 4 * KEPT / 2)


def test_the_tables_of_the_docs_are_the_models_and_the_counts() -> None:
    from benchmarks.communication import committed, counts, table

    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    for line in [*table().splitlines(), *counts(committed()).splitlines()]:
        assert line in text, f"docs/scaling.md lacks: {line}"
