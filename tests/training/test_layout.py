"""Tensors laid out by us are a file that safetensors reads back bit for bit."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load, save

from training.layout import NAMES, laid_out

SHAPES = ((), (0,), (3,), (2, 5), (1, 0, 4))


@pytest.mark.parametrize("dtype", NAMES)
def test_every_type_and_shape_comes_back(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    made = {f"t{i}": (100 * torch.randn(shape)).to(dtype) for i, shape in enumerate(SHAPES)}
    found = load(bytes(laid_out(made)))
    assert found.keys() == made.keys()
    for name, value in made.items():
        assert found[name].dtype == dtype
        assert torch.equal(found[name], value)


def test_types_beside_each_other_lie_at_their_own_multiples() -> None:
    made = {
        "ä": torch.tensor([True, False, True]),
        "half": torch.tensor([1.5]).bfloat16(),
        "turned": torch.arange(6.0).reshape(2, 3).T,
        "wide": torch.tensor(float("nan"), dtype=torch.float64),
        "every other": torch.arange(9)[::2],
    }
    data = bytes(laid_out(made))
    found = load(data)
    for name, value in made.items():
        assert torch.equal(found[name], value) or name == "wide"
    assert found["wide"].isnan()
    assert len(data) == len(save({name: value.contiguous() for name, value in made.items()}))


def test_a_tensor_of_an_unknown_type_is_refused() -> None:
    with pytest.raises(KeyError):
        laid_out({"c": torch.zeros(2, dtype=torch.complex64)})
