"""The `oacir` command with something planted in it: recovery taken out, or a record that hangs.

python tests/e2e/planted.py [--without NAME] [--hang] [--reject URI] -- VERB …

A drill that passes with its recovery taken out proves nothing, so each can be run that way (`--without-recovery`).
Everything planted reaches the workers too: it travels with the stages.
"""

from __future__ import annotations

import argparse
import ctypes
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from infra import cli
from pipelines import build, collect, collected, stages
from pipelines.images import DecodedImage, ImageLimits, ImageRejected

LOOP, HELD = b"drill: hang in Python", b"drill: hang in C"
"""Ends of a file whose decoding hangs: for ever in Python, or in C while it holds the interpreter."""


def hang(data: bytes) -> None:
    """Never return, if the end of a file says so."""
    if data.endswith(HELD):
        ctypes.PyDLL(
            None
        ).pause()  # unlike CDLL it keeps the interpreter's lock: no other thread runs any more
    while data.endswith(LOOP):
        pass


@dataclass
class Planted(collect.CollectStage):
    """Collect whose decoder hangs on some files, or that refuses some at once."""

    hangs: bool = False
    refused: tuple[str, ...] = ()

    def setup(self) -> None:
        super().setup()
        true_decode, true_read, hangs, refused = collected.decode, collect._read, self.hangs, self.refused

        def decode(data: bytes, limits: ImageLimits, **options: Any) -> DecodedImage:
            if hangs:
                hang(data)
            return true_decode(data, limits, **options)

        def read(uri: str) -> bytes | ImageRejected:
            return ImageRejected("timeout", "drilled") if uri in refused else true_read(uri)

        collected.decode, collect._read = decode, read


def ignore_finished() -> None:
    """A build does not look for what an earlier run finished."""
    stages._read_records = lambda url, stage: {}  # type: ignore[assignment]


def no_retries() -> None:
    """Work of a lost worker or node is not given to another one."""
    stages.DEATHS_OF_A_PART = 0


def no_watchdog() -> None:
    """A record may take for ever."""
    made = build.CollectStage

    def unwatched(*options: Any) -> Any:
        stage = made(*options)
        stage.seconds_per_record = None
        return stage

    build.CollectStage = unwatched  # type: ignore[assignment,misc]


def no_resume() -> None:
    """A training does not look for the checkpoints of an earlier run, and begins anew."""
    from training import checkpoints, trainer

    fit = trainer._fit

    def afresh(recipe: Any, draft: Any, *rest: Any) -> Any:
        checkpoints.remove_all(draft.url)
        return fit(recipe, draft, *rest)

    trainer._fit = afresh


def changed_in_workers(change: Any) -> None:
    """Let the training workers change something before they begin."""
    from training import attempts

    work = attempts.work

    def changed(job: Any) -> Any:
        change()
        return work(job)

    attempts.work = changed


def poison(steps: Sequence[int]) -> None:
    """The tokens of some steps, from 1, are no numbers on worker 1."""

    def change() -> None:
        from training.loop import Loop

        true = Loop.train_step

        def train_step(self: Any, fed: Any, *rest: Any) -> None:
            if self.step + 1 in steps and self.rank == 1:
                fed = fed._replace(
                    batch=fed.batch._replace(reference_tokens=fed.batch.reference_tokens * float("nan"))
                )
            true(self, fed, *rest)

        Loop.train_step = train_step

    changed_in_workers(change)


def count(place: str) -> None:
    """Worker 0 writes down its process, the first step that it did, and the last one, behind each."""

    def change() -> None:
        from training.loop import Loop

        true, first = Loop.train_step, list[int]()

        def train_step(self: Any, *given: Any) -> None:
            true(self, *given)
            if self.rank == 0:
                first[:] = first[:] or [self.step]
                new = f"{place}.{os.getpid()}"
                with open(new, "w") as file:  # noqa: PTH123 - behind every step
                    file.write(f"{os.getpid()} {first[0]} {self.step}")
                os.replace(new, place)  # noqa: PTH105

        Loop.train_step = train_step

    changed_in_workers(change)


def no_sums() -> None:
    """A checkpoint is taken for what it should be."""

    def change() -> None:
        from safetensors.torch import load

        from infra.base import storage
        from training import checkpoints as of_the_worker

        of_the_worker._parsed = lambda url: dict(load(storage.read_bytes(url)))

    changed_in_workers(change)


def no_count_of_parts() -> None:
    """A step counts as soon as a part of it lies there."""
    from training import checkpoints

    def complete(url: str) -> dict[int, set[int]]:
        from infra.base import storage

        names = storage.list_folders(storage.join(url, "checkpoints"))
        return {int(name.removeprefix("step-")): {2} for name in names}

    def change() -> None:
        from training import checkpoints as of_the_worker

        of_the_worker._complete = complete

    checkpoints._complete = complete
    changed_in_workers(change)


def no_draining() -> None:
    """Nobody asks the workers to leave: signals end what they reach."""
    from training import attempts, drain

    class Deaf:
        received, again, passed_on = None, False, False

        def __enter__(self) -> Any:
            return self

        def __exit__(self, *_: object) -> None:
            pass

    def nothing() -> None:
        pass

    attempts.Signals = Deaf  # type: ignore[assignment,misc]
    attempts.leaving = frozenset
    made = attempts.trainer

    def deaf(*given: Any) -> Any:
        drain.ListeningConfig = drain.TorchConfig
        return made(*given)

    attempts.trainer = deaf


def no_patience() -> None:
    """The first checkpoint that cannot be written ends the training."""

    def change() -> None:
        from training import loop

        loop.MOST_FAILED = 1

    changed_in_workers(change)


def no_judging() -> None:
    """A loss that is no number is a loss as any other."""

    def change() -> None:
        from training import history

        history.math.isfinite = lambda value: True  # type: ignore[attr-defined]
        from training.engine import Engine

        Engine.broken = lambda self: False
        Engine.overflows = property(lambda self: False, lambda self, value: None)

    changed_in_workers(change)


PLANTS = {
    f.__name__: f
    for f in (
        ignore_finished, no_retries, no_watchdog, no_resume, no_sums, no_count_of_parts, no_draining, no_patience,
        no_judging,
    )
}  # fmt: skip


def main() -> int:
    here = sys.argv.index("--")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--without", choices=PLANTS, help="which recovery is taken out")
    parser.add_argument("--hang", action="store_true", help="decoding hangs where a file's end says so")
    parser.add_argument("--reject", action="append", default=[], help="reject this image at once as timeout")
    parser.add_argument(
        "--poison", type=int, action="append", help="a batch of training that is no numbers, as its step"
    )
    parser.add_argument("--count", help="file in which training counts its steps")
    options = parser.parse_args(sys.argv[1:here])
    if options.hang or options.reject:
        hangs, refused = options.hang, tuple(options.reject)
        build.CollectStage = lambda *given: Planted(*given, hangs, refused)  # type: ignore[assignment,misc]
    if options.poison:
        poison(options.poison)
    if options.count:
        count(options.count)
    if options.without:
        PLANTS[options.without]()
    return cli.main(sys.argv[here + 1 :])


if __name__ == "__main__":
    sys.exit(main())
