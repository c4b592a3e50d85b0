"""What a command will take, before it is submitted: machines, hours and money."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra.base.config import Config
from infra.base.progress import duration
from infra.ops.jobs.config import PricesSection


@dataclass(frozen=True)
class Need:
    """Machines that a command works on at once; None is as many as the cluster has."""

    workers: int | None
    cpus_each: float = 1
    gpus_each: float = 0

    def __str__(self) -> str:
        parts = [f"{count:g} {kind}" for count, kind in self._each() if count]
        each = " and ".join(parts)
        if self.workers is None:
            return f"a worker of {each} for each that the cluster has room for"
        if self.workers == 1:
            return f"1 worker of {each}"
        whole = " and ".join(f"{count * self.workers:g} {kind}" for count, kind in self._each() if count)
        return f"{self.workers} workers of {each}, {whole} in all"

    def _each(self) -> tuple[tuple[float, str], ...]:
        return ((self.cpus_each, "CPU"), (self.gpus_each, "GPU"))


def need(verb: str, recipe: Config) -> Need:
    """What the recipe of a command reserves."""
    settings: Any = recipe
    if verb == "tune":
        scaling = settings.train.scaling
        together = settings.concurrent
        workers = None if together is None else together * scaling.workers
        return Need(workers, scaling.cpus_per_worker, float(scaling.use_gpu))
    if verb == "train":
        scaling = settings.scaling
        return Need(scaling.workers, scaling.cpus_per_worker, float(scaling.use_gpu))
    if verb == "embed":
        gpu = settings.scaling.use_gpu
        return Need(settings.embed.workers, 1, float(gpu))
    if verb in ("build", "import"):
        return Need(getattr(settings, "workers", None))
    return Need(1)


def cost(needed: Need, hours: float | None, workers: int | None, prices: PricesSection) -> float | None:
    """Money: hours × workers × what each reserves; None where one of them is unknown.

    A price of GPUs alone counts their machines' CPUs in.

    Args:
        needed: what each worker reserves.
        hours: how long.
        workers: how many, where the need leaves it to the cluster.
        prices: of an hour.
    """
    count = needed.workers if needed.workers is not None else workers
    asked = prices.gpu_hour if needed.gpus_each else prices.cpu_hour
    if hours is None or count is None or asked is None:
        return None
    each = needed.cpus_each * (prices.cpu_hour or 0.0) + needed.gpus_each * (prices.gpu_hour or 0.0)
    return each * count * hours


@dataclass(frozen=True)
class Estimate:
    """What a command's dry run told."""

    message: str
    hours: float | None = None
    workers: int | None = None


def estimate(words: Sequence[str], seconds: float) -> Estimate:
    """The dry run of a command on this machine, in a process of its own: it may load a model of gigabytes.

    Args:
        words: the command, without the program's name.
        seconds: how long it may take.
    """
    command = [sys.executable, "-m", "infra.cli", *words, "--dry-run", "--json"]
    environment = os.environ | {"RAY_ADDRESS": "local"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=seconds, check=False
        )
    except subprocess.TimeoutExpired:
        return Estimate(f"not told: its dry run here took longer than {duration(seconds)} (estimate_s)")
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no reason"])[-1]
        return Estimate(f"not told: its dry run here ended with {done.returncode}: {last}")
    figures: dict[str, Any] = json.loads(done.stdout)
    hours = figures.get("hours")
    if hours is None:
        return Estimate(f"not told by its dry run ({figures['message']})")
    told = f"{duration(3600 * hours)} with {figures['workers']} workers, as measured on this machine now"
    return Estimate(told, float(hours), figures.get("workers"))
