"""A worker that makes no step any more ends itself, so that Ray Train starts the workers anew.

Where one worker hangs, all others wait for it in a collective, for half an hour as torch has it, and nobody is told.
"""

from __future__ import annotations

import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import FrameType

CODE = 70
"""Exit code of a worker that ended itself."""
LATER_S = 10.0
"""How much later the interpreter's own watchdog ends the process: it needs no Python, which C code may hold up."""
ARMED_EVERY_S = 1.0
"""Each time it is wound up costs a thread."""
TOLD_WITHIN_S = 5.0
STANDARD_ERROR = 2
"""Where it says so, by number: whatever stands for it in Python."""
CODE_FOLDER = Path(__file__).resolve().parent


class Liveness(threading.Thread):
    """Watches the thread that makes it.

    Args:
        limit_s: seconds without a sign of life; None watches nothing.
        tell: is told why the process ends, in a line; may block.
        end: ends the process.
    """

    def __init__(
        self,
        limit_s: float | None,
        tell: Callable[[str], None],
        end: Callable[[int], None] = os._exit,
    ) -> None:
        super().__init__(name="liveness", daemon=True)
        self.limit_s, self.tell, self.end = limit_s, tell, end
        self.watched = threading.get_ident()
        self.last, self.over = time.monotonic(), threading.Event()
        self._armed = -ARMED_EVERY_S
        if limit_s is not None:
            self.beat()
            self.start()

    def beat(self) -> None:
        """A sign of life."""
        self.last = time.monotonic()
        if self.limit_s is not None and self.last - self._armed > ARMED_EVERY_S and not self.over.is_set():
            self._armed = self.last
            faulthandler.dump_traceback_later(self.limit_s + LATER_S, exit=True, file=STANDARD_ERROR)

    def close(self) -> None:
        """Watch no longer."""
        self.over.set()
        faulthandler.cancel_dump_traceback_later()

    def run(self) -> None:
        """Sleep until the limit may have passed, again and again."""
        assert self.limit_s is not None
        while not self.over.wait(max(0.0, self.last + self.limit_s - time.monotonic())):
            if time.monotonic() - self.last < self.limit_s:
                continue
            frame = sys._current_frames().get(self.watched)
            line = f"no step for {self.limit_s:g} s, last seen {'nowhere' if frame is None else place(frame)}"
            # the store of the line may be what hangs
            teller = threading.Thread(target=self._told, args=(line,), daemon=True)
            teller.start()
            teller.join(TOLD_WITHIN_S)
            self.end(CODE)
            return

    def _told(self, line: str) -> None:
        with suppress(Exception):
            self.tell(line)


def place(frame: FrameType) -> str:
    """Where a thread is: the innermost line of this package, and the innermost of all."""
    inner, ours = frame, None
    walked: FrameType | None = frame
    while walked is not None and ours is None:
        if Path(walked.f_code.co_filename).resolve().is_relative_to(CODE_FOLDER):
            ours = walked
        walked = walked.f_back
    told = [_line(ours)] if ours is not None else []
    if inner is not ours:
        told.append(_line(inner))
    return ", ".join(told)


def _line(frame: FrameType) -> str:
    path = Path(frame.f_code.co_filename)
    return f"in {frame.f_code.co_name} ({path.parent.name}/{path.name}:{frame.f_lineno})"
