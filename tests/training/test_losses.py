from __future__ import annotations

import math

import pytest
import torch

from training.losses import info_nce


def test_by_hand():
    """Two queries, three targets: -log softmax of the own column, one direction only."""
    similarity = torch.tensor([[0.5, 0.1, 0.0], [0.2, 0.3, -0.1]])
    first = math.log(sum(math.exp(s / 0.5) for s in (0.5, 0.1, 0.0))) - 0.5 / 0.5
    second = math.log(sum(math.exp(s / 0.5) for s in (0.2, 0.3, -0.1))) - 0.3 / 0.5
    loss = info_nce(similarity, 0.5, torch.tensor([0, 1]))
    assert float(loss) == pytest.approx((first + second) / 2, rel=1e-6)


def test_the_temperature_learns():
    temperature = torch.tensor(0.07, dtype=torch.float64, requires_grad=True)
    similarity = torch.rand(4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4)
    assert torch.autograd.gradcheck(lambda t: info_nce(similarity, t, labels), temperature)
