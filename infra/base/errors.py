"""The one family of errors a user may see; the command line prints them as one line."""

from __future__ import annotations

from collections.abc import Sequence


class OacirError(Exception):
    """A problem the user can act on: what, where, what is allowed, how to fix it, in one line.

    The command line prints the message and exits with `exit_code`; `--debug` adds the trace.
    """

    exit_code = 1


class RecipeError(OacirError):
    """A wrong recipe or command line. Holds every problem found, not only the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("; ".join(self.problems))


class RefusedError(OacirError):
    """The work finished but a gate or check refused its result."""

    exit_code = 3


class TerminatedError(OacirError):
    """A signal asked for an end, and the work ended in an orderly way; the exit code is the shell's for that signal."""

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class VersionError(OacirError):
    """A stored version is absent, unfinished, stale or of an unknown schema."""
