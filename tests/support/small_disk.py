"""A real file system of few bytes, for tests of what happens when a disk is full."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


class NoMountsError(RuntimeError):
    """This machine lets us mount nothing; the message says what it said."""


class SmallDisk:
    """A file system in memory at `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def resize(self, size_bytes: int) -> None:
        """Give it so much room, in whole pages."""
        _run("mount", "-o", f"remount,size={size_bytes}", str(self.folder))


@contextmanager
def small_disk(folder: Path, size_bytes: int) -> Iterator[SmallDisk]:
    """Mount one of this size at a folder, which is made, and take it away at the end.

    Raises:
        NoMountsError: mounting is not allowed here.
    """
    folder.mkdir(parents=True, exist_ok=True)
    _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes}", "oacir-small-disk", str(folder))
    try:
        yield SmallDisk(folder)
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=False, capture_output=True)


def _run(*words: str) -> None:
    try:
        subprocess.run(words, check=True, capture_output=True, text=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = getattr(error, "stderr", "") or str(error)
        raise NoMountsError(f"mounting is not allowed here: {said.strip()}") from error
