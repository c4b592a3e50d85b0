"""What may be told of a run, each thing once: the records of its spool, also over kills and by several commands."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from infra.base.artifacts import file_record, input_record
from infra.base.errors import OacirError
from infra.base.spool import Record, Spool, flattened

log = logging.getLogger(__name__)
ONCE = ("text", "file", "input")
"""Records of which the same is told once."""


class Teller:
    """Puts records of a run into its spool, unless they are there.

    Args:
        spool: of the run; one that holds records goes on.
    """

    def __init__(self, spool: Spool) -> None:
        self.spool = spool
        self._known = {(r["group"], r["step"]) for r in spool.records if r["kind"] == "metrics"}
        self._kinds = {r["kind"] for r in spool.records}
        self._told = {_key(r) for r in spool.records if r["kind"] in ONCE}
        self._tags = {n: v for r in spool.records if r["kind"] == "tags" for n, v in r["values"].items()}

    def metrics(self, group: str, step: int, values: Mapping[str, float], time_s: float) -> None:
        """Figures of a step; told once, a step's later figures of the same group are left aside."""
        if (group, step) not in self._known:
            self._known.add((group, step))
            found = {f"{group}/{name}": value for name, value in values.items()}
            self.tell({"kind": "metrics", "group": group, "step": step, "time_s": time_s, "values": found})

    def params(self, tree: Mapping[str, Any]) -> None:
        """The settings; those of the run's first start stay, since MLflow's cannot be changed."""
        if "params" not in self._kinds:
            self._kinds.add("params")
            values = {name: _text(value) for name, value in flattened(tree).items()}
            self.tell({"kind": "params", "values": values})

    def tags(self, values: Mapping[str, str]) -> None:
        """What describes the run; a later value of a tag replaces the earlier one."""
        changed = {name: value for name, value in values.items() if self._tags.get(name) != value}
        if changed:
            self._tags |= changed
            self.tell({"kind": "tags", "values": changed})

    def text(self, path: str, content: str) -> None:
        """A small file among the run's artifacts."""
        self._tell_once({"kind": "text", "path": path, "content": content})

    def file(self, path: str, url: str, sha256: str) -> None:
        """A file of storage among the run's artifacts. It has to stay where and as it is until it is sent."""
        self._tell_once(file_record(self.spool.url, path, url, sha256))

    def input(
        self,
        name: str,
        url: str,
        content_hash: str,
        context: str,
        profile: Mapping[str, Any] | None = None,
    ) -> None:
        """Data that the run is made of (`artifacts.input_record`)."""
        self._tell_once(input_record(name, url, content_hash, context, profile))

    def status(self, status: str, time_s: float) -> None:
        """How the run stands: RUNNING, FINISHED, FAILED or KILLED; and since when, in seconds since the epoch."""
        self.tell({"kind": "status", "status": status, "time_s": time_s})

    def tell(self, *records: Record) -> None:
        """Spool records, whatever they are."""
        try:
            self.spool.append(records)
        except OacirError as error:  # a training does not end because it cannot be watched
            log.warning("not spooled yet: %s", error)

    def _tell_once(self, record: Record) -> None:
        if _key(record) not in self._told:
            self._told.add(_key(record))
            self.tell(record)


def _key(record: Record) -> str:
    return json.dumps(record, sort_keys=True)


def _text(value: Any) -> str:
    return "null" if value is None else str(value)
