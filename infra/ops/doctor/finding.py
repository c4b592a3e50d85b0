"""What a check found: one line, and what mends it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from infra.base.errors import OacirError

State = Literal["ok", "warning", "fault", "unasked"]


@dataclass(frozen=True)
class Finding:
    """One line of the doctor."""

    check: str
    state: State
    text: str
    fix: str = ""
    """What to do; empty where nothing is to be done."""

    def __str__(self) -> str:
        line = f"{self.state:<8} {self.check:<9} {self.text}"
        return f"{line}; {self.fix}" if self.fix else line


def guarded(check: str, look: Callable[[], Finding]) -> Finding:
    """A check whose own failure is a finding: one that cannot look says so, and the others go on."""
    try:
        return look()
    except OacirError as error:
        return Finding(check, "fault", str(error))
    except Exception as error:
        return Finding(check, "fault", f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
