"""What every verb gets and gives: the context of a command and its outcome."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from infra.base.config import Config


@dataclass(frozen=True)
class Context:
    """Where a command works and how it speaks."""

    root: str
    """URL under which versions lie."""
    out: str | None = None
    """URL of the one version this command makes, in place of its place under the root."""
    dry_run: bool = False
    """State the plan and stop."""


@dataclass(frozen=True)
class Command:
    """A command line that was understood and is not run here: what `oacir submit` sends to a cluster."""

    verb: str
    recipe: Config
    """With file and overrides."""
    config: str | None
    """The recipe's file or shipped name, as given."""
    root: str
    out: str | None
    options: tuple[str, ...] = ()
    """Overrides and switches, as words."""


@dataclass(frozen=True)
class Outcome:
    """What a command has to say at its end."""

    message: str
    """One line; ends with where the result lies."""
    location: str | None = None
    """URL of the result."""
    figures: dict[str, Any] = field(default_factory=dict)
    """JSON-able numbers, printed with `--json`."""
    details: tuple[str, ...] = ()
    """Lines printed before the message (tables, accounts)."""
    refused: str | None = None
    """Why a check refuses the result that lies there, in one line; the command then exits with code 3."""
