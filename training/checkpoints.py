"""Checkpoints from all ranks: each writes its own part of the state, and a step counts once every part lies there.

`checkpoints/step-00000123/rank-0-of-2.safetensors`, … Every file appears whole or not at all, so a kill at any moment
leaves the last complete step intact. Beside each lies its CRC-32, so that bytes that a disk or a store has changed are
noticed, and training goes on from the checkpoint before. Nothing is unpickled.

`checkpoints/best-00000120.safetensors`: the weights that were the best on dev then, kept as long as training may go on
from a checkpoint that knows of no better.
"""

from __future__ import annotations

import math
import re
import time
import zlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.base import storage
from infra.base.errors import OacirError
from training.layout import laid_out

FOLDER = "checkpoints"
GROWTH = 0.05
"""Distance of checkpoints as a share of the finished steps, until the longest distance is reached."""
FREE_S, MOST_OF_TIME = 30.0, 0.1
"""Seconds of writing that are not counted, and the share of the time that writing may take from then on."""
SUM = ".crc32"
"""Behind the name of a part: the file with its sum."""
_STEP = re.compile(r"step-(\d{8})")
_PART = re.compile(r"rank-(\d+)-of-(\d+)\.safetensors")
_BEST = re.compile(r"best-(\d{8})\.safetensors")


def is_due(step: int, last: int, longest: int, least: int = 1) -> bool:
    """Whether a checkpoint is written after `step` finished steps, the one before it after `last`.

    The distance grows with the work at stake: a kill repeats at most 5 % of the finished steps (and the one being
    written), never more than `longest`; unless it has to be `least`, see `least_distance`.
    """
    return step - last >= max(least, min(longest, int(GROWTH * step)), 1)


def least_distance(write_s: float, spent_s: float, step_s: float) -> int:
    """Steps that have to lie between two checkpoints so that writing takes at most a tenth of the time.

    Args:
        write_s: seconds that the last one took from the copy to the last byte.
        spent_s: seconds of all so far; the first 30 are free, so that small models keep every early step.
        step_s: seconds of a step.
    """
    if spent_s <= FREE_S or step_s <= 0:
        return 1
    return max(1, math.ceil(write_s / (MOST_OF_TIME * step_s)))


class DamagedError(OacirError):
    """A part of a checkpoint holds other bytes than were written. An older checkpoint may still be good."""


@dataclass(frozen=True)
class Saved:
    """A complete checkpoint: all ranks' parts of one step."""

    run_url: str
    step: int
    world_size: int
    """Workers that wrote it."""

    @classmethod
    def newest(cls, run_url: str, step: int, world_size: int) -> Saved:
        """The checkpoint of a complete step; of several, that of as many workers as there are now.

        Raises:
            OacirError: there is none.
        """
        sizes = _complete(run_url).get(step, set())
        if not sizes:
            raise OacirError(f"{run_url}: no complete checkpoint of step {step:,}; the same command goes on")
        return cls(run_url, step, world_size if world_size in sizes else max(sizes))

    def parts(self, rank: int) -> Iterator[dict[str, Tensor]]:
        """The parts of all ranks, on the CPU, read one by one as they are asked for; that of `rank` comes first."""
        first = rank % self.world_size
        for other in (first, *(r for r in range(self.world_size) if r != first)):
            yield load(self.run_url, self.step, other, self.world_size)


def complete_steps(run_url: str) -> list[int]:
    """Steps with a complete checkpoint, oldest first."""
    return sorted(_complete(run_url))


def _complete(run_url: str) -> dict[int, set[int]]:
    """Step → numbers of workers all of whose parts lie there."""
    base = storage.join(run_url, FOLDER)
    parts: dict[int, dict[int, set[int]]] = {}
    if not storage.exists(base):
        return {}
    for file in storage.list_files(base):
        folder, _, name = file.path.partition("/")
        step, part = _STEP.fullmatch(folder), _PART.fullmatch(name)
        if step and part:
            ranks = parts.setdefault(int(step[1]), {})
            ranks.setdefault(int(part[2]), set()).add(int(part[1]))
    complete = {
        step: {size for size, ranks in by_size.items() if len(ranks) == size}
        for step, by_size in parts.items()
    }
    return {step: sizes for step, sizes in complete.items() if sizes}


