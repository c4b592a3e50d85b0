"""One way to reach Ray: the cluster that RAY_ADDRESS names, else a quiet local one."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
}
"""What keeps Ray and transformers from speaking over our own progress; a user's own setting wins."""
PACE = {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.25", "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5"}
"""Ray Train looks at its workers every 2 s: as long a pause after each report and at the end of every training. It
waits 30 s for lost workers to take leave of the others."""
TUNE = {
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "86400",
    "RAY_CHDIR_TO_TRIAL_DIR": "0",
}
"""Ray Tune's own files and its state, which nobody reads here: a sweep keeps its own records."""
WORKER_ENVIRONMENT = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
LOCAL_OBJECT_STORE_BYTES = 768 << 20


def quiet() -> None:
    """Keep Ray's and transformers' own chatter off the terminal; has its effect before they are imported."""
    for name, value in (QUIET | PACE | TUNE).items():
        os.environ.setdefault(name, value)


def on_cluster() -> bool:
    """Whether commands run on a cluster that RAY_ADDRESS names."""
    return (os.environ.get("RAY_ADDRESS") or "local") != "local"


def connect(cpus: int | None = None, address: str | None = None) -> None:
    """Join or start Ray; a second call in the same process keeps the first session.

    Args:
        cpus: logical CPUs of a local session (default: the machine's cores, at least 2 so that two workers fit).
        address: "local" forces a local session; default is RAY_ADDRESS, else local.
    """
    import ray

    if ray.is_initialized():
        return
    quiet()
    where = address or os.environ.get("RAY_ADDRESS") or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if where == "local":
        options |= {
            "num_cpus": cpus or max(2, os.cpu_count() or 2),
            "include_dashboard": False,
            "object_store_memory": LOCAL_OBJECT_STORE_BYTES,
        }
    environment = dict(WORKER_ENVIRONMENT if not has_gpu() else {})
    environment["PYTHONPATH"] = os.pathsep.join(p for p in sys.path if p)
    ray.init(
        address=where,
        runtime_env={"env_vars": QUIET | TUNE | environment} if where == "local" else None,
        **options,
    )
    # Ray writes of lost workers to the standard output, where our own result goes; the stages tell of them by logging
    ray._private.worker._worker_logs_enabled = False
    _quiet_data()


def has_gpu() -> bool:
    """Whether this machine shows an NVIDIA device, without importing torch."""
    return any(p.name[6:].isdigit() for p in Path("/dev").glob("nvidia*"))


def data_workers() -> int:
    """How many parallel Ray Data workers the session has CPUs for, at least one."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def attempt() -> int:
    """How often the running task was begun before: 0, and more after a worker or node was lost; 0 outside a task."""
    import ray
    from ray._private.worker import global_worker  # no public call says it

    if not ray.is_initialized():
        return 0
    return int(global_worker.core_worker.get_current_task_attempt_number())


def _quiet_data() -> None:
    import ray.data

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)
