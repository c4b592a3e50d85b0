"""A worker that makes no step any more says where it is and ends itself, also where no Python runs any more."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from training import liveness as liveness_module
from training.liveness import CODE, Liveness

LIMIT_S = 0.3


class Ended(threading.Event):
    """What a process that ends itself leaves."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.code = 0

    def end(self, code: int) -> None:
        self.code = code
        self.set()


def test_silence_ends_the_worker_and_says_where_it_was() -> None:
    ended = Ended()
    life = Liveness(LIMIT_S, ended.lines.append, ended.end)
    assert ended.wait(20)  # here it hangs
    life.close()
    assert ended.code == CODE
    (line,) = ended.lines
    assert line.startswith(f"no step for {LIMIT_S:g} s, last seen in ")
    assert "wait (" in line


def test_signs_of_life_keep_it() -> None:
    ended = Ended()
    life = Liveness(LIMIT_S, ended.lines.append, ended.end)
    began = time.monotonic()
    while time.monotonic() - began < 4 * LIMIT_S:
        life.beat()
        ended.wait(LIMIT_S / 20)
    assert not ended.is_set()
    assert ended.wait(20)
    life.close()


def test_who_cannot_be_told_does_not_keep_it_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(liveness_module, "TOLD_WITHIN_S", 0.1)
    ended, never = Ended(), threading.Event()
    life = Liveness(LIMIT_S, lambda line: bool(never.wait()) or None, ended.end)  # type: ignore[arg-type, return-value]
    assert ended.wait(20)
    life.close()
    never.set()


def test_without_a_limit_nothing_is_watched() -> None:
    before = threading.active_count()
    life = Liveness(None, print)
    life.beat()
    assert threading.active_count() == before
    life.close()


def test_c_code_that_holds_the_interpreter_is_ended_too() -> None:
    code = (
        "import ctypes; from training import liveness; liveness.LATER_S = 0.5;"
        "life = liveness.Liveness(0.5, print); ctypes.PyDLL(None).pause()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    assert "Timeout" in done.stderr
