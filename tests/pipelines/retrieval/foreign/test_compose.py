"""One vector of two: by hand in the plane."""

from __future__ import annotations

import math

import pytest
import torch

from pipelines.retrieval.foreign.compose import composed, slerp, unit

EAST, NORTH = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])


def at(degrees: float) -> torch.Tensor:
    return torch.tensor([[math.cos(math.radians(degrees)), math.sin(math.radians(degrees))]])


def test_sum_and_slerp_differ_off_the_middle() -> None:
    torch.testing.assert_close(composed(EAST, NORTH, "sum", 0.5), at(45))
    torch.testing.assert_close(composed(EAST, NORTH, "slerp", 0.5), at(45))
    torch.testing.assert_close(composed(EAST, NORTH, "slerp", 1 / 3), at(30))
    # 2/3 east + 1/3 north
    torch.testing.assert_close(composed(EAST, NORTH, "sum", 1 / 3), at(math.degrees(math.atan(0.5))))
    torch.testing.assert_close(composed(EAST, NORTH, "image", 0.5), EAST)
    torch.testing.assert_close(composed(EAST, NORTH, "text", 0.5), NORTH)


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_slerp_goes_evenly_from_one_to_the_other(share: float) -> None:
    torch.testing.assert_close(slerp(at(20), at(100), share), at(20 + 80 * share))
    torch.testing.assert_close(slerp(EAST, EAST, share), EAST)
    near = unit(torch.tensor([[1.0, 1e-6]]))
    assert torch.isfinite(slerp(EAST, near, share)).all()
