"""One small root for all tests here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from small_root import make_root as make

from infra.base.command import Context


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """These tensors are tiny: threads only wait for each other, the more so beside other test processes."""
    import torch

    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def make_root() -> Callable[..., Context]:
    """Makes a root in a folder; `change` may alter the quadruples and gallery rows before they are stored."""
    return make


@pytest.fixture(scope="session")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    """One such root for all tests that only read or add to it."""
    return make(tmp_path_factory.mktemp("root"))
