"""Follow a job to its end: its log as it is written, its end as an exit code, and Ctrl-C as a question."""

from __future__ import annotations

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from infra.base.command import Outcome
from infra.base.errors import OacirError, TerminatedError
from infra.base.progress import announce, duration
from infra.ops.jobs.cluster import Cluster, LostError

PATIENCE_S, POLL_S = 600.0, 1.0
SILENCE_S = 300.0
"""A connection that is silent for so long may be dead; it is made anew."""
FINAL = ("SUCCEEDED", "FAILED", "STOPPED")


class JobFailedError(OacirError):
    """The command failed on the cluster; its exit code there is ours."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def follow(cluster: Cluster, job: str, ask: Callable[[str], str] | None = None) -> Outcome:
    """Show a job's log until it ends. Ctrl-C asks what to do with the job; SIGTERM leaves it running.

    Args:
        cluster: where it runs.
        job: its id.
        ask: puts a question and gives the answer; None asks on the terminal, and without one the job is left running.

    Raises:
        JobFailedError: it failed; with its exit code.
        TerminatedError: it was stopped, or this command ended and left it running.
        OacirError: the cluster does not answer any more.
    """
    told: list[int] = []
    try:
        with _terminable(told):
            return ended(_to_its_end(cluster, job), cluster, job)
    except KeyboardInterrupt:
        if told:
            raise TerminatedError(_left(job, cluster), signal.SIGTERM) from None
        if _wants_stop(job, ask or _on_terminal()):
            stop(cluster, job)
            raise TerminatedError(f"stopped job {job}", signal.SIGINT) from None
        raise TerminatedError(_left(job, cluster), signal.SIGINT) from None


def ended(details: Any, cluster: Cluster, job: str) -> Outcome:
    """What a job's end means here.

    Raises:
        JobFailedError: it failed.
        TerminatedError: it was stopped.
    """
    status, code = str(details.status), details.driver_exit_code
    took = f" after {duration(seconds(details))}" if details.start_time else ""
    if status == "SUCCEEDED":
        figures = {"job": job, "status": status, "exit_code": 0, "seconds": seconds(details)}
        return Outcome(f"job {job} succeeded{took}", None, figures)
    if status == "STOPPED":
        raise TerminatedError(f"job {job} was stopped{took}", signal.SIGTERM)
    if code is None:
        raise JobFailedError(f"job {job} failed{took}: {_line(details.message)}", 1)
    how = f"ended by signal {-code}" if code < 0 else f"exit code {code}"
    raise JobFailedError(
        f"job {job} failed{took} with {how}; {log_command(job, cluster)} shows its log",
        128 - code if code < 0 else code,
    )


def stop(cluster: Cluster, job: str, wait_s: float = 330.0) -> Any:
    """Ask a job to end in order, and wait for it; its details then.

    Raises:
        OacirError: it did not end in time.
    """
    cluster.ask(cluster.client.stop_job, job)
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        details = cluster.ask(cluster.client.get_job_info, job)
        if str(details.status) in FINAL:
            return details
        time.sleep(POLL_S / 4)
    raise OacirError(
        f"job {job} was told to stop and has not ended in {duration(wait_s)}; it may be saving: ask again"
    )


def seconds(details: Any) -> float:
    """How long a job has run, or ran."""
    end = details.end_time / 1000 if details.end_time else time.time()
    return round(max(0.0, end - details.start_time / 1000), 1) if details.start_time else 0.0


def log_command(job: str, cluster: Cluster, follow: bool = False) -> str:
    """The command that shows a job's log."""
    address = f" --address {cluster.url}" if cluster.origin == "--address" else ""
    return f"`oacir jobs logs{address} --job {job}{' --follow true' if follow else ''}`"


def _to_its_end(cluster: Cluster, job: str) -> Any:
    """Its details once it has ended; a cluster that is away for a while is waited for."""
    seen = [0]
    lost: float | None = None
    while True:
        # a log that breaks off says nothing of the job: how that is, is asked
        with suppress(LostError):
            asyncio.run(_tail(cluster, job, seen))
        try:
            details = cluster.ask(cluster.client.get_job_info, job)
        except LostError:
            if lost is None:
                lost = time.monotonic()
                announce(f"{cluster.url} does not answer; asking again for {duration(PATIENCE_S)}")
            if time.monotonic() - lost > PATIENCE_S:
                raise
        else:
            lost = None
            if str(details.status) in FINAL:
                return details
        time.sleep(POLL_S)


async def _tail(cluster: Cluster, job: str, seen: list[int]) -> None:
    """Write the log from where it was seen to; Ray tells it from its beginning each time.

    Raises:
        LostError: the log broke off.
    """
    from aiohttp import ClientError

    position = 0
    texts = aiter(cluster.client.tail_job_logs(job))
    while True:
        try:
            text = await asyncio.wait_for(anext(texts), SILENCE_S)
        except (StopAsyncIteration, TimeoutError):
            return
        except (ClientError, OSError, RuntimeError) as error:
            raise LostError(f"{cluster.url}: the log broke off ({_line(error)})") from error
        new = text[max(0, seen[0] - position) :]
        position += len(text)
        if new:
            sys.stderr.write(new)
            sys.stderr.flush()
            seen[0] = position


def _wants_stop(job: str, ask: Callable[[str], str] | None) -> bool:
    if ask is None:
        return False
    try:
        answer = ask(f"\njob {job} runs on. Stop it? [y/N, Enter leaves it running] ")
    except KeyboardInterrupt:
        return False
    return answer.strip().lower() in ("y", "yes")


def _on_terminal() -> Callable[[str], str] | None:
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None

    def ask(question: str) -> str:
        sys.stderr.write(question)
        sys.stderr.flush()
        return sys.stdin.readline()

    return ask


@contextmanager
def _terminable(told: list[int]) -> Iterator[None]:
    """SIGTERM interrupts as Ctrl-C does, and is noted: nobody is asked then."""

    def end(number: int, _: Any) -> None:
        told.append(number)
        raise KeyboardInterrupt  # asyncio swallows any other exception of a signal handler

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _left(job: str, cluster: Cluster) -> str:
    return (
        f"job {job} runs on; {log_command(job, cluster, follow=True)} follows it, `oacir jobs stop` ends it"
    )


def _line(text: object) -> str:
    return " ".join(str(text).split())[:300]
