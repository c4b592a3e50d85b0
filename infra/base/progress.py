"""Progress of long work: count, rate and ETA on the terminal's error stream, quiet about everything else."""

from __future__ import annotations

import logging
import os
import sys
import time
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from infra.base import logs

FEW = 3
"""So many units after the first tell a rate."""
SLOW = 0.1
"""Units per second below which the seconds of one are said instead."""


def duration(seconds: float) -> str:
    """Seconds as people read them: 42 s, 3:05 min, 2:14 h."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60}:{whole % 60:02d} min"
    return f"{whole // 3600}:{whole % 3600 // 60:02d} h"


def announce(line: str) -> None:
    """Say at once, on the error stream, what a command that goes on has to tell."""
    if not logs.said(logging.INFO, line):
        sys.stderr.write(logs.redacted(line) + "\n")
        sys.stderr.flush()


class Progress:
    """A line that says how far a piece of work is.

    On a terminal the line is rewritten in place; elsewhere (a log file) one line is written every `every_s` seconds.
    The rate is that from the first unit to the latest, so that starting workers and loading models does not count.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        done: int = 0,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.label, self.total, self.unit = label, total, unit
        self.done, self.resumed = done, done
        self.stream = stream or sys.stderr
        self.clock = clock
        self.began = self.last_written = clock()
        self.first: tuple[float, int] | None = None
        self.latest = (self.began, done)
        self.every_s = 0.2 if self.stream.isatty() else 15.0

    def __enter__(self) -> Progress:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._write(final=True, failed=kind is not None)

    def update(self, count: int = 1, note: str = "", *, at_once: bool = False) -> None:
        """Say that `count` more units are done; the note (a loss, say) ends the line.

        With `at_once` the line is written now and not at its pace.
        """
        self.done += count
        now = self.clock()
        if count:
            self.latest = (now, self.done)
            self.first = self.first or self.latest
        if at_once or now - self.last_written >= self.every_s:
            self.last_written = now
            self._write(note=note)

    def _rate(self) -> float:
        """Units per second since the first one; 0 until there are a few."""
        if self.first is None:
            return 0.0
        seconds, units = self.latest[0] - self.first[0], self.latest[1] - self.first[1]
        return units / seconds if units >= FEW and seconds > 0 else 0.0

    def _write(self, *, note: str = "", final: bool = False, failed: bool = False) -> None:
        rate = self._rate()
        pace = f"{rate:,.1f} {self.unit}/s" if rate >= SLOW else f"{duration(1 / rate)} each" if rate else ""
        text = f"{self.label}: {self.done:,} of {self.total:,} {self.unit}"
        if final:
            text += f" in {duration(self.clock() - self.began)}" + (f" ({pace})" if pace else "")
            text += f", {self.resumed:,} from an earlier run" if self.resumed else ""
            text += ", stopped" if failed else ""
        else:
            left = f"{duration((self.total - self.done) / rate)} left" if rate else ""
            text += "".join(f", {part}" for part in (pace, left, note) if part)
        text = logs.redacted(text)
        if self.stream is sys.stderr and logs.said(logging.INFO, text, done=self.done, total=self.total):
            return
        if self.stream.isatty():
            # a line that wraps could not be rewritten
            while (columns := self._columns()) and len(text) >= columns and ", " in text:
                text = text.rsplit(", ", 1)[0]
            self.stream.write("\r\x1b[2K" + text + ("\n" if final else ""))
        else:
            self.stream.write(text + "\n")
        self.stream.flush()

    def _columns(self) -> int:
        """Of the terminal; 0 where it does not say."""
        try:
            return os.get_terminal_size(self.stream.fileno()).columns
        except (OSError, ValueError):
            return 0
