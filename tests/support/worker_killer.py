"""SIGKILL to the workers of a training in this process, in the middle of it."""

from __future__ import annotations

import threading
from pathlib import Path

import psutil

from training import checkpoints


class Killer(threading.Thread):
    """Kills the training workers once, as soon as a checkpoint of half the steps is complete."""

    def __init__(self, run: Path, step: int) -> None:
        super().__init__(daemon=True)
        self.run_folder, self.step = run, step
        self.killed: list[int] = []
        self.over = threading.Event()

    def run(self) -> None:
        while not self.over.wait(0.05):
            if max(checkpoints.complete_steps(str(self.run_folder)), default=0) >= self.step:
                family = psutil.Process().children(recursive=True)
                for worker in (p for p in family if "RayTrainWorker" in " ".join(p.cmdline())):
                    worker.kill()
                    self.killed.append(worker.pid)
                return
