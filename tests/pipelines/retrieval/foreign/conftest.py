"""Tiny models of every family, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from tiny_foreign import TINY


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Family → folder of `save_pretrained`."""
    root: Path = tmp_path_factory.mktemp("foreign")
    return {name: save(root / name) for name, save in TINY.items()}
