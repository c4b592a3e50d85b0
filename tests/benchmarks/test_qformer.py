"""The ways that a benchmark compares are the same numbers: at a small size, in float64, with gradients."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.model.conftest import small_config

torch.set_num_threads(1)  # the models are tiny: more threads only wait for each other


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[2]))
    from benchmarks import qformer

    return qformer


@pytest.fixture
def double():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("row", ["step", "repeated targets", "scores of a training batch"])
def test_ways_of_a_row_are_equal(benchmark, double, row):
    steps, leaves = benchmark.subject(row, 8, "cpu", small_config(max_text_tokens=9))
    assert len(steps) >= 2
    assert all(leaf.dtype == torch.float64 for leaf in leaves)
    errors = benchmark.assert_equal(steps, leaves, 1e-9)
    assert set(errors) == set(list(steps)[1:])


def test_a_difference_is_refused(benchmark):
    leaf, moved = torch.ones(3, requires_grad=True), torch.tensor([1.0, 1.0, 1.01])
    ways = {"one": leaf.sum, "other": lambda: leaf @ moved}
    with pytest.raises(AssertionError, match="other: differs"):
        benchmark.assert_equal(ways, [leaf], 1e-4)


def test_operations_of_a_product_and_of_attention(benchmark):
    """2·a·b·c forward and as much again for each gradient; attention 4·heads·q·k·d, backward two and a half times."""
    a, b = torch.randn(3, 4, requires_grad=True), torch.randn(4, 5, requires_grad=True)

    def product():
        return (a @ b).sum()

    assert benchmark.flops(product, [a, b]) == 3 * 2 * 3 * 4 * 5
    q, k = torch.randn(1, 2, 6, 8, requires_grad=True), torch.randn(1, 2, 9, 8, requires_grad=True)

    def attention():
        return torch.nn.functional.scaled_dot_product_attention(q, k, k).sum()

    assert benchmark.flops(attention, [q, k]) == 3.5 * 4 * 2 * 6 * 9 * 8


def test_peak_memory_is_that_of_the_step(benchmark):
    """256 MiB that live only inside the step."""

    def step():
        return torch.ones(2**26).sum()

    assert 250 * 2**20 < benchmark.peak_bytes(step, []) < 300 * 2**20
