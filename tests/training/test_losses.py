from __future__ import annotations

import math

import pytest
import torch

from training.losses import false_negatives, info_nce, query_to_target, text_to_target
from training.model.interfaces import Loss, LossContext, QueryOutput
from training.scoring import max_over_set


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


def test_excluded_columns_are_not_in_the_denominator_and_get_no_gradient() -> None:
    similarity = torch.tensor([[0.5, 0.1, 0.4], [0.2, 0.3, -0.1]], requires_grad=True)
    excluded = torch.tensor([[False, False, True], [False, False, False]])
    loss = info_nce(similarity, 0.5, torch.tensor([0, 1]), excluded)
    first = math.log(math.exp(0.5 / 0.5) + math.exp(0.1 / 0.5)) - 0.5 / 0.5
    second = math.log(sum(math.exp(s / 0.5) for s in (0.2, 0.3, -0.1))) - 0.3 / 0.5
    assert loss.item() == pytest.approx((first + second) / 2, rel=1e-6)
    loss.backward()
    assert similarity.grad is not None
    assert (similarity.grad == 0).tolist() == excluded.tolist()


def test_a_query_without_any_negative_left_has_no_loss_and_no_gradient() -> None:
    similarity = torch.tensor([[0.5, 0.1]], requires_grad=True)
    loss = info_nce(similarity, 0.5, torch.tensor([0]), torch.tensor([[False, True]]))
    loss.backward()
    assert loss.item() == 0
    assert similarity.grad is not None
    assert similarity.grad.tolist() == [[0.0, 0.0]]


def test_false_negatives_are_right_answers_in_other_columns() -> None:
    """Columns show images 7, 8, 7, 9, 5; the queries are those of columns 2 and 3, the second may also find 5."""
    found = false_negatives(
        torch.tensor([7, 8, 7, 9, 5]), torch.tensor([[7, 7], [9, 5]]), torch.tensor([2, 3])
    )
    assert found.int().tolist() == [[1, 0, 0, 0, 0], [0, 0, 0, 0, 1]]


@pytest.mark.parametrize("loss", [query_to_target, text_to_target])
def test_further_negatives_are_columns_behind_the_targets_and_may_be_excluded(loss: Loss) -> None:
    query = torch.tensor([[1.0, 0.0]])
    context = LossContext(
        QueryOutput(query, None, {"text_only": query}),
        torch.tensor([[[0.6, 0.8]], [[0.0, 1.0]]]),
        torch.tensor([0]),
        torch.tensor(0.5),
        max_over_set,
        torch.tensor([[[0.8, 0.6], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]),
    )
    plain = math.log(sum(math.exp(s / 0.5) for s in (0.6, 0.0, 0.8, 1.0))) - 0.6 / 0.5
    assert float(loss(context)) == pytest.approx(plain, rel=1e-6)
    without_last = context._replace(excluded=torch.tensor([[False, False, False, True]]))
    fewer = math.log(sum(math.exp(s / 0.5) for s in (0.6, 0.0, 0.8))) - 0.6 / 0.5
    assert float(loss(without_last)) == pytest.approx(fewer, rel=1e-6)
