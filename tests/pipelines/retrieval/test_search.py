"""The exact search: against exact arithmetic on fractions, and the same bits however the work is cut."""

from __future__ import annotations

import itertools
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.retrieval import search as module
from pipelines.retrieval.engine import score
from pipelines.retrieval.search import Best, exact, merge, screen, search
from training.scoring import max_over_set


def vectors(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(*shape, generator=generator), dim=-1)


def slow(
    queries: torch.Tensor, targets: torch.Tensor, k: int, removed: list[int]
) -> list[list[tuple[int, float]]]:
    """Every score as a fraction, rounded once; sorted."""
    found = []
    for row, gone in zip(queries.tolist(), removed, strict=True):
        own = []
        for column, members in enumerate(targets.tolist()):
            products = [[Fraction(a) * Fraction(b) for a, b in zip(row, m, strict=True)] for m in members]
            real = max(sum(own_products) for own_products in products)
            own.append((-np.float32(float(real)), column))
        own = sorted((s, c) for s, c in own if c != gone)[:k]
        found.append([(c, float(-s)) for s, c in own])
    return found


def pairs(best: Best) -> list[list[tuple[int, float]]]:
    return [list(zip(*row, strict=True)) for row in zip(*best.rows(), strict=True)]


@settings(max_examples=15)
@given(st.integers(0, 2**31), st.integers(1, 9), st.integers(1, 12))
def test_it_is_the_sorted_list_of_real_scores(seed: int, k: int, count: int) -> None:
    queries, targets = vectors(4, 6, seed=seed), vectors(count, 3, 6, seed=seed + 1)
    # ties, and near ties in the last bit of a coordinate
    targets = torch.cat([targets, targets[: count // 2], targets * (1 + 2**-23)])
    removed = [int(n) for n in np.random.default_rng(seed).integers(-1, len(targets), 4)]
    found = search(queries, targets, k, np.array(removed))
    assert pairs(found) == slow(queries, targets, k, removed)


@pytest.fixture(scope="module")
def large() -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Queries near some targets, targets with doubles and near doubles, and a removed column each."""
    targets = vectors(300, 8, 64)
    targets = torch.cat([targets, targets[::3], targets[::5] * (1 + 2**-23)])
    queries = torch.nn.functional.normalize(targets[:70, 2] + 0.2 * vectors(70, 64, seed=5), dim=-1)
    return queries, targets, np.arange(70) * 3 % len(targets)


@pytest.mark.parametrize("chunk_bytes", [1, 3_000, 50_000, 10**6, 10**9])
@pytest.mark.parametrize("blocks", [1, 7, 100])
def test_chunks_and_blocks_change_no_bit(
    large: tuple[torch.Tensor, torch.Tensor, np.ndarray], chunk_bytes: int, blocks: int
) -> None:
    queries, targets, removed = large
    whole = search(queries, targets, 20, removed)
    if chunk_bytes == 1 and blocks == 100:
        queries, removed, whole = queries[:5], removed[:5], Best(*(part[:5] for part in whole))
    cut = search(queries, iter(targets.chunk(blocks)), 20, removed, chunk_bytes=chunk_bytes)
    assert np.array_equal(cut.columns, whole.columns)
    assert np.array_equal(cut.scores.view(np.int32), whole.scores.view(np.int32))


def test_shards_merge_to_the_whole_in_any_order(large: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    queries, targets, removed = large
    whole = search(queries, targets, 20, removed)
    ends = [0, 3, 130, 131, len(targets)]
    parts = [search(queries, targets[a:b], 20, removed, first=a) for a, b in itertools.pairwise(ends)]
    for order in (parts, parts[::-1]):
        merged = merge(order)
        assert np.array_equal(merged.columns, whole.columns)
        assert np.array_equal(merged.scores, whole.scores)


def test_it_ranks_as_evaluation_does(large: tuple[torch.Tensor, torch.Tensor, np.ndarray]) -> None:
    queries, targets, removed = large
    scores = score(max_over_set, queries, targets)
    scores[np.arange(70), removed] = -np.inf
    order = np.argsort(-scores, axis=1, kind="stable")[:, :20]
    found = search(queries, targets, 20, removed)
    assert np.array_equal(found.columns, order)
    assert np.array_equal(found.scores, np.take_along_axis(scores, order, 1))


def test_real_ties_are_ties_whatever_single_precision_makes_of_them() -> None:
    """The same numbers summed in other orders: equal as real numbers, not as sums of single precision."""
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(64, generator=generator)
    targets = torch.stack([numbers[torch.randperm(64, generator=generator)] for _ in range(300)])[:, None]
    query = torch.full((1, 64), 0.3)
    assert len(screen(query, targets).unique()) > 1
    found = search(query, targets, 7)
    assert found.columns[0].tolist() == list(range(7))
    assert len(np.unique(found.scores)) == 1


def test_screened_scores_keep_their_bound_whatever_the_block() -> None:
    queries, targets = 3 * vectors(9, 64), 2 * vectors(50, 4, 64, seed=1)
    real = (targets.double() @ queries.double().T).amax(1)
    for size in (1, 5_000, 10**8):
        found = screen(queries, targets, size)
        assert (found - real).abs().max() <= (64 + 2) * 2.0**-24 * 3 * 2


def test_fewer_bits_than_single_precision_are_not_relied_on(
    large: tuple[torch.Tensor, torch.Tensor, np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    queries, targets, removed = large
    whole = search(queries, targets, 20, removed)
    seen = []
    multiply = torch.mm
    monkeypatch.setattr(torch, "mm", lambda a, b, out: seen.append(a.dtype) or multiply(a, b, out=out))
    torch.set_float32_matmul_precision("medium")
    try:
        again = search(queries, targets, 20, removed)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert set(seen) == {torch.float64}
    assert np.array_equal(again.columns, whole.columns)
    assert np.array_equal(again.scores, whole.scores)


def test_a_score_on_the_edge_of_two_numbers_is_rounded_from_the_real_one() -> None:
    """1 + 2⁻²⁴ lies half-way between two float32; 2⁻⁵⁰ decides, which a sum in double precision may lose."""
    query = torch.tensor([[1.0, 2.0**-12, 2.0**-25]])
    targets = torch.tensor([[[1.0, 2.0**-12, own]] for own in (0.0, 2.0**-25, -(2.0**-25))])
    lengths = torch.tensor([2.0], dtype=torch.float64)
    found = exact(query, targets, torch.zeros(3, dtype=torch.long), torch.arange(3), lengths)
    assert found.tolist() == [1.0, 1.0 + 2.0**-23, 1.0]


def test_few_targets_and_none() -> None:
    queries, targets = vectors(2, 6), vectors(3, 2, 6, seed=1)
    found = search(queries, targets, 5, np.array([1, -1]))
    assert [len(row) for row in found.rows()[0]] == [2, 3]
    assert found.columns[0, 2:].tolist() == [-1, -1, -1]
    assert search(queries, iter(()), 5).rows() == ([[], []], [[], []])


def test_memory_is_bounded_by_the_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    held = []
    make = torch.empty

    def counted(*shape: int, **options: torch.dtype) -> torch.Tensor:
        made = make(*shape, **options)
        held.append(made.numel() * made.element_size())
        return made

    queries, targets = vectors(500, 16), vectors(400, 8, 16, seed=1)
    monkeypatch.setattr(torch, "empty", counted)
    monkeypatch.setattr(module, "PRODUCT_BYTES", 10**9)
    search(queries, targets, 10, chunk_bytes=200_000)
    assert max(held) <= 100_000
    assert 60 * max(held) < 500 * 400 * 8 * 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k ≥ 1"),
        ({"removed": np.array([1])}, "removed column for each"),
        ({"targets": vectors(3, 2, 5)}, "do not fit"),
        ({"queries": torch.full((2, 6), torch.nan)}, "NaN"),
        ({"targets": torch.full((1, 2, 6), torch.inf)}, "infinity"),
        ({"targets": torch.full((1, 2, 6), 1e30)}, "too long"),
    ],
)
def test_wrong_input_is_refused(change: dict[str, object], message: str) -> None:
    arguments = {"queries": vectors(2, 6), "targets": vectors(3, 2, 6), "k": 2}
    with pytest.raises(ValueError, match=message):
        search(**{**arguments, **change})
