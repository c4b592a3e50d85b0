"""Progress of long work: count, rate and ETA on the terminal's error stream, quiet about everything else."""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import TextIO


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3:05 min, 2:14 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


class Progress:
    """A line that says how far a piece of work is.

    On a terminal the line is rewritten in place; elsewhere (a log file) one line is written every `every_s` seconds.
    """

    def __init__(
        self, label: str, total: int, unit: str, *, done: int = 0, stream: TextIO | None = None
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.resumed = done, done
        self.stream = stream or sys.stderr
        self.began = time.monotonic()
        self.last = self.began
        self.every_s = 0.2 if self.stream.isatty() else 15.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(final=True, failed=kind is not None)

    def update(self, count: int = 1, note: str = "") -> None:
        """Say that `count` more units are done; the note (a loss, say) ends the line."""
        self.done += count
        now = time.monotonic()
        if now - self.last >= self.every_s:
            self.last = now
            self._write(note=note)

    def _write(self, *, note: str = "", final: bool = False, failed: bool = False) -> None:
        spent = time.monotonic() - self.began
        rate = (self.done - self.resumed) / spent if spent > 0 else 0.0
        text = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        if final:
            text += f" in {duration(spent)}" + (f" ({rate:,.1f} {self.unit}/s)" if rate else "")
            text += f", {self.resumed:,} from an earlier run" if self.resumed else ""
            text += ", stopped" if failed else ""
        else:
            left = (self.total - self.done) / rate if rate > 0 else 0.0
            text += f", {rate:,.1f} {self.unit}/s, {duration(left)} left" + (f", {note}" if note else "")
        if self.stream.isatty():
            self.stream.write("\r\x1b[2K" + text + ("\n" if final else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()
