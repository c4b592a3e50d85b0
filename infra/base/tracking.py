"""MLflow, from the one process that owns a run: everything is spooled first and sent by a thread, so that a server that
is away costs no record and no time."""

from __future__ import annotations

import logging
import os
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit, urlunsplit

from infra.base.artifacts import log_input, upload
from infra.base.errors import OacirError
from infra.base.spool import Record, Spool
from infra.base.teller import Teller

log = logging.getLogger(__name__)
PATIENCE_S = 60.0
"""How long a server that is away is waited for when a run ends."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 15.0
METRICS_PER_BATCH, ENTRIES_PER_BATCH = 1000, 100
KEY_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 5000
"""Limits of MLflow's servers."""
SPOOL_TAG, PARENT_TAG = "oacir.spool", "mlflow.parentRunId"
ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "GIT_PYTHON_REFRESH": "quiet",
}
"""Of every process that speaks to MLflow. MLflow alone would try a server that is away for four minutes; without any
retry it fails where the server closes an idle connection just as it is used; a server that hands gigabytes on to S3
answers late. Nothing is told to others than the server. A user's own setting wins."""


def settle_environment() -> None:
    """Set what of ENVIRONMENT the user has not set; before MLflow is first imported."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def tracking_uri(named: str | None) -> str | None:
    """Where to track: what a recipe names, else the variable MLFLOW_TRACKING_URI, else nowhere."""
    return named or os.environ.get("MLFLOW_TRACKING_URI") or None


def track_at(uri: str) -> None:
    """Let this process track there where a recipe names no place, as its driver does: variables of the driver are not
    those of a process on another machine, and a URI that holds a password belongs into no recipe."""
    os.environ["MLFLOW_TRACKING_URI"] = uri


def shown(uri: str) -> str:
    """A URI without user and password."""
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if "@" in parts.netloc else uri


def metric_name(name: str) -> str:
    """A name that MLflow takes: R_ID@1 becomes R_ID_at_1, what else it knows not becomes _."""
    return re.sub(r"[^\w\-. /:]", "_", name.replace("@", "_at_"))[:KEY_LENGTH]


class Tracker(Teller):
    """A run's way to MLflow: what is told of it is spooled at once and sent meanwhile.

    Args:
        spool: of the run; one that holds records goes on, in the same run of MLflow.
        uri: of the tracking server or database.
        experiment, name: of the run in MLflow.
        parent: id of the spool whose run this one stands under.
    """

    def __init__(self, spool: Spool, uri: str, experiment: str, name: str, parent: str | None = None) -> None:
        spool.begin(experiment, name, parent)
        super().__init__(spool)
        self.uri = uri
        self._wake, self._closing = threading.Event(), threading.Event()
        self._patience = PATIENCE_S
        self.error: str | None = None
        """Why the last try to send failed; None after one that did not."""
        self.status("RUNNING", time.time())
        self._thread = threading.Thread(target=self._work, name="mlflow", daemon=True)
        self._thread.start()

    def tell(self, *records: Record) -> None:
        """Spool records and have them sent."""
        super().tell(*records)
        self._wake.set()

    def close(self, status: str, patience_s: float = PATIENCE_S) -> str | None:
        """End the run (FINISHED, FAILED, KILLED); waits for a server that is away until it was so for as long.

        Returns:
            One line where something could not be sent: what, why, and where it lies.
        """
        self.status(status, time.time())
        self._patience = patience_s
        self._closing.set()
        self._wake.set()
        self._thread.join()
        unsent, place = self.unsent, shown(self.uri)
        if unsent:
            run = self.spool.url.rpartition("/")[0]
            return (
                f"{unsent:,} of {len(self.spool.records):,} records are not in MLflow at {place} ({self.error}); they"
                f" lie in {self.spool.url}, and `oacir mlflow sync --runs {run}` sends them"
            )
        lost = self.spool.lost(place)
        return f"{len(lost)} files are not in MLflow at {place}: {'; '.join(lost)}" if lost else None

    @property
    def unsent(self) -> int:
        """Records that the server does not have."""
        return len(self.spool.records) - self.spool.sent(shown(self.uri))[1]

    @property
    def run_id(self) -> str | None:
        """Of the run in MLflow, as soon as there is one."""
        return self.spool.sent(shown(self.uri))[0]

    def _work(self) -> None:
        sender, away_since, pause = Sender(self.spool, self.uri), None, PAUSE_S
        while True:
            self._wake.clear()
            try:
                while sender.batch():
                    away_since, pause, self.error = None, PAUSE_S, None
            except Exception as error:  # whatever a server, a proxy or a database says
                self.error = " ".join(f"{type(error).__name__}: {error}".split())[:200]
                if away_since is None:
                    away_since = time.monotonic()
                    log.info("MLflow at %s does not take records: %s", shown(self.uri), self.error)
                pause = min(2 * pause, LONGEST_PAUSE_S)
            if self._closing.is_set():
                if away_since is None and not self.unsent:
                    return
                if away_since is not None and time.monotonic() - away_since > self._patience:
                    return
                time.sleep(min(pause, 1.0))
            elif away_since is not None:
                self._closing.wait(pause)
            else:
                self._wake.wait()


def forget_if_gone(spool: Spool, uri: str) -> None:
    """Take nothing for sent where the server no longer has the run, also where nothing is left to send.

    Raises:
        OacirError: the server does not answer.
    """
    with _one_line(spool, uri):
        Sender(spool, uri).look()


def send(spool: Spool, uri: str) -> int:
    """Send what a server does not have yet of a spool, into the run that it has of it or into a new one.

    Returns:
        How many records that were; 0 where it had all.

    Raises:
        OacirError: the server does not take them; what it took is remembered.
    """
    count = 0
    with _one_line(spool, uri):
        sender = Sender(spool, uri)
        while sent := sender.batch():
            count += sent
    return count


@contextmanager
def _one_line(spool: Spool, uri: str) -> Iterator[None]:
    """What a server or the way to it complains of."""
    try:
        yield
    except OacirError:
        raise
    except Exception as error:
        why = " ".join(str(error).split())[:200]
        raise OacirError(
            f"MLflow at {shown(uri)}: {why}; the records lie in {spool.url}, try again"
        ) from error


class Sender:
    """Brings a spool to a server, batch by batch. A batch whose answer was lost is sent again: MLflow keeps a metric of
    the same step, time and value once."""

    def __init__(self, spool: Spool, uri: str) -> None:
        self.spool, self.uri, self.place = spool, uri, shown(uri)
        self._client: Any = None
        self._lost: list[str] = []
        self._looked = False

    def batch(self) -> int:
        """Send some of what is not sent; how many records, 0 where nothing is left."""
        if self.spool.sent(self.place)[1] < len(self.spool.records):
            self.look()
        run_id, start = self.spool.sent(self.place)
        waiting = self.spool.records[start:]
        if not waiting:
            return 0
        run_id = run_id or self._run_id()
        kind = waiting[0]["kind"]
        if kind == "metrics":
            count = self._metrics(run_id, waiting)
        else:
            self._other(run_id, waiting[0])
            count = 1
        self.spool.note_sent(self.place, run_id, start + count, self._lost)
        self._lost = []
        return count

    def look(self) -> None:
        """See once whether the server still has the run that was sent to it: another database may stand at the same
        address by now, and gets all of it."""
        run_id = self.spool.sent(self.place)[0]
        if self._looked or run_id is None:
            return
        client = self.client
        from mlflow.exceptions import MlflowException

        try:
            client.get_run(run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            log.warning("MLflow at %s no longer has run %s: it is sent as a new one", self.place, run_id)
            self.spool.forget_sent(self.place)
        self._looked = True

    @property
    def client(self) -> Any:
        """Of MLflow, whose import costs 1.3 s and 100 MB: made where something is to be sent."""
        if self._client is None:
            settle_environment()
            from mlflow.tracking import MlflowClient

            self._client = MlflowClient(self.uri)
        return self._client

    def _run_id(self) -> str:
        """The run that holds this spool: made here, also by an earlier try whose answer was lost."""
        run = self.spool.run
        found = self.client.get_experiment_by_name(run["experiment"])
        experiment = found.experiment_id if found else self.client.create_experiment(run["experiment"])
        if known := self._found(experiment, run["id"]):
            return known
        tags = {SPOOL_TAG: run["id"]}
        if parent := run.get("parent"):
            above = self._found(experiment, parent)
            if above is None:  # it is on its way, or its spool has to be sent first
                raise OacirError(f"the run above this one (spool {parent}) is not there yet")
            tags[PARENT_TAG] = above
        began = run.get("time_s")
        made = self.client.create_run(
            experiment,
            start_time=None if began is None else round(1000 * began),
            run_name=run["name"],
            tags=tags,
        )
        return str(made.info.run_id)

    def _found(self, experiment: str, spool_id: str) -> str | None:
        runs = self.client.search_runs([experiment], f"tags.`{SPOOL_TAG}` = '{spool_id}'", max_results=1)
        return str(runs[0].info.run_id) if runs else None

    def _metrics(self, run_id: str, waiting: Sequence[Record]) -> int:
        """As many records of metrics as fit into one request; how many."""
        from mlflow.entities import Metric

        metrics: list[Any] = []
        count = 0
        for record in waiting:
            if record["kind"] != "metrics":
                break
            values = record["values"]
            if metrics and len(metrics) + len(values) > METRICS_PER_BATCH:
                break
            when = round(1000 * record["time_s"])
            metrics += [Metric(metric_name(name), v, when, record["step"]) for name, v in values.items()]
            count += 1
        self.client.log_batch(run_id, metrics=metrics)
        return count

    def _other(self, run_id: str, record: Record) -> None:
        from mlflow.entities import Param, RunTag

        kind, values = record["kind"], list(record.get("values", {}).items())
        for i in range(0, len(values), ENTRIES_PER_BATCH):
            part = values[i : i + ENTRIES_PER_BATCH]
            if kind == "params":
                params = [Param(metric_name(n), _within(v, PARAM_LENGTH)) for n, v in part]
                self.client.log_batch(run_id, params=params)
            else:
                self.client.log_batch(run_id, tags=[RunTag(n, _within(v, TAG_LENGTH)) for n, v in part])
        if kind == "text":
            self.client.log_text(run_id, record["content"], record["path"])
        elif kind == "input":
            log_input(self.client, run_id, record)
        elif kind == "file":
            lost = upload(self.client, run_id, self.spool.url, record)
            if lost is not None:
                log.warning("not sent to MLflow: %s", lost)
                self._lost = [lost]
        elif kind == "status" and record["status"] == "RUNNING":
            self.client.update_run(run_id, status="RUNNING")
        elif kind == "status":
            ended = record.get("time_s")
            self.client.set_terminated(
                run_id, record["status"], None if ended is None else round(1000 * ended)
            )


def _within(text: str, longest: int) -> str:
    return text if len(text) <= longest else text[: longest - 1] + "…"