def load(run_url: str, step: int, rank: int, world_size: int) -> dict[str, Tensor]:
    """One rank's part of a complete checkpoint, on the CPU.

    Raises:
        DamagedError: the part holds other bytes than were written.
    """
    return _parsed(_part_url(run_url, step, rank, world_size))


def load_best(run_url: str, step: int) -> dict[str, Tensor]:
    """The weights that were the best on dev after a step, by name.

    Raises:
        OacirError: they are not there, or hold other bytes than were written.
    """
    return _parsed(_best_url(run_url, step))


def best_steps(run_url: str) -> list[int]:
    """Steps whose weights were the best on dev and are still kept, oldest first."""
    found = [_BEST.fullmatch(file.path) for file in storage.files_in(storage.join(run_url, FOLDER))]
    return sorted(int(match[1]) for match in found if match)


def _parsed(url: str) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load as parse

    data = storage.read_bytes(url)
    stated = storage.read_bytes(url + SUM).decode() if storage.exists(url + SUM) else "none"
    if stated != _sum(data):
        raise DamagedError(f"{url}: damaged checkpoint (CRC-32 {_sum(data)}, written was {stated})")
    try:
        return dict(parse(data))
    except SafetensorError as error:
        raise DamagedError(f"{url}: damaged checkpoint ({error})") from error


def _sum(data: bytes | memoryview) -> str:
    return f"{zlib.crc32(data):08x}"


def remove_after(run_url: str, step: int) -> None:
    """Delete what lies of later steps than the one that training goes on from: another number of workers would not
    write over it, and parts of two courses could then make up one checkpoint."""
    base = storage.join(run_url, FOLDER)
    if not storage.exists(base):
        return
    folders = {file.path.partition("/")[0] for file in storage.list_files(base)}
    for folder in folders:
        found = _STEP.fullmatch(folder)
        if found and int(found[1]) > step:
            storage.remove(storage.join(base, folder))
    for best in best_steps(run_url):
        if best > step:
            _remove_best(run_url, best)


def remove_all(run_url: str) -> None:
    """Delete every checkpoint of a run that is finished."""
    storage.remove(storage.join(run_url, FOLDER))


def branch(origin_url: str, run_url: str) -> int:
    """Begin a run with the newest checkpoint of another one, which may be training meanwhile.

    Returns:
        its step; 0 where the other run has none, or none any more.
    """
    for step in reversed(complete_steps(origin_url)):
        folder = storage.join(FOLDER, f"step-{step:08d}")
        best = [_best_url("", b).strip("/") for b in best_steps(origin_url) if b <= step][-1:]
        try:
            parts = [storage.join(folder, f.path) for f in storage.files_in(storage.join(origin_url, folder))]
            # the parts behind the best weights and their sums, as they were written
            for path in [
                *(b + s for b in best for s in (SUM, "")),
                *sorted(parts, key=lambda p: not p.endswith(SUM)),
            ]:
                storage.write_bytes(
                    storage.join(run_url, path), storage.read_bytes(storage.join(origin_url, path))
                )
        except (OSError, OacirError):  # the other run has deleted it for newer ones: half a copy
            storage.remove(storage.join(run_url, folder))
            continue
        return step
    return 0


