from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from training import scoring
from training.scoring import max_over_set


@pytest.fixture
def vectors():
    generator = torch.Generator().manual_seed(0)
    queries = F.normalize(torch.randn(6, 8, generator=generator), dim=-1).requires_grad_()
    targets = F.normalize(torch.randn(11, 4, 8, generator=generator), dim=-1).requires_grad_()
    return queries, targets


@pytest.mark.parametrize("chunk", [None, 1, 3, 11, 50])
def test_equals_the_plain_formula_with_gradients(vectors, chunk):
    queries, targets = vectors
    weights = torch.randn(6, 11, generator=torch.Generator().manual_seed(1))
    scores = max_over_set(queries, targets, chunk)
    plain = torch.einsum("qd,tmd->qtm", queries, targets).amax(-1)
    torch.testing.assert_close(scores, plain)
    ours = torch.autograd.grad((scores * weights).sum(), (queries, targets))
    theirs = torch.autograd.grad((plain * weights).sum(), (queries, targets))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_the_default_chunk_bounds_what_is_held(vectors, monkeypatch):
    queries, targets = (v.detach() for v in vectors)
    monkeypatch.setattr(scoring, "CHUNK_ELEMENTS", 6 * 4 * 2)
    sizes = []
    original = torch.Tensor.max
    monkeypatch.setattr(torch.Tensor, "max", lambda t, dim: (sizes.append(t.numel()), original(t, dim))[1])
    scores = max_over_set(queries, targets)
    assert max(sizes) <= 48
    assert len(sizes) == 6
    assert scores.shape == (6, 11)


def test_empty_gallery(vectors):
    assert max_over_set(vectors[0], torch.zeros(0, 4, 8)).shape == (6, 0)
