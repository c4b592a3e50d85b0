"""SIGTERM and Ctrl-C while workers train: the first one asks them to save and to leave, the second does not wait."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType
from typing import Any

from infra.base.errors import TerminatedError

TAKEN = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """What this process was sent since it was entered; outside the main thread, where nothing can be taken, nothing.

    Attributes:
        received: the first signal.
        received_at: when, on the clock `time.monotonic`.
        again: whether there was another one.
        passed_on: whether the workers were told.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.received_at = 0.0
        self.again = self.passed_on = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Signals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in TAKEN}
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _take(self, number: int, _: FrameType | None) -> None:
        if self.received is None:
            self.received, self.received_at = signal.Signals(number), time.monotonic()
        else:
            self.again = True

    @property
    def name(self) -> str:
        """Of the first one."""
        return "" if self.received is None else self.received.name

    def stopped(self, step: int, run_url: str, *, in_time: bool = True) -> TerminatedError:
        """What the command ends with.

        Args:
            step: of the last complete checkpoint.
            run_url: where the run lies.
            in_time: whether the workers saved the last step.
        """
        assert self.received is not None
        saved = f"all {step:,} steps are saved" if in_time else f"saved are {step:,} steps, not the last ones"
        told = f"stopped by {self.name}: {saved}; the same command goes on from there (run {run_url})"
        return TerminatedError(told, self.received)
