"""How all workers agree behind which step they leave, on real processes; and how a worker takes SIGTERM."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from small_training import on_processes

from training import drain as drain_module
from training.drain import TOLD_TO_END, Drain, listen
from training.job import Board, Wish

STEPS = 8


def board(said: list[str]) -> Any:
    return SimpleNamespace(ask=SimpleNamespace(remote=lambda wish, why: said.append(why)))


@pytest.mark.parametrize(("world_size", "told"), [(1, 0), (2, 0), (2, 1), (4, 3)])
def test_all_workers_leave_behind_the_same_step(world_size: int, told: int) -> None:
    """One of them is told before its fourth step; each of the others hears it with that step's sums."""

    def work(rank: int) -> Any:
        drain_module.ASKED_EVERY_S = 1e9  # nobody is behind this board
        said: list[str] = []
        drain = Drain(board(said), rank)
        left = 0
        for step in range(1, STEPS):
            if step == 4 and rank == told:
                listen()
                os.kill(os.getpid(), signal.SIGTERM)
            if drain.after_step() and not left:
                left = step
        drain.close()
        everywhere = torch.tensor([0.0] * world_size)
        everywhere[rank] = left
        dist.all_reduce(everywhere)
        heard: list[Any] = [None] * world_size
        dist.all_gather_object(heard, said)
        return {"left": everywhere, "said": heard}

    found = on_processes(world_size, work)
    assert found["left"].tolist() == [5.0] * world_size
    expected: list[list[str]] = [[] for _ in range(world_size)]
    expected[told] = [f"worker {told} was sent SIGTERM"]
    assert found["said"] == expected


def test_a_second_sigterm_ends_the_process_as_before() -> None:
    taken: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: taken.append(number))
    try:
        listen()
        os.kill(os.getpid(), signal.SIGTERM)
        assert TOLD_TO_END.is_set()
        assert taken == []
        os.kill(os.getpid(), signal.SIGTERM)
        assert taken == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)
        TOLD_TO_END.clear()


def test_rank_0_asks_the_board_without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer that is not there yet is looked for behind a later step."""
    answers = [[], [], ["here"], [], []]
    asked: list[str] = []

    def question() -> str:
        asked.append("asked")
        return "question"

    monkeypatch.setattr(drain_module.ray, "wait", lambda refs, timeout: (answers.pop(0), []))
    monkeypatch.setattr(drain_module.ray, "get", lambda ref: Wish.STOP)
    monkeypatch.setattr(drain_module, "ASKED_EVERY_S", -1.0)
    monkeypatch.setattr(drain_module.dist, "get_backend", lambda: "gloo")
    monkeypatch.setattr(drain_module.dist, "all_reduce", lambda *_, **__: SimpleNamespace(wait=lambda: None))
    drain = Drain(SimpleNamespace(asked=SimpleNamespace(remote=question)), 0)
    wishes = [drain.after_step() for _ in range(6)]
    assert wishes == [Wish.NONE] * 4 + [Wish.STOP] * 2
    assert len(asked) >= 1
    quiet = Drain(None, 1)  # no other rank asks
    assert [quiet.after_step() for _ in range(3)] == [Wish.NONE] * 3


def test_a_board_keeps_the_largest_wish_and_forgets_all_but_an_end() -> None:
    board = Board()
    board.ask(Wish.MOVE, "a machine goes")
    board.ask(Wish.RESIZE, "there is room")
    assert (board.asked(), board.outcome()) == (Wish.MOVE, (None, "a machine goes"))
    board.leave(Wish.MOVE)
    assert board.outcome() == (Wish.MOVE, "a machine goes")
    board.ready()
    assert (board.asked(), board.outcome()) == (Wish.NONE, (None, ""))
    board.ask(Wish.STOP, "SIGTERM")
    board.start(7, ["x", "y"])
    assert board.asked() == Wish.STOP
    news = board.read(0, 0)
    assert news.working is not None
    assert (news.working.step, news.working.nodes) == (7, ("x", "y"))
    board.leave(Wish.STOP)
    assert board.read(0, 0).working is None
    assert [start.step for start in board.started()] == [7]
