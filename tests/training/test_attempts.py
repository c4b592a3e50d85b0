"""The driver while workers train: when it starts them again, what it asks of them, how it takes a signal."""

from __future__ import annotations

import copy
import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest

from infra.base.errors import TerminatedError
from infra.base.progress import Progress
from training import attempts
from training.attempts import Attendants, Losses, Watch
from training.config import ScalingSection
from training.job import Board, Wish
from training.logged import Log
from training.stopping import Signals


def test_losses_are_counted_anew_once_there_is_a_newer_checkpoint() -> None:
    losses = Losses(most=2, step=10)
    assert [losses.bearable(step) for step in (10, 10, 12, 12, 15, 15, 15)] == [
        True, True, True, True, True, True, False,
    ]  # fmt: skip
    assert not Losses(most=0, step=10).bearable(12)


@pytest.mark.parametrize(
    ("fewest", "rooms", "count"),
    [(None, [8], 4), (None, [1], 4), (1, [8], 4), (1, [3], 3), (2, [0, 1, 2], 2)],
)
def test_training_begins_with_the_workers_there_is_room_for(
    fewest: int | None, rooms: list[int], count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempts, "POLL_S", 0.0)
    monkeypatch.setattr(attempts, "room_now", lambda scaling: rooms.pop(0))
    scaling = ScalingSection(workers=4, min_workers=fewest)
    assert attempts._room(scaling, Signals(), "there") == count
    assert not rooms or fewest is None


@pytest.mark.parametrize(
    ("fewest", "grows", "asked"),
    [(None, False, 3), (None, True, 3), (1, False, 3), (1, True, (3, 4)), (3, True, (3, 4))],
)
def test_a_cluster_that_can_grow_is_asked_for_the_most(
    fewest: int | None, grows: bool, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray._private.state import state

    monkeypatch.setattr(
        state, "get_max_resources_from_cluster_config", lambda: {"CPU": 99} if grows else None
    )
    assert attempts.asked(ScalingSection(workers=4, min_workers=fewest), 3) == asked


class Watching(Watch):
    """A watch over a board of this process."""

    def __init__(self, scaling: ScalingSection, nodes: list[str]) -> None:
        self.asked: list[Wish] = []
        real = Board()
        real.start(3, nodes)
        ask = SimpleNamespace(remote=lambda wish, why: self.asked.append(wish))
        hold: Any = SimpleNamespace(taken_by=None)
        board = SimpleNamespace(ask=ask)
        super().__init__(board, scaling, Progress("train", 9, "steps"), Log(), Attendants(hold, None))
        self.working = real.read(0, 0).working


@pytest.mark.parametrize(
    ("fewest", "rooms", "asked"),
    [
        (1, [2, 2, 2, 2], []),
        (1, [4, 4], [Wish.RESIZE]),
        (1, [3, 3], [Wish.RESIZE]),
        (1, [4, 2, 4, 2], []),  # there for a look only
        (None, [8, 8, 8], []),  # exactly two
        (2, [1, 1, 1], []),
    ],
)
def test_workers_are_asked_to_leave_where_there_is_room_for_more(
    fewest: int | None, rooms: list[int], asked: list[Wish], monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 2 if fewest is None else 4
    watch = Watching(ScalingSection(workers=most, min_workers=fewest, look_every_s=1e-9), ["x", "y"])
    monkeypatch.setattr(attempts, "leaving", frozenset)
    monkeypatch.setattr(attempts, "room_now", lambda scaling: rooms.pop(0))
    while rooms:
        watch.working = copy.deepcopy(watch.working)  # as every answer of the board
        watch._look_around()
    assert watch.asked == asked


@pytest.mark.parametrize(("gone", "asked"), [({"y"}, [Wish.MOVE]), ({"z"}, []), (set(), [])])
def test_workers_are_asked_to_leave_a_machine_that_is_taken_away(
    gone: set[str], asked: list[Wish], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = Watching(ScalingSection(), ["x", "y"])
    monkeypatch.setattr(attempts, "leaving", lambda: frozenset(gone))
    watch._look_around()
    assert watch.asked == asked
    watch.asked.clear()
    watch.working = None  # they are about to start: Ray places none there
    watch._look_around()
    assert watch.asked == []


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_the_first_signal_is_noted_and_the_exit_code_is_the_shells(number: signal.Signals, code: int) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        assert signals.received is None
        os.kill(os.getpid(), number)
        assert (signals.received, signals.again) == (number, False)
        os.kill(os.getpid(), number)
        assert signals.again
    assert signal.getsignal(number) is before
    error = signals.stopped(1234, "there")
    assert isinstance(error, TerminatedError)
    assert error.exit_code == code
    told = f"stopped by {number.name}: all 1,234 steps are saved; the same command goes on from there (run there)"
    assert str(error) == told
    assert "not the last ones" in str(signals.stopped(1234, "there", in_time=False))
