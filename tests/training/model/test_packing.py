from __future__ import annotations

import torch

from training.model.packing import PADDED_KEY, layout_of, pack_rows, pad_rows

MASK = torch.tensor([[1, 1, 0], [1, 1, 1]])


def test_layout_by_hand():
    """Two samples, two queries, texts of 2 and 3 tokens: padded length 5."""
    layout = layout_of(2, 2, MASK)
    assert layout.places.tolist() == [0, 1, 5, 6, 2, 3, 7, 8, 9]
    assert layout.first_text.tolist() == [4, 6]
    assert layout.mask[:, 0, 0].tolist() == [[0, 0, 0, 0, PADDED_KEY], [0, 0, 0, 0, 0]]


def test_pad_and_pack_are_inverse_also_for_gradients():
    layout = layout_of(2, 2, MASK)
    rows = torch.arange(18.0, dtype=torch.float64).view(9, 2).requires_grad_()
    padded = pad_rows(rows, layout)
    assert padded.shape == (2, 5, 2)
    assert torch.equal(padded[0, 4], torch.zeros(2, dtype=torch.float64))
    assert torch.equal(padded[1, 2], rows[6])
    assert torch.equal(pack_rows(padded, layout), rows)
    assert torch.autograd.gradcheck(lambda x: pad_rows(x, layout), rows)
    assert torch.autograd.gradcheck(lambda x: pack_rows(x, layout), torch.randn_like(padded).requires_grad_())


def test_without_text_nothing_moves():
    layout = layout_of(3, 2, None)
    rows = torch.randn(6, 4)
    assert torch.equal(pad_rows(rows, layout), rows.view(3, 2, 4))
    assert torch.equal(pack_rows(rows.view(3, 2, 4), layout), rows)
