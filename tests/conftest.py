"""What tests share: where the optional shared data lies, and one Ray session per process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

# No deadline: a busy machine must not decide a property. Derandomised: the same cases on every run.
settings.register_profile("oacir", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("oacir")

SHARED_DIR = Path(os.environ.get("OACIR_SHARED_DIR", Path(__file__).resolve().parents[2] / "shared"))
GOLDEN_DIR = Path(os.environ.get("OACIR_GOLDEN_DIR", SHARED_DIR / "golden"))


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of shared test data (OACIR_SHARED_DIR); tests that need it are skipped where it is absent."""
    if not (SHARED_DIR / "data").is_dir():
        pytest.skip(f"needs the shared test data, not found at {SHARED_DIR} (set OACIR_SHARED_DIR)")
    return SHARED_DIR


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """A folder of golden reference vectors: OACIR_GOLDEN_DIR, else golden/ of the shared data."""
    if not (GOLDEN_DIR / "config.json").is_file():
        pytest.skip(f"needs golden reference vectors, not found at {GOLDEN_DIR} (set OACIR_GOLDEN_DIR)")
    return GOLDEN_DIR


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray session for all tests of this process."""
    import ray

    from infra.base.ray_session import connect

    connect(cpus=2, address="local")
    yield
    ray.shutdown()
