"""What tests share: where the optional shared data lies, and one Ray session per process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

# No deadline: a busy machine must not decide a property. Derandomised: the same cases on every run.
settings.register_profile("oacir", deadline=None, derandomize=True, print_blob=True)
settings.load_profile("oacir")

if TYPE_CHECKING:
    from mlflow_server import MlflowServer

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


def start_ray() -> None:
    """A local Ray session as the tests want it."""
    from infra.base.ray_session import connect

    os.environ.setdefault("RAY_metrics_report_interval_ms", "500")  # a user's session has 10 s
    connect(cpus=2, address="local")


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray session for all tests of this process, unless one of them forks (`small_training.on_processes`)."""
    import ray

    start_ray()
    yield
    ray.shutdown()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files with the longest tests first, so that two processes end together; a file's tests keep their order."""
    weights: dict[Path, int] = {}
    for item in items:
        weight = 2 if item.get_closest_marker("slow") else 1 if item.get_closest_marker("ray") else 0
        weights[item.path] = max(weight, weights.get(item.path, 0))
    items.sort(key=lambda item: -weights[item.path])


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Start another session for a test that counts on one which a fork has ended."""
    if "ray_session" in getattr(item, "fixturenames", ()) and "ray" in sys.modules:
        import ray

        if not ray.is_initialized():
            start_ray()


@pytest.fixture(scope="session")
def mlflow_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    """One MLflow server of this process, for tests that track."""
    from mlflow_server import MlflowServer

    server = MlflowServer(tmp_path_factory.mktemp("mlflow"))
    yield server
    server.stop()
