"""What every result carries: the machine, the versions and the memory of a whole process family."""

from __future__ import annotations

import json
import os
import platform
import threading
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

RESULTS = Path(__file__).parent / "results"
MARK = "OACIR_BENCHMARK_FAMILY"


def machine() -> dict[str, Any]:
    """Processor, cores, memory and the versions that matter."""
    model = next(
        (
            line.split(":", 1)[1].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if "model name" in line
        ),
        platform.processor(),
    )
    names = ("ray", "torch", "deepspeed", "transformers", "pyarrow", "pillow")
    return {
        "processor": model,
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in names},
    }


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:  # a GPU machine for the model alone has no ray
        return None


def write_result(name: str, data: Mapping[str, Any]) -> Path:
    """Write `results/<name>.json` with the machine beside the numbers."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps({"machine": machine(), **data}, indent=1, ensure_ascii=False) + "\n")
    return path


class FamilyMemory:
    """Peak memory of a family of processes, as PSS (shared pages are counted once), and the bytes that it reads.

    The family is every process whose environment carries a mark, so that Ray's daemons, which leave the process
    tree, are counted too. Start members with `environment()`.

    Attributes:
        peak_bytes: the largest sum of a look at all members.
        at_peak: role (driver, workers, raylet, gcs_server, other) → bytes in that look.
        processes: members seen in all.
        looks: how often all were looked at.
        history: moment (`time.time`) of each look, and role → bytes in it.
    """

    def __init__(self, every_s: float = 0.5) -> None:
        self.mark = uuid.uuid4().hex
        self.every_s = every_s
        self.peak_bytes = 0
        self.at_peak: dict[str, int] = {}
        self.looks = 0
        self.history: list[tuple[float, dict[str, int]]] = []
        self._read: dict[int, tuple[str, int]] = {}
        self._busy: dict[int, float] = {}
        self._spent: list[tuple[float, float]] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def processes(self) -> int:
        """How many members there were."""
        return len(self._read)

    def read_bytes(self, role: str) -> int:
        """Bytes that members of a role asked the system for, of files in the page cache too, as last seen of each.

        A process that waits for another one's end takes over its count: ask for roles without children.
        """
        return sum(count for name, count in self._read.values() if name == role)

    def cpu_seconds(self, moment: float) -> float:
        """Processor seconds that all members had spent in the last look before a moment (`time.time`)."""
        return max((spent for when, spent in self._spent if when <= moment), default=0.0)

    def environment(self) -> dict[str, str]:
        """The environment that makes a process a member."""
        return {**os.environ, MARK: self.mark}

    def __enter__(self) -> FamilyMemory:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        members: dict[int, psutil.Process] = {}
        strangers: set[int] = set()
        while not self._stop.wait(self.every_s):
            found: Counter[str] = Counter()
            for pid in psutil.pids():
                if pid in strangers:
                    continue
                try:
                    if pid not in members:
                        process = psutil.Process(pid)
                        if process.environ().get(MARK) != self.mark:
                            strangers.add(pid)
                            continue
                        members[pid] = process
                    role = _role(members[pid].cmdline())
                    found[role] += members[pid].memory_full_info().pss
                    self._read[pid] = role, members[pid].io_counters().read_chars
                    times = members[pid].cpu_times()
                    self._busy[pid] = times.user + times.system
                except (psutil.Error, OSError):
                    members.pop(pid, None)
            self.looks += 1
            self.history.append((time.time(), dict(found)))
            self._spent.append((time.time(), sum(self._busy.values())))
            if found.total() > self.peak_bytes:
                self.peak_bytes, self.at_peak = found.total(), dict(found)


def _role(command: list[str]) -> str:
    text = " ".join(command)
    if text.startswith("ray::") or "default_worker.py" in text:
        return "workers"
    if "infra.cli" in text:
        return "driver"
    name = Path(command[0]).name if command else ""
    return name if name in ("raylet", "gcs_server") else "other"
