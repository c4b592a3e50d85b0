"""The three ways tokens lie in a shard, against a byte-by-byte second version."""

from __future__ import annotations

import struct

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from training.stored import Dtype, pack, rounded, row_bytes, unpack

SHAPE = (5, 7)


def tokens(seed: int = 0, count: int = 3) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    spread = torch.exp(3 * torch.randn(count, SHAPE[0], 1, generator=generator))
    return torch.randn(count, *SHAPE, generator=generator) * spread


def by_hand(image: torch.Tensor) -> bytes:
    """One image as int8, number by number."""
    out = b""
    for token in image.tolist():
        scale = struct.unpack("<f", struct.pack("<f", max(abs(v) for v in token) / 127))[0]
        out += bytes(round(v / scale) % 256 for v in token) + struct.pack("<f", scale)
    return out


def test_int8_is_each_token_and_its_scale() -> None:
    packed = pack(tokens(), "int8")
    assert packed.shape == (3, row_bytes(*SHAPE, "int8")) == (3, 5 * (7 + 4))
    assert [row.numpy().tobytes() for row in packed] == [by_hand(image) for image in tokens()]


def test_a_token_worked_out() -> None:
    token = torch.tensor([[[254.0, -254.0, 1.0, 0.9, 0.0]]])  # scale 2: 0.5 rounds to even, 0.45 to 0
    assert pack(token, "int8").tolist() == [[127, 129, 0, 0, 0, 0, 0, 0, 64]]
    assert rounded(token, "int8").tolist() == [[[254.0, -254.0, 0.0, 0.0, 0.0]]]


@given(st.integers(0, 10_000))
def test_int8_is_off_by_half_a_scale_at_most(seed: int) -> None:
    exact = tokens(seed)
    scale = exact.abs().amax(-1, keepdim=True) / 127
    assert ((rounded(exact, "int8") - exact).abs() <= 0.5001 * scale).all()


def test_a_token_of_zeros_stays_one() -> None:
    assert torch.equal(rounded(torch.zeros(2, *SHAPE), "int8"), torch.zeros(2, *SHAPE))


@pytest.mark.parametrize(("dtype", "kind"), [("bfloat16", torch.bfloat16), ("float32", torch.float32)])
def test_plain_types_are_the_numbers_themselves(dtype: Dtype, kind: torch.dtype) -> None:
    packed = pack(tokens(), dtype)
    assert packed.shape[1] == row_bytes(*SHAPE, dtype) == 5 * 7 * kind.itemsize
    assert torch.equal(unpack(packed, SHAPE, dtype), tokens().to(kind))


def test_int8_takes_half_the_room_of_bfloat16_at_full_width() -> None:
    assert row_bytes(257, 1408, "int8") / row_bytes(257, 1408, "bfloat16") == pytest.approx(0.5014, abs=1e-4)
