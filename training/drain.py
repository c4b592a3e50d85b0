"""When workers leave a training between two steps: who may ask for it, and how all of them agree on the step.

A worker may be asked by a signal, rank 0 by the driver through the `Board`. What a worker knows goes along with every
step and is read by all behind the next one. So all leave behind the same step, and none waits to learn it.
"""

from __future__ import annotations

import signal
import threading
import time
from typing import TYPE_CHECKING, Any

import ray
import torch
import torch.distributed as dist
from ray.train.torch import TorchConfig
from torch import Tensor

from training.job import Wish

if TYPE_CHECKING:
    from types import FrameType

ASKED_EVERY_S = 0.25
TOLD_TO_END = threading.Event()
"""Whether this process was sent SIGTERM: a process has one way to take a signal."""

_TorchBackend: Any = TorchConfig().backend_cls


def listen() -> None:
    """Note a SIGTERM instead of dying of it; the second one ends the process as before. For the main thread only."""
    before = signal.getsignal(signal.SIGTERM)

    def noted(number: int, frame: FrameType | None) -> None:
        if TOLD_TO_END.is_set() and callable(before):
            before(number, frame)
        TOLD_TO_END.set()

    TOLD_TO_END.clear()
    signal.signal(signal.SIGTERM, noted)


class Listening(_TorchBackend):  # type: ignore[misc, valid-type]  # ray is untyped here
    """Ray Train's torch backend, whose workers listen. Training runs beside the main thread, which alone may say how a
    signal is taken, so the backend has to ask for it."""

    def on_training_start(self, worker_group: Any, backend_config: Any) -> None:
        """Before the first line of training on any worker."""
        super().on_training_start(worker_group, backend_config)
        worker_group.execute(listen)


class ListeningConfig(TorchConfig):  # type: ignore[misc]  # ray is untyped here
    """`TorchConfig` with that backend."""

    @property
    def backend_cls(self) -> type:
        """Of the workers."""
        return Listening


class Drain:
    """What this worker and the others are asked.

    Args:
        board: the `Board` actor.
        rank: of this worker.
    """

    def __init__(self, board: Any, rank: int) -> None:
        self.board, self.rank = board, rank
        self.own = Wish.NONE
        # on a GPU the usual group's sums lie on the device, and to read one there waits for all before it
        self._group = dist.new_group(backend="gloo") if dist.get_backend() != "gloo" else None
        self._shared: tuple[Tensor, Any] | None = None
        self._question: Any = None
        self._asked_at = time.monotonic()

    def ask(self, wish: Wish, why: str) -> None:
        """Let all workers leave behind one of the next steps."""
        if wish > self.own:
            self.own = wish
            self.board.ask.remote(wish, why)

    def after_step(self) -> Wish:
        """What all workers were asked before the step that is done; to be called behind every step on every worker."""
        agreed = self._agreed()
        self._look()
        shared = torch.tensor(float(self.own))
        self._shared = shared, dist.all_reduce(shared, dist.ReduceOp.MAX, group=self._group, async_op=True)
        return agreed

    def close(self) -> None:
        """Wait for what is on its way; to be called on every worker."""
        self._agreed()

    def _agreed(self) -> Wish:
        shared, self._shared = self._shared, None
        if shared is None:
            return Wish.NONE
        shared[1].wait()
        return Wish(int(shared[0]))

    def _look(self) -> None:
        """Look at what asks this worker, without waiting for an answer."""
        if TOLD_TO_END.is_set():
            self.ask(Wish.MOVE, f"worker {self.rank} was sent SIGTERM")
        if self.rank:
            return
        if self._question is not None:
            if ray.wait([self._question], timeout=0)[0]:
                self.own = max(self.own, Wish(ray.get(self._question)))
                self._question = None
        elif time.monotonic() - self._asked_at > ASKED_EVERY_S:
            self._question, self._asked_at = self.board.asked.remote(), time.monotonic()
