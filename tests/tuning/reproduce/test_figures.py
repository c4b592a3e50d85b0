"""Figures of a reproduction from the ranks of its trials."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from ranked import DOMAINS, ranked

from tuning.reproduce.figures import Results, between, spearman
from tuning.reproduce.measure import TEXT_ONLY
from tuning.reproduce.orderings import Side
from tuning.reproduce.rows import BARE, CROSSED, FULL, Trial, matrix

BETAS = (1, 2, 4)
ROWS = {row.name: row for row in matrix(BETAS, everything=False)}


def results(shares: dict[str, float], seeds: int = 2, **more: pa.Table) -> Results:
    """Rows with these hits; `more` adds tables to every trial of a row."""
    tables = {}
    for name, share in shares.items():
        for seed in range(seeds):
            for without in DOMAINS if ROWS[name].crossed else (None,):
                domains = DOMAINS if without is None else (without,)
                table = ranked(share + seed, seed=seed, domains=domains, beta=4.0 if name == FULL else None)
                tables[Trial(ROWS[name], seed, without)] = pa.concat_tables(
                    [table, *([more[name]] if name in more else [])]
                )
    return Results(list(ROWS.values()), tables, seeds, DOMAINS)


def test_means_are_over_domains_and_seeds_and_avg_is_that_of_three() -> None:
    found = results({FULL: 40})
    assert found.of_seeds(Side(FULL), "R@1") == pytest.approx([40, 41])
    assert found.mean(Side(FULL), "R@1") == pytest.approx(40.5)
    assert found.mean(Side(FULL), "Avg") == pytest.approx(40.5)  # R@5 misses rank 9, too


def test_domains_weigh_the_same_however_many_queries_they_have() -> None:
    table = pa.concat_tables([ranked(100, 300, domains=("a",)), ranked(0, 100, domains=("b",))])
    found = Results([ROWS[FULL]], {Trial(ROWS[FULL], 0): table}, 1, DOMAINS)
    assert found.mean(Side(FULL), "R@1") == pytest.approx(50)


def test_left_out_domains_make_up_all_queries_and_a_seed_that_lacks_one_does_not_count() -> None:
    name = CROSSED[FULL]
    assert results({name: 30}).hits(Side(name), "R@1").shape == (2, 400)
    tables = {Trial(ROWS[name], 0, "a"): ranked(30, domains=("a",))}
    assert Results([ROWS[name]], tables, 1, DOMAINS).seeds[name] == 0


def test_the_gates_on_the_best_fixed_beta_wait_for_the_whole_sweep() -> None:
    blind = ranked(5, variant=TEXT_ONLY)
    sweep = {f"beta_{beta}": share for beta, share in zip(BETAS, (50, 60, 55), strict=True)}
    whole = results({FULL: 61, BARE: 20, **sweep}, **{FULL: blind})
    told = {(one.gate.ordering, one.gate.first.row, one.gate.second.row): one for one in whole.judged()}
    assert told["R_ID@1 rises, then saturates with β", "beta_2", BARE].passed
    assert not told["R_ID@1 rises, then saturates with β", "beta_4", "beta_2"].passed  # 5 points lower
    assert told["R@1 peaks, then falls with β", "beta_2", "beta_4"].passed
    assert told["AdaFocal within noise of, or above, the best fixed β", FULL, "beta_2"].passed
    assert told["text alone, reference alone and ROI crop stay below AdaFocal on R@1", FULL, FULL].passed
    part = results({FULL: 61, BARE: 20, "beta_1": 50, "beta_4": 55})
    assert not [one for one in part.judged() if "peaks" in one.gate.ordering]


def test_a_model_that_never_falls_with_beta_fails_the_peak() -> None:
    sweep = {f"beta_{beta}": share for beta, share in zip(BETAS, (40, 50, 60), strict=True)}
    found = results({FULL: 61, BARE: 20, **sweep}).judged()
    [peak] = [one for one in found if one.gate.ordering == "R@1 peaks, then falls with β"]
    assert (peak.passed, peak.why) == (False, "significantly reversed")


def test_what_beta_follows() -> None:
    beta = results({FULL: 40}).beta()
    assert beta is not None
    assert beta["mean"] == pytest.approx([4, 4], abs=0.2)
    assert all(0.2 < s / m < 0.4 for s, m in zip(beta["std"], beta["mean"], strict=True))
    assert results({BARE: 40}).beta() is None
    assert spearman(np.array([1.0, 2, 3, 4]), np.array([1.0, 10, 100, 1000])) == pytest.approx(1)
    # ranks 1.5 1.5 3 4 against 4 3 1.5 1.5
    assert spearman(np.array([1.0, 1, 2, 3]), np.array([9.0, 8, 7, 7])) == pytest.approx(-0.8889, abs=1e-3)
    assert spearman(np.ones(4), np.arange(4.0)) == 0
    assert between(np.array([1.0, 1, 3, 3]), ["a", "a", "b", "b"]) == pytest.approx(1)
    assert between(np.array([1.0, 3, 1, 3]), ["a", "a", "b", "b"]) == pytest.approx(0)
