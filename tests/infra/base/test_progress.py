from __future__ import annotations

import io
import os

import pytest

from infra.base.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (8040, "2:14 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


class Clock:
    """A clock that moves when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(*events: tuple[float, int], total: int = 100, done: int = 0, unit: str = "steps") -> list[str]:
    """What is written for units that end at given seconds, every time and at the end."""
    stream, clock = io.StringIO(), Clock()
    with Progress("train", total, unit, done=done, stream=stream, clock=clock) as progress:
        progress.every_s = 0.0
        for seconds, count in events:
            clock.now = 100.0 + seconds
            progress.update(count)
    return stream.getvalue().splitlines()


def test_the_rate_leaves_the_start_up_out() -> None:
    """Half a minute to start, then 0.2 s a step: five steps a second."""
    found = lines(*((30 + 0.2 * i, 1) for i in range(12)), total=12)
    assert found[-1] == "train: 12 of 12 steps in 32 s (5.0 steps/s)"
    assert found[7] == "train: 8 of 12 steps, 5.0 steps/s, 1 s left"


def test_there_is_no_rate_before_there_are_a_few() -> None:
    found = lines((70, 1), (71, 1), (72, 1), (73, 1))
    assert found == [
        "train: 1 of 100 steps",
        "train: 2 of 100 steps",
        "train: 3 of 100 steps",
        "train: 4 of 100 steps, 1.0 steps/s, 1:36 min left",
        "train: 4 of 100 steps in 1:13 min (1.0 steps/s)",
    ]


def test_slow_work_is_said_in_seconds_of_a_unit() -> None:
    found = lines(*((60.0 * i, 1) for i in range(1, 5)), total=6, unit="parts")
    assert found[-2] == "train: 4 of 6 parts, 1:00 min each, 2:00 min left"
    assert found[-1] == "train: 4 of 6 parts in 4:00 min (1:00 min each)"


def test_waiting_without_a_new_unit_changes_no_rate() -> None:
    found = lines(*((float(i), 1) for i in range(1, 6)), (50, 0), total=10)
    assert found[-1] == "train: 5 of 10 steps in 50 s (1.0 steps/s)"


def test_units_of_an_earlier_run_are_named_and_not_in_the_rate() -> None:
    found = lines((10, 2), (12, 4), total=10, done=4, unit="images")
    assert found[-1] == "train: 10 of 10 images in 12 s (2.0 images/s), 4 from an earlier run"


def test_lines_come_at_their_pace_with_the_note_at_the_end() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("train", 100, "steps", stream=stream, clock=clock)
    for second in range(1, 31):
        clock.now = 100.0 + second
        progress.update(1, note=f"loss {second}")
    assert stream.getvalue().splitlines() == [
        "train: 15 of 100 steps, 1.0 steps/s, 1:25 min left, loss 15",
        "train: 30 of 100 steps, 1.0 steps/s, 1:10 min left, loss 30",
    ]


def test_a_terminal_has_one_line_rewritten() -> None:
    stream, clock = Terminal(), Clock()
    with Progress("x", 2, "parts", stream=stream, clock=clock) as progress:
        for _ in range(2):
            clock.now += 1
            progress.update()
    assert stream.getvalue() == (
        "\r\x1b[2Kx: 1 of 2 parts\r\x1b[2Kx: 2 of 2 parts\r\x1b[2Kx: 2 of 2 parts in 2 s\n"
    )


def test_a_failed_piece_of_work_says_so() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress("x", 2, "parts", stream=stream):
        raise RuntimeError
    assert stream.getvalue().endswith("stopped\n")


class Narrow(Terminal):
    """A terminal of 40 columns."""

    def fileno(self) -> int:
        return 7


def test_a_line_that_would_wrap_loses_its_last_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((40, 24)))
    stream = Narrow()
    progress = Progress("train", 100, "steps", stream=stream, clock=Clock())
    progress.update(5, "loss 3.214, τ 0.0700, β 5.91±0.42, lr 1.0e-03", at_once=True)
    assert stream.getvalue() == "\r\x1b[2Ktrain: 5 of 100 steps, loss 3.214"


def test_what_may_not_wait_is_written_at_once() -> None:
    stream, clock = io.StringIO(), Clock()
    progress = Progress("train", 100, "steps", stream=stream, clock=clock)
    progress.update(5, "first", at_once=True)
    progress.update(5, "second")
    progress.update(0, "third", at_once=True)
    assert stream.getvalue().splitlines() == ["train: 5 of 100 steps, first", "train: 10 of 100 steps, third"]
