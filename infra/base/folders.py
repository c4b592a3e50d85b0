"""Every file below a folder of this machine: links are followed, each folder is looked at once, nothing is left out."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

from infra.base.errors import OacirError

log = logging.getLogger(__name__)


def files_below(root: Path) -> Iterator[Path]:
    """The files below a folder, in no order; none where there is no folder.

    A folder that can be reached in several ways (links beside it, circles of links) is looked at once, under its own
    name where it has one below the root. Links out of the root are followed and told in one warning.

    Raises:
        OacirError: a folder cannot be listed; a listing that lacks it would pass for a smaller collection.
    """
    if not root.is_dir():
        return
    seen: set[tuple[int, int]] = set()
    links: list[Path] = []
    yield from _real_files(root, root, seen, links)
    home, told = root.resolve(), False
    while links:
        links.sort(reverse=True)
        link = links.pop()
        if not told and not link.resolve().is_relative_to(home):
            log.warning(
                "%s: links lead out of it and are followed, the first: %s -> %s", root, link, link.resolve()
            )
            told = True
        yield from _real_files(link, root, seen, links)


def _real_files(top: Path, root: Path, seen: set[tuple[int, int]], links: list[Path]) -> Iterator[Path]:
    """Files below `top` without following links; linked folders are added to `links`."""
    waiting = [top]
    while waiting:
        folder = waiting.pop()
        try:
            status = folder.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder) as entries:
                found = list(entries)
        except FileNotFoundError:  # gone since it was listed: there is nothing to leave out
            continue
        except OSError as error:
            raise OacirError(
                f"{folder}: this folder cannot be listed ({error.strerror or error}); give the right to read and enter"
                f" it (chmod u+rx), or move it out of {root}"
            ) from error
        for entry in found:
            if not _is_folder(entry):
                yield folder / entry.name
            elif entry.is_symlink():
                links.append(folder / entry.name)
            else:
                waiting.append(folder / entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself, say: a file that cannot be read
        return False


def real_folders(root: Path) -> Iterator[Path]:
    """The folders below a folder, in no order; links to folders are left out."""
    for folder, names, _ in os.walk(root):
        for name in names:
            if not (found := Path(folder, name)).is_symlink():
                yield found
