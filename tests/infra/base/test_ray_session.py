from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from infra.base import ray_session


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What Ray would be started with, without starting it."""
    import ray

    calls: list[dict[str, Any]] = []
    monkeypatch.setattr(ray, "is_initialized", lambda: bool(calls))
    monkeypatch.setattr(ray, "init", lambda **options: calls.append(options))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for name in (
        ray_session.QUIET | ray_session.PACE | ray_session.TUNE
    ):  # restored afterwards, whatever quiet() sets
        monkeypatch.setenv(name, "before")
    return calls


def test_quiet_leaves_a_users_own_setting(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ray_session.QUIET | ray_session.PACE | ray_session.TUNE:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TRANSFORMERS_VERBOSITY", "info")
    ray_session.quiet()
    assert os.environ["TRANSFORMERS_VERBOSITY"] == "info"
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    assert os.environ["RAY_TRAIN_HEALTH_CHECK_INTERVAL_S"] == "0.25"


@pytest.mark.parametrize(("cores", "cpus"), [(1, 2), (2, 2), (16, 16), (None, 2)])
def test_a_local_session_has_room_for_two_workers(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, cores: int | None, cpus: int
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    ray_session.connect()
    (options,) = started
    assert (options["address"], options["num_cpus"], options["include_dashboard"]) == ("local", cpus, False)


@pytest.mark.parametrize(("gpu", "threads"), [(False, "1"), (True, None)])
def test_workers_without_a_gpu_share_the_cores(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch, gpu: bool, threads: str | None
) -> None:
    monkeypatch.setattr(ray_session, "has_gpu", lambda: gpu)
    monkeypatch.syspath_prepend("/code/of/the/driver")
    ray_session.connect(cpus=3)
    environment = started[0]["runtime_env"]["env_vars"]
    assert started[0]["num_cpus"] == 3
    assert environment.get("OMP_NUM_THREADS") == threads
    assert environment["PYTHONPATH"].split(os.pathsep)[0] == "/code/of/the/driver"


def test_a_cluster_keeps_its_own_resources_and_environment(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "cluster:6379")
    ray_session.connect(cpus=3)
    (options,) = started
    assert (options["address"], options["runtime_env"]) == ("cluster:6379", None)
    assert "num_cpus" not in options
    assert "object_store_memory" not in options


def test_local_can_be_forced_and_a_second_call_changes_nothing(
    started: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "cluster:6379")
    ray_session.connect(address="local")
    ray_session.connect()
    assert [options["address"] for options in started] == ["local"]


@pytest.mark.parametrize(
    ("devices", "found"),
    [((), False), (("nvidiactl", "nvidia-uvm"), False), (("nvidiactl", "nvidia0"), True)],
)
def test_a_gpu_is_a_numbered_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, devices: tuple[str, ...], found: bool
) -> None:
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(ray_session, "Path", lambda _: tmp_path)
    assert ray_session.has_gpu() is found


@pytest.mark.parametrize(("resources", "workers"), [({"CPU": 4.0}, 4), ({"CPU": 0.5}, 1), ({}, 1)])
def test_there_is_at_least_one_data_worker(
    monkeypatch: pytest.MonkeyPatch, resources: dict[str, float], workers: int
) -> None:
    import ray

    monkeypatch.setattr(ray, "cluster_resources", lambda: resources)
    assert ray_session.data_workers() == workers
