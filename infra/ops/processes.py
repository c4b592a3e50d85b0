"""Servers as processes of this machine: started with a log, waited for, and ended with everything they started."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import psutil

STOP_S, POLL_S = 20.0, 0.05


@contextmanager
def serving(
    command: Sequence[str], log: Path, variables: Mapping[str, str]
) -> Iterator[subprocess.Popen[bytes]]:
    """A server in a session of its own, so that it ends as a whole and hears no Ctrl-C but ours."""
    with log.open("wb") as output:
        server = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=dict(variables), start_new_session=True
        )
        try:
            yield server
        finally:
            end(server.pid)
            server.wait()


def end(pid: int, seconds: float = STOP_S) -> None:
    """Tell a process to end with its group, wait, and kill what is left of all that it started."""
    with suppress(psutil.NoSuchProcess):
        whole = [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGTERM)
        # the others end with the first; some of them (Ray's) have groups of their own
        _wait(whole[:1], seconds)
        for process in whole:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        _wait(whole, seconds)
    with suppress(ProcessLookupError):
        os.killpg(pid, signal.SIGKILL)


def alive(process: psutil.Process) -> bool:
    """Whether it still runs; one that has ended and was not asked for its code does not."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _wait(processes: Sequence[psutil.Process], seconds: float) -> None:
    """Until they have ended. psutil's own wait would take the exit code that whoever started them asks for."""
    until = time.monotonic() + seconds
    while any(map(alive, processes)) and time.monotonic() < until:
        time.sleep(POLL_S)


@contextmanager
def told_to_end() -> Iterator[list[int]]:
    """A list that is empty until this process is told to end (SIGINT, SIGTERM)."""
    told: list[int] = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, lambda got, _: told.append(got)) for number in signals]
    try:
        yield told
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)


def tail(log: Path) -> str:
    """Where a log lies and how it ends, in one line."""
    lines = log.read_text(errors="replace").split("\n")
    return f"its log {log} ends with: " + " ".join(" ".join(lines[-8:]).split())[-400:]


def free_ports(count: int) -> list[int]:
    """So many ports of loopback that nobody listens on."""
    with ExitStack() as held:
        probes = [held.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in probes]
