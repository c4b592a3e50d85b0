from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from training.model.products import head_product, joint_linear

CLOSE = {"atol": 1e-12, "rtol": 1e-12}


def draw(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).requires_grad_()


def compare(found, expected, leaves):
    """Values and gradients, under a random weight for every element."""
    torch.testing.assert_close(found, expected, **CLOSE)
    weights = draw(*found.shape, seed=9).detach()
    ours = torch.autograd.grad((found * weights).sum(), leaves)
    theirs = torch.autograd.grad((expected * weights).sum(), leaves)
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b, **CLOSE)


@pytest.mark.parametrize("count", [2, 3])
def test_joint_linear_is_the_layers_side_by_side(count):
    layers = [nn.Linear(5, 4 + i, dtype=torch.float64) for i in range(count)]
    rows = draw(7, 5)
    expected = torch.cat([F.linear(rows, layer.weight, layer.bias) for layer in layers], dim=1)
    leaves = [rows, *(p for layer in layers for p in layer.parameters())]
    compare(joint_linear(rows, *layers), expected, leaves)


@pytest.mark.parametrize("inward", [True, False])
def test_head_product_is_a_product_for_each_head(inward):
    """Two samples, three queries, four heads of width 5, eleven columns."""
    weight, scale = draw(4 * 5, 11, seed=1), draw(11, seed=2)
    states = draw(2, 3, 4, 5 if inward else 11)
    heads = []
    for head in range(4):
        rows = weight[5 * head : 5 * head + 5] * scale
        heads.append(states[:, :, head] @ (rows if inward else rows.T))
    found = head_product(states, weight, scale, inward)
    assert found.is_contiguous()
    compare(found, torch.stack(heads, dim=2), [states, weight, scale])


def test_no_copy_of_a_weight_is_kept_for_the_backward_pass():
    """What autograd keeps: the leaves' own memory and the states, nothing else."""
    weight, scale, states = draw(8, 6), draw(6), draw(2, 3, 2, 4)
    layer, rows = nn.Linear(6, 3, dtype=torch.float64), draw(5, 6)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: (kept.append(t.data_ptr()), t)[1], lambda t: t):
        head_product(states, weight, scale, inward=True)
        joint_linear(rows, layer, layer)
    assert set(kept) == {t.data_ptr() for t in (weight, scale, states, rows, layer.weight)}


def test_gradients_come_back_in_the_parameters_type():
    """As autocast calls it: states in bfloat16, weights in float32."""
    weight, scale = (t.detach().float().requires_grad_() for t in (draw(8, 6), draw(6)))
    states = draw(2, 3, 2, 4).detach().bfloat16().requires_grad_()
    head_product(states, weight, scale, inward=True).float().square().sum().backward()
    assert (states.grad.dtype, weight.grad.dtype, scale.grad.dtype) == (
        torch.bfloat16,
        torch.float32,
        torch.float32,
    )
    layer, rows = nn.Linear(6, 3), draw(5, 6).detach().float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        joined = joint_linear(rows, layer, layer)
    assert joined.dtype == torch.bfloat16
    joined.float().sum().backward()
    assert (rows.grad.dtype, layer.weight.grad.dtype) == (torch.float32, torch.float32)
