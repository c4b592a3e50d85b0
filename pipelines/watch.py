"""How long one record may take: what a stage says to its watchdog, and what it is told of records that hung.

A hang in C code, or in a read of a dead mount, ends for no thread and no signal handler. So a process beside the worker
(`watchdog`) notes the record in the version and kills the worker; Ray gives the part to another one, which rejects that
record unopened. The price while all goes well is a write of 48 bytes before and after each record.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from infra.base import storage
from pipelines.watchdog import SLOT, note_path

LONGEST_PAUSE_S = 1.0
LOOKS_PER_LIMIT = 10
_NOTE = re.compile(r"part-(\d+)/(\d+)\+(\d+)\.json")


class Hung(NamedTuple):
    """Records of a part that were over their time, by position."""

    alone: frozenset[int] = frozenset()
    """Rejected without another try."""
    together: frozenset[int] = frozenset()
    """Over the time of a group: each is tried by itself."""


NONE_HUNG = Hung()


@dataclass(frozen=True)
class Watch:
    """What a stage knows of the time of the records of one part. A position is that of a record in the part."""

    seconds: float = 0.0
    """Longest time of a record; 0 = unwatched."""
    hung: Hung = NONE_HUNG
    slot: mmap.mmap | None = None
    stage: int = 0
    part: int = 0

    @property
    def detail(self) -> str:
        """What the rejects say of a record that hung."""
        return f"not done after {self.seconds:g} s"

    @contextlib.contextmanager
    def over(self, first: int, count: int = 1) -> Iterator[None]:
        """Watch a piece of work on a record, or on `count` records at once, which have as many times as long."""
        if self.slot is None:
            yield
            return
        moment = time.monotonic() + self.seconds * count
        SLOT.pack_into(self.slot, 0, self.stage, self.part, first, count, self.seconds, moment)
        try:
            yield
        finally:
            SLOT.pack_into(self.slot, 0, 0, 0, 0, 0, 0.0, 0.0)


UNWATCHED = Watch()
"""Where nobody would do the part again: outside Ray."""


class Guard:
    """A worker's side of its watchdog; one per worker process and version."""

    def __init__(self, version_url: str, limits: Mapping[str, float]) -> None:
        """Start the watchdog.

        Args:
            version_url: where notes go.
            limits: stage → longest time of one of its records, in seconds.
        """
        self.version_url, self.limits = version_url, dict(limits)
        with tempfile.TemporaryFile() as file:
            file.write(bytes(SLOT.size))
            file.flush()
            self.slot = mmap.mmap(file.fileno(), SLOT.size)
            pause_s = min(LONGEST_PAUSE_S, min(self.limits.values()) / LOOKS_PER_LIMIT)
            given = [file.fileno(), os.getpid(), pause_s, version_url, *self.limits]
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.watchdog", *map(str, given)],
                pass_fds=[file.fileno()],
                stdin=subprocess.DEVNULL,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
            )

    @property
    def alive(self) -> bool:
        """Whether the watchdog still watches."""
        return self.process.poll() is None

    def watch(self, stage: str, part: int, hung: Hung) -> Watch:
        """What a stage needs for a part."""
        if stage not in self.limits:
            return UNWATCHED
        return Watch(self.limits[stage], hung, self.slot, list(self.limits).index(stage), part)

    def close(self) -> None:
        """End the watchdog."""
        self.process.kill()
        self.process.wait()
        self.slot.close()


def hung_records(version_url: str, stages: Iterable[str]) -> dict[str, dict[int, Hung]]:
    """Stage → part → what its notes say."""
    return {stage: _told(storage.join(version_url, note_folder(stage)), "") for stage in stages}


def hung_in(version_url: str, stage: str, part: int) -> Hung:
    """What the notes say of one part."""
    name = f"part-{part:05d}"
    return _told(storage.join(version_url, note_folder(stage), name), f"{name}/").get(part, NONE_HUNG)


def note_folder(stage: str) -> str:
    """The folder of a stage's notes in a version."""
    return note_path(stage, 0, 0, 0).rsplit("/", 2)[0]


def _told(folder: str, prefix: str) -> dict[int, Hung]:
    found: dict[int, Hung] = {}
    for file in storage.list_files(folder):
        if match := _NOTE.fullmatch(prefix + file.path):
            part, first, count = map(int, match.groups())
            known, named = found.get(part, NONE_HUNG), frozenset(range(first, first + count))
            found[part] = (
                known._replace(alone=known.alone | named)
                if count == 1
                else known._replace(together=known.together | named)
            )
    return found


def alone_or_together(positions: Sequence[int], hung: Hung, most: int) -> Iterator[list[int]]:
    """Positions cut into groups to work on at once: those that hung together one by one, others up to `most`.

    Positions that hung alone are left out.
    """
    group: list[int] = []
    for position in positions:
        if position in hung.alone:
            continue
        if position in hung.together:
            if group:
                yield group
            yield [position]
            group = []
            continue
        group.append(position)
        if len(group) == most:
            yield group
            group = []
    if group:
        yield group