class CheckpointWriter:
    """Writes this rank's parts in a thread, so that training goes on meanwhile; at most one is under way.

    A write that fails, after all the patience that `storage` has, ends nothing: the checkpoints before are as good as
    they were, and the next one may come through.

    Attributes:
        problem: why the last write failed; empty if it did not.
        failures: how many failed in a row.
        last_s: seconds that the last finished part took.
        usual_s: the lesser of the last two: a store that was away once shall not move later checkpoints apart.
        written_at: Unix time at which the last part was written; before the first one, when this began.
        spent_s: the sum of those of all parts.
    """

    def __init__(self, run_url: str, rank: int, world_size: int, kept: int) -> None:
        self.run_url, self.rank, self.world_size, self.kept = run_url, rank, world_size, kept
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._part: Future[None] | None = None
        self._best: Future[None] | None = None
        self._unwritten: tuple[str, memoryview] | None = None
        self.problem, self.failures = "", 0
        self.last_s, self.spent_s, self.usual_s = 0.0, 0.0, 0.0
        self.written_at = time.time()

    def save(self, step: int, state: Mapping[str, Tensor]) -> None:
        """Copy the state and start writing it; waits for the part before, not for the best weights."""
        began = time.monotonic()
        self._note(self._part)
        url = _part_url(self.run_url, step, self.rank, self.world_size)
        self._part = self._pool.submit(self._write_part, url, laid_out(state), began)

    def save_best(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Copy weights that are the best on dev so far and start writing them; for one rank alone.

        No part of a checkpoint is written before they are, so that one that knows of them never lacks them.
        """
        self._note(self._best)
        self._unwritten = _best_url(self.run_url, step), laid_out(weights)
        self._best = self._pool.submit(self._write_best)

    def settle(self) -> str:
        """Wait until nothing is under way; why the last write failed, or nothing."""
        best, part, self._best, self._part = self._best, self._part, None, None
        self._note(best)
        self._note(part)
        return self.problem

    @property
    def busy(self) -> bool:
        """Whether a part is being written."""
        return self._part is not None and not self._part.done()

    def wait(self) -> None:
        """Wait until nothing is under way.

        Raises:
            OacirError: the last write failed.
        """
        if self.settle():
            raise OacirError(self.problem)

    def close(self) -> None:
        """Finish what is under way and end the thread."""
        self.settle()
        self._pool.shutdown()

    def _note(self, under_way: Future[None] | None) -> None:
        """Wait for a write and note how it ended."""
        if under_way is None:
            return
        try:
            under_way.result()
        except OacirError as error:
            self.problem, self.failures = str(error), self.failures + 1
        else:
            self.problem, self.failures = "", 0

    def _write_best(self) -> None:
        if self._unwritten is not None:
            _write(*self._unwritten)
            self._unwritten = None

    def _write_part(self, url: str, data: memoryview, began: float) -> None:
        self._write_best()
        _write(url, data)
        if self.rank == 0:
            self._prune()
        took = time.monotonic() - began
        self.usual_s = min(took, self.last_s) if self.spent_s else took
        self.last_s = took
        self.spent_s += self.usual_s
        self.written_at = time.time()

    def _prune(self) -> None:
        done = complete_steps(self.run_url)
        for step in done[: -self.kept]:
            storage.remove(storage.join(self.run_url, FOLDER, f"step-{step:08d}"))
        # training may go on from the oldest that is kept, which has to find the best of then
        oldest = done[-self.kept :][0] if done else 0
        for best in [step for step in best_steps(self.run_url) if step <= oldest][:-1]:
            _remove_best(self.run_url, best)


def _write(url: str, data: memoryview) -> None:
    storage.write_bytes(url + SUM, _sum(data).encode())  # first: the file itself is what counts
    storage.write_bytes(url, data)


def _best_url(run_url: str, step: int) -> str:
    return storage.join(run_url, FOLDER, f"best-{step:08d}.safetensors")


def _remove_best(run_url: str, step: int) -> None:
    url = _best_url(run_url, step)
    storage.remove(url)
    storage.remove(url + SUM)


def _part_url(run_url: str, step: int, rank: int, world_size: int) -> str:
    return storage.join(run_url, FOLDER, f"step-{step:08d}", f"rank-{rank}-of-{world_size}.safetensors")


def as_tensor(rows: list[tuple[float, ...]], columns: int) -> Tensor:
    """Rows of numbers as float64 [n, columns], which holds every float32 and whole number below 2⁵³ exactly."""
    return torch.tensor(rows, dtype=torch.float64).reshape(-1, columns)
