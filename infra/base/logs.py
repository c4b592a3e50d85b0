"""The log of this process: lines for people, or with OACIR_LOG=json one JSON object a line, with what is being done.

No line holds a secret: passwords in URLs and the values of variables that are named like one are taken out of every
line, whoever wrote it.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from infra.base.errors import OacirError

VARIABLE = "OACIR_LOG"
PLAIN = "%(asctime)s %(levelname)s %(name)s %(message)s"
OURS = ("infra", "pipelines", "training", "tuning")
SECRET_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD|PASSWD|CREDENTIAL", re.IGNORECASE)
"""What names of variables that hold secrets have in them."""
NO_SECRET = re.compile(r"_(FILE|PATH|MODE)$|^TOKENIZERS_", re.IGNORECASE)
"""Of these the ones that hold a place or a setting."""
SHORTEST = 6
"""Characters of a secret; taking shorter ones out would take words apart."""
_USER = re.compile(r"(\w://)[^\s/@'\"]+@")
_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}
_about: dict[str, Any] = {}


def structured() -> bool:
    """Whether lines are JSON.

    Raises:
        OacirError: the variable says neither.
    """
    said = os.environ.get(VARIABLE) or "plain"
    if said not in ("plain", "json"):
        raise OacirError(f"{VARIABLE}={said}: allowed are plain and json")
    return said == "json"


def start(debug: bool = False) -> None:
    """Let this process log to its error stream; where something logs already, nothing changes."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if structured() else PlainLines(PLAIN))
    logging.basicConfig(level=logging.DEBUG if debug else logging.WARNING, handlers=[handler])
    if structured() and not debug:
        for name in OURS:
            logging.getLogger(name).setLevel(logging.INFO)


def start_worker(**ids: Any) -> None:
    """The same in a worker of Ray, whose lines are in Ray's files: where JSON is asked for, with these ids."""
    if structured():
        start()
        now(**ids)


def said(level: int, text: str, **fields: Any) -> bool:
    """Say a line of the terminal as a record of the log, where JSON is asked for; else it is the caller's to say."""
    if os.environ.get(VARIABLE) != "json":
        return False
    start()
    logging.getLogger(__name__).log(level, text, extra=fields)
    return True


def now(**ids: Any) -> None:
    """What this process does from here on: ids that every later line has; None takes one away.

    They belong to the process and not to a thread, since the threads of a command (a spool, a trial) work for it.
    """
    for name, value in ids.items():
        if value is None:
            _about.pop(name, None)
        else:
            _about[name] = value


@contextmanager
def about(**ids: Any) -> Iterator[None]:
    """The same within a block."""
    before = dict(_about)
    now(**ids)
    try:
        yield
    finally:
        _about.clear()
        _about.update(before)


def redacted(text: str) -> str:
    """A text without passwords of URLs and without the values of this environment's secrets."""
    for name, value in os.environ.items():
        if len(value) >= SHORTEST and SECRET_NAME.search(name) and not NO_SECRET.search(name):
            text = text.replace(value, f"[{name}]")
    return _USER.sub(r"\1", text)


class PlainLines(logging.Formatter):
    """Lines for people."""

    def format(self, record: logging.LogRecord) -> str:
        """One record, with its trace if it has one."""
        return redacted(super().format(record))


class JsonLines(logging.Formatter):
    """One JSON object a line: time, level, logger, message, the ids of what is done, and the call's extra."""

    def format(self, record: logging.LogRecord) -> str:
        """One record."""
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **_about,
            **{name: value for name, value in vars(record).items() if name not in _STANDARD},
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["trace"] = "".join(traceback.format_exception(*record.exc_info))
        return json.dumps({name: _clean(value) for name, value in line.items()}, ensure_ascii=False)


def _clean(value: Any) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    return redacted(str(value))
