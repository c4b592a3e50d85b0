"""One command at a time in a folder: who works there says so, and again and again that it still does."""

from __future__ import annotations

import datetime
import re
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pydantic

from infra.base import storage
from infra.base.config import Config
from infra.base.errors import OacirError

RENEWED_EVERY_S = 10.0
EXPIRES_S = 40.0
"""A hold of another machine that was not renewed for so long is that of a lost one."""
LOOK_S = 0.5
NAME = re.compile(r"hold-(\d{6})\.json")


class Holder(Config):
    """Who holds a folder.

    Attributes:
        what: the work, as in "training".
        machine: with its boot and process namespace, within which `pid` and `began` name one process.
        host: its name, for people.
        pid: of the process.
        began: of the process, in seconds since the epoch.
        since: when it took the folder, UTC.
        token: of this hold alone.
        renewed: how often.
        released: whether others may come.
    """

    what: str
    machine: str
    host: str
    pid: int
    began: float
    since: str
    token: str
    renewed: int = 0
    released: bool = False

    @property
    def gone(self) -> bool | None:
        """Whether it was released or its process has ended; None where this process cannot know."""
        if self.released:
            return True
        if self.machine != _machine():
            return None
        try:
            process = psutil.Process(self.pid)
            return process.create_time() != self.began or process.status() == psutil.STATUS_ZOMBIE
        except psutil.NoSuchProcess:
            return True


class Hold:
    """A folder that is held; use `held`."""

    def __init__(self, url: str, number: int, holder: Holder) -> None:
        self.url, self.number, self.holder = url, number, holder
        self.taken_by: Holder | None = None
        """Who took it from us: it was not renewed in time."""
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._renew, name="hold", daemon=True)
        self._thread.start()

    def require(self) -> None:
        """Raise `OacirError` if another command has taken the folder meanwhile."""
        if self.taken_by is not None:
            raise OacirError(
                f"{self.url}: this command was not heard of for {EXPIRES_S:.0f} s, and another one has taken over"
                f" ({_named(self.taken_by)}); nothing is to be done here"
            )

    def release(self, *, done: bool) -> None:
        """Let others in; the files go where all is done. Before, the newest of them stays: to number anew would let two
        in that looked at different moments."""
        self._over.set()
        self._thread.join()
        if self.taken_by is not None:
            return
        if done:
            for number in sorted(_numbers(self.url)):
                if number <= self.number:  # a higher one is that of a command that took over unseen
                    storage.remove(_place(self.url, number))
        else:
            self._write(released=True)

    def _renew(self) -> None:
        while not self._over.wait(RENEWED_EVERY_S):
            # storage that is away is told of by those who need it
            with suppress(OSError, OacirError):
                number, newest = _newest(self.url)
                if number > self.number and newest is not None:
                    self.taken_by = newest
                    return
                self._write(renewed=self.holder.renewed + 1)

    def _write(self, **changed: object) -> None:
        self.holder = self.holder.model_copy(update=changed)
        storage.write_bytes(_place(self.url, self.number), self.holder.model_dump_json().encode())


@contextmanager
def held(url: str, what: str) -> Iterator[Hold]:
    """Hold a folder of the storage, local or S3, while something is done that no other process may do there too.

    A hold ends with its process: what a killed command of this machine left is taken over at once, that of another
    machine when it was not renewed for `EXPIRES_S` seconds, for which this waits.

    Args:
        url: of the folder.
        what: is done, as in "training". If it ends well the folder must say so by itself: nothing of the hold is left.

    Raises:
        OacirError: another process holds it, named with its machine.
    """
    hold = _take(storage.absolute(url), what)
    try:
        yield hold
    except BaseException:
        with suppress(OSError, OacirError):  # what happened first is what is told
            hold.release(done=False)
        raise
    hold.release(done=True)


def _take(url: str, what: str) -> Hold:
    me = psutil.Process()
    seen, since = (-1, ""), time.monotonic()
    while True:
        number, newest = _newest(url)
        if newest is not None and newest.gone is not True:
            if newest.gone is False:
                raise _refused(url, newest)
            if seen[0] == number and seen[1] != newest.model_dump_json():
                raise _refused(url, newest)
            if seen[0] != number:
                seen, since = (number, newest.model_dump_json()), time.monotonic()
            if time.monotonic() - since < EXPIRES_S:
                time.sleep(LOOK_S)
                continue
        holder = Holder(
            what=what, machine=_machine(), host=socket.gethostname(), pid=me.pid, began=me.create_time(),
            since=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"), token=uuid.uuid4().hex,
        )  # fmt: skip
        # of all who see the old one gone, one creates the next
        if storage.write_new(_place(url, number + 1), holder.model_dump_json().encode()):
            for old in _numbers(url):
                # the last one stays, so that whoever lists the folder meanwhile sees at least it
                if old < number:
                    storage.remove(_place(url, old))
            return Hold(url, number + 1, holder)


def _newest(url: str) -> tuple[int, Holder | None]:
    """Number and holder of the newest hold; (0, None) without any."""
    for number in sorted(_numbers(url), reverse=True):
        place = _place(url, number)
        try:
            return number, Holder.model_validate_json(storage.read_bytes(place))
        except pydantic.ValidationError as error:
            raise OacirError(
                f"{place}: damaged; delete it if no other command works there, and run the command again"
            ) from error
        except OacirError as error:
            if not isinstance(error.__cause__, FileNotFoundError):  # else it was released meanwhile
                raise
    return 0, None


def _numbers(url: str) -> list[int]:
    return [int(found[1]) for file in storage.files_in(url) if (found := NAME.fullmatch(file.path))]


def _place(url: str, number: int) -> str:
    return storage.join(url, f"hold-{number:06d}.json")


def _refused(url: str, holder: Holder) -> OacirError:
    return OacirError(
        f"{url}: another command works here ({_named(holder)}); wait for its end, or end it: the same command"
        " goes on then"
    )


def _named(holder: Holder) -> str:
    return f"{holder.what}, process {holder.pid} on {holder.host}, since {holder.since}"


def _machine() -> str:
    """Where process ids mean the same."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(str(Path("/proc/self/ns/pid").readlink()))
    return " ".join(parts)
