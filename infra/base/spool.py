"""A spool: what a run tells of itself, kept beside it before it is sent anywhere. Local or on S3, JSON lines.

Records only ever come after those that are there. Each file holds the same number of them and is written whole, so that
a kill leaves no half line, and that it works where nothing can be appended to.
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from infra.base import storage
from infra.base.errors import OacirError

RECORDS_PER_FILE = 200
FOLDER = "tracking"
SENT = "sent.json"
Record = dict[str, Any]
"""`kind` (run, metrics, params, tags, text, file, input, status) and what belongs to it."""


class Spool:
    """The records of one run, in the order in which they were made.

    Args:
        url: its folder; what lies there already is read.

    Raises:
        OacirError: a file of it is damaged.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.records: list[Record] = []
        self._lock = threading.Lock()
        self._written = 0
        names = [f.path for f in storage.files_in(url)]
        for name in sorted(n for n in names if n.startswith("records-")):
            self.records += _parse(storage.join(url, name))
        self._written = len(self.records)
        self._sent: dict[str, Any] = {}
        if SENT in names:
            self._sent = json.loads(storage.read_bytes(storage.join(url, SENT)))

    def begin(self, experiment: str, name: str, parent: str | None = None) -> None:
        """Say whose records these are, and under which spool's run; without effect where that was said before."""
        if not self.records:
            began = {"id": uuid.uuid4().hex, "experiment": experiment, "name": name, "time_s": time.time()}
            self.append([{"kind": "run", **began} | ({"parent": parent} if parent else {})])

    @property
    def run(self) -> Record:
        """The first record: id of the spool, experiment and name, and the id of the spool it stands under, if any.

        Raises:
            OacirError: nothing was spooled.
        """
        if not self.records:
            raise OacirError(f"{self.url}: holds no records of a run; train with tracking.mlflow_uri set")
        return self.records[0]

    def append(self, records: Sequence[Record]) -> None:
        """Keep records. Those that could not be written are with the next ones.

        Raises:
            OacirError: the folder cannot be written.
        """
        with self._lock:
            self.records += records
            while self._written < len(self.records):
                number = self._written // RECORDS_PER_FILE
                part = self.records[number * RECORDS_PER_FILE : (number + 1) * RECORDS_PER_FILE]
                lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in part)
                storage.write_bytes(storage.join(self.url, f"records-{number + 1:05d}.jsonl"), lines.encode())
                self._written = number * RECORDS_PER_FILE + len(part)

    def sent(self, place: str) -> tuple[str | None, int]:
        """Id of the run at a tracking server, and how many of the records it has."""
        known = self._sent.get(place, {})
        return known.get("run_id"), int(known.get("records", 0))

    def lost(self, place: str) -> list[str]:
        """Files that could not be sent and never will be, a line each."""
        return list(self._sent.get(place, {}).get("lost", []))

    @property
    def ended(self) -> str | None:
        """How the run ended, as far as it was told; None while it runs."""
        told = [r["status"] for r in self.records if r["kind"] == "status"]
        return told[-1] if told and told[-1] != "RUNNING" else None

    def forget_sent(self, place: str) -> None:
        """Take nothing for sent to a tracking server that no longer has it."""
        if self._sent.pop(place, None) is not None:
            self._write_sent()

    def note_sent(self, place: str, run_id: str, records: int, lost: Sequence[str] = ()) -> None:
        """Remember that, and what was lost on the way."""
        known = [*self.lost(place), *lost]
        self._sent[place] = {"run_id": run_id, "records": records, **({"lost": known} if known else {})}
        self._write_sent()

    def _write_sent(self) -> None:
        text = json.dumps(self._sent, indent=1, sort_keys=True)
        storage.write_bytes(storage.join(self.url, SENT), text.encode())


def flattened(tree: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """A tree of settings as dotted names; lists stay values."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{before}.{key}" if before else str(key)
        if isinstance(value, Mapping):
            found |= flattened(value, name)
        else:
            found[name] = value
    return found


def _parse(url: str) -> list[Record]:
    try:
        return [json.loads(line) for line in storage.read_bytes(url).decode().splitlines()]
    except ValueError as error:
        raise OacirError(
            f"{url}: damaged spool ({error}); delete its folder, what it holds is in history.parquet too"
        ) from error
