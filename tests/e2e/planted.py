"""The `oacir` command with something planted in it: recovery taken out, or a record that hangs.

python tests/e2e/planted.py [--without NAME] [--hang] [--reject URI] -- VERB …

A drill that passes with its recovery taken out proves nothing, so each can be run that way (`--without-recovery`).
Everything planted reaches the workers too: it travels with the stages.
"""

from __future__ import annotations

import argparse
import ctypes
import sys
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
    """A training does not look for the checkpoints of an earlier run."""
    from training import checkpoints, trainer
    from training.job import work

    def afresh(job: Any) -> Any:
        from training import checkpoints as of_the_worker

        of_the_worker.complete_steps = lambda url: []
        return work(job)

    checkpoints.complete_steps = lambda url: []
    trainer.work = afresh


PLANTS = {f.__name__: f for f in (ignore_finished, no_retries, no_watchdog, no_resume)}


def main() -> int:
    here = sys.argv.index("--")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--without", choices=PLANTS, help="which recovery is taken out")
    parser.add_argument("--hang", action="store_true", help="decoding hangs where a file's end says so")
    parser.add_argument("--reject", action="append", default=[], help="reject this image at once as timeout")
    options = parser.parse_args(sys.argv[1:here])
    if options.hang or options.reject:
        hangs, refused = options.hang, tuple(options.reject)
        build.CollectStage = lambda *given: Planted(*given, hangs, refused)  # type: ignore[assignment,misc]
    if options.without:
        PLANTS[options.without]()
    return cli.main(sys.argv[here + 1 :])


if __name__ == "__main__":
    sys.exit(main())
