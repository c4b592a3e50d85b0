"""Who was champion when, and why: an append-only log on the MLflow server that many processes may write.

MLflow moves an alias without asking what it pointed to, so two promotions at once could each believe to have won. A
parameter of a run, however, can be written once only: the server takes one of two different values for the same key and
refuses the other. The log is such parameters, 000001, 000002, …, of one run of each registered model; the alias
follows it.
"""

from __future__ import annotations

import datetime
import getpass
import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

Action = Literal["promote", "rollback", "refuse"]
MOVES = ("promote", "rollback")


def user() -> str:
    """Who runs this, as far as the system knows."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):
        return "unknown"


@dataclass(frozen=True)
class Entry:
    """A decision.

    Attributes:
        number: from 1 without a gap.
        action: promote, rollback, or refuse (a promotion that a gate stopped).
        version: that it was about.
        champion: afterwards; None where there is none.
        before: champion before.
        time: ISO, UTC.
        by: who ran the command.
        why: in a line.
        token: tells equal decisions of two processes apart.
    """

    number: int
    action: Action
    version: str
    champion: str | None
    before: str | None
    why: str
    time: str = field(
        default_factory=lambda: datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    )
    by: str = field(default_factory=user)
    token: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def key(self) -> str:
        """Of the parameter that holds it."""
        return f"{self.number:06d}"


def parse(params: Mapping[str, str]) -> list[Entry]:
    """The log from the parameters of its run, in order."""
    found = [
        Entry(**{**json.loads(text), "number": int(key)}) for key, text in params.items() if key.isdigit()
    ]
    return sorted(found, key=lambda entry: entry.number)


def dump(entry: Entry) -> str:
    """The value of its parameter."""
    data = asdict(entry)
    del data["number"]
    data["why"] = data["why"][:3000]  # a parameter holds 6,000 characters
    return json.dumps(data, ensure_ascii=False)


def champion(log: Sequence[Entry]) -> str | None:
    """The version that is champion after all of it."""
    return log[-1].champion if log else None


def stack(log: Sequence[Entry]) -> list[str]:
    """Champions that a rollback leads through, the present one last: a promotion adds one, a rollback takes it away."""
    found: list[str] = []
    for entry in log:
        if entry.action == "promote":
            found.append(entry.version)
        elif entry.action == "rollback":
            while found and found[-1] != entry.version:
                found.pop()
    return found


def following(log: Sequence[Entry], action: Action, version: str, why: str) -> Entry:
    """The next entry of a log."""
    before = champion(log)
    after = version if action in MOVES else before
    return Entry(len(log) + 1, action, version, after, before, why)


def table(log: Sequence[Entry]) -> list[list[Any]]:
    """Rows for people, with a head."""
    rows: list[list[Any]] = [["", "time", "by", "decision", "version", "champion", "why"]]
    for e in log:
        was = (
            f"{e.before or 'none'} → {e.champion or 'none'}"
            if e.before != e.champion
            else e.champion or "none"
        )
        rows.append([str(e.number), e.time, e.by, e.action, e.version, was, e.why])
    return rows
