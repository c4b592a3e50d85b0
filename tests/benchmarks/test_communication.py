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
    from benchmarks.communication import TOLERANCE, committed, on_the_ring, sent

    groups = committed()
    assert {(g["workers"], g["stage"]) for g in groups} >= {(n, s) for n in (1, 2) for s in (0, 2)}
    for group in groups:
        batch = group["queries"]
        model = sent(
            group["stage"], group["workers"], group["trained_parameters"], group["row_bytes"], batch
        ).total
        assert on_the_ring(group) == pytest.approx(model, rel=TOLERANCE), group
        assert group["wire_bytes_of_a_worker"] == pytest.approx(model, rel=TOLERANCE, abs=2e5), group


def test_the_table_of_the_docs_is_the_models() -> None:
    from benchmarks.communication import table

    text = (REPOSITORY / "docs" / "scaling.md").read_text()
    for line in table().splitlines():
        assert line in text, f"docs/scaling.md lacks: {line}"
