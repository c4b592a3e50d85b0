from __future__ import annotations

import pytest
import torch

from training.model.dropout import Dropout, dropout


@pytest.mark.parametrize("probability", [0.1, 0.5])
def test_rate_scale_and_gradient(probability):
    torch.manual_seed(0)
    states = torch.ones(400, 1001, requires_grad=True)
    dropped = dropout(states, probability, training=True)
    rate = (dropped.detach() == 0).float().mean(0)
    # 400 draws per column: five standard deviations; a stuck lane of the packed draws would show at once.
    assert abs(rate.mean() - probability) < 0.002
    assert (rate - probability).abs().max() < 5.5 * (probability * (1 - probability) / 400) ** 0.5
    assert float(dropped.detach().max()) == pytest.approx(1 / (1 - probability), rel=1e-4)
    dropped.sum().backward()
    assert torch.equal(states.grad, dropped.detach())


def test_seeded_and_idle():
    states = torch.randn(33)
    draws = []
    for _ in range(2):
        torch.manual_seed(3)
        draws.append(dropout(states, 0.5, training=True))
    assert torch.equal(*draws)
    assert not torch.equal(draws[0], dropout(states, 0.5, training=True))
    assert dropout(states, 0.5, training=False) is states
    assert Dropout(0.5).eval()(states) is states
