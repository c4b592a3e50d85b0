"""How somebody else than the user follows a training while it goes, and may end it: a sweep does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from infra.base.errors import OacirError
from training.job import Note

MARK = "#trial-"
"""In an origin, behind the URL of its run: what follows only tells runs of the same origin apart."""


class StoppedError(OacirError):
    """A training that its listener ended. Its checkpoints lie there; the same recipe goes on."""


class Listener(Protocol):
    """What `train` tells while workers train, in a thread of its own."""

    def begins(self, run_url: str, total_steps: int) -> None:
        """Before the first step, once: where the run lies, and how many steps it has."""

    def notes(self, notes: Sequence[Note]) -> None:
        """What workers told since; some of it again after a lost worker."""

    def stopping(self) -> bool:
        """Whether the training shall end; asked again and again."""
        ...
