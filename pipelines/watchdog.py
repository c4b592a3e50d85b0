"""The watchdog beside a worker, as a process of its own: a codec that hangs in C may hold the worker's interpreter.

The worker writes into a slot of shared memory what it is at and until when it may be (see `watch`). When that moment
has passed, the watchdog stops the worker, notes the record in the version, and kills the worker; whoever does the part
again reads the note. It ends with its worker.
"""

from __future__ import annotations

import json
import mmap
import os
import signal
import struct
import sys
import time
from collections.abc import Sequence
from typing import NamedTuple

SLOT = struct.Struct("<qqqqdd")
"""Stage, part, first record, records, seconds, and the moment by the machine's monotonic clock; 0 = nothing watched."""
STOPPING_S = 0.05
"""A stopped process may still take the step it is in."""


class Overdue(NamedTuple):
    """What a worker was at when its time was over."""

    stage: int
    part: int
    first: int
    records: int
    seconds: float


def overdue(slot: mmap.mmap) -> Overdue | None:
    """What the slot names, if its moment has passed."""
    *what, moment = SLOT.unpack_from(slot)
    return Overdue(*what) if moment and time.monotonic() > moment else None


def note_path(stage: str, part: int, first: int, count: int) -> str:
    """Where the note lies in a version; it says everything that is read of it."""
    return f"_work/hung/{stage}/part-{part:05d}/{first}+{count}.json"


def main(arguments: Sequence[str]) -> None:
    """Watch: descriptor of the slot, the worker's process, seconds between two looks, version, names of the stages."""
    descriptor, worker, pause_s = int(arguments[0]), int(arguments[1]), float(arguments[2])
    version_url, stages = arguments[3], arguments[4:]
    slot = mmap.mmap(descriptor, SLOT.size)
    while os.getppid() == worker:
        time.sleep(pause_s)
        found = overdue(slot)
        if found is None or os.getppid() != worker:
            continue
        os.kill(worker, signal.SIGSTOP)  # so that it cannot come to an end between the note and its own
        time.sleep(STOPPING_S)
        if overdue(slot) != found:
            os.kill(worker, signal.SIGCONT)
            continue
        try:
            _note(version_url, stages[found.stage], found)
        finally:
            os.kill(worker, signal.SIGKILL)
        return


def _note(version_url: str, stage: str, found: Overdue) -> None:
    from infra.base import storage  # heavy, and nearly never needed

    path = note_path(stage, found.part, found.first, found.records)
    text = json.dumps(found._asdict() | {"stage": stage})
    storage.write_bytes(storage.join(version_url, path), text.encode())


if __name__ == "__main__":
    main(sys.argv[1:])
