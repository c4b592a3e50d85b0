"""Which trials are best, which none beats, and what mattered: by hand."""

from __future__ import annotations

import numpy as np
import pytest
from pydantic import TypeAdapter
from small_sweep import ended

from training.job import Note
from tuning.importance import importances
from tuning.pareto import front, ranked
from tuning.records import reading
from tuning.space import Dimension

READ = TypeAdapter(dict[str, Dimension])
BOTH = ("avg", "query_ms")


def test_the_front_holds_what_none_beats_and_equal_ones() -> None:
    records = [
        ended(0, {}, avg=50, query_ms=4),
        ended(1, {}, avg=60, query_ms=9),
        ended(2, {}, avg=55, query_ms=9),  # beaten by 1
        ended(3, {}, avg=60, query_ms=9),  # as good as 1
        ended(4, {}, avg=40, query_ms=5),  # beaten by 0
        ended(5, {}, "stopped", avg=99, query_ms=1),
        ended(6, {}, "failed"),
        ended(7, {}, avg=45, query_ms=3),
    ]
    assert [r.number for r in front(records, BOTH)] == [1, 3, 0, 7]
    assert [r.number for r in ranked(records, "avg")] == [1, 3, 2, 0, 7, 4]
    assert [r.number for r in ranked(records, "query_ms")][:2] == [7, 0]


def test_eta_squared_is_the_share_of_the_ranks_variance() -> None:
    """Ranks 1 2 | 5 6 | 3 4 by seed: group means 1.5, 5.5, 3.5 about 3.5; 2·(4 + 4 + 0) of 17.5."""
    space = READ.validate_python(
        {
            "model.fixed_beta": {"kind": "grid", "values": [0, 1, 2]},
            "training.seed": {"kind": "grid", "values": [0, 1]},
        }
    )
    scores = {(0, 0): 10, (0, 1): 20, (1, 0): 50, (1, 1): 60, (2, 0): 30, (2, 1): 40}
    records = [
        ended(n, {"model.fixed_beta": b, "training.seed": s}, avg=float(score))
        for n, ((b, s), score) in enumerate(scores.items())
    ]
    first, second = importances(records, space, "avg")
    assert (first.name, second.name) == ("model.fixed_beta", "training.seed")
    assert first.share == pytest.approx(16 / 17.5)
    assert first.chance == pytest.approx(2 / 5)
    # ranks of β 0 0 1 1 2 2 and of the scores 1 2 5 6 3 4
    assert first.correlation == pytest.approx(8 / np.sqrt(16 * 17.5))
    assert second.share == pytest.approx(6 * 0.25 / 17.5)  # means 3 and 4 about 3.5
    assert importances(records[:4], space, "avg") == []


def test_a_range_is_cut_into_groups_and_text_has_no_correlation() -> None:
    space = READ.validate_python(
        {
            "training.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
            "model.crm": {"kind": "choice", "values": ["mlp", "average"]},
        }
    )
    rates = np.linspace(1e-4, 1e-2, 40)
    records = [
        ended(n, {"training.learning_rate": float(r), "model.crm": ["mlp", "average"][n % 2]}, avg=-float(r))
        for n, r in enumerate(rates)
    ]
    first, second = importances(records, space, "avg")
    assert first.name == "training.learning_rate"
    assert first.share > 0.9
    assert first.correlation == pytest.approx(-1.0)
    assert second.correlation is None
    assert second.share < 0.05


def test_a_dev_note_becomes_means_over_the_domains() -> None:
    figures = {"step": 3.0, "mean": 30.0}
    for domain, base in (("a", 10.0), ("b", 30.0)):
        figures |= {f"{domain}/R_ID@1": base, f"{domain}/R@1": base + 1, f"{domain}/R@5": base + 5}
    found = reading(Note("dev", 3, 0.0, figures))
    assert found.step == 3
    assert found.figures["R@1"] == 21.0
    assert found.figures["avg"] == 30.0
    assert found.figures["b/R@5"] == 35.0
    assert "mean" not in found.figures
