"""Ctrl-C while Ray Tune runs."""

from __future__ import annotations

import signal
import threading


class Interrupts:
    """Ctrl-C as everywhere: Ray Tune takes it for a reason to return early, and leaves its handler in place."""

    def __enter__(self) -> None:
        self.main = threading.current_thread() is threading.main_thread()
        self.before = signal.getsignal(signal.SIGINT)

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if not self.main:
            return
        # Tune puts the handler from before back when the signal comes, and only then
        interrupted = signal.getsignal(signal.SIGINT) is self.before
        signal.signal(signal.SIGINT, self.before)
        if interrupted and kind is None:
            raise KeyboardInterrupt
