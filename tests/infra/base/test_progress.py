from __future__ import annotations

import io

import pytest

from infra.base.progress import Progress, duration


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.4, "59 s"), (59.6, "1:00 min"), (185, "3:05 min"), (8040, "2:14 h")],
)
def test_durations_read_well(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_last_line_counts_only_this_run_in_its_rate() -> None:
    stream = io.StringIO()
    progress = Progress("collect", 10, "images", done=6, stream=stream)
    progress.began -= 2.0
    with progress:
        progress.update(4)
    assert stream.getvalue() == "collect: 10 of 10 images in 2 s (2.0 images/s), 6 from an earlier run\n"


def test_a_running_line_gives_rate_time_left_and_note() -> None:
    stream = io.StringIO()
    progress = Progress("train", 100, "steps", stream=stream)
    progress.every_s, progress.began = 0.0, progress.began - 10  # as if ten seconds had gone by
    progress.update(20, note="loss 1.5")
    assert stream.getvalue() == "train: 20 of 100 steps, 2.0 steps/s, 40 s left, loss 1.5\n"


def test_a_failed_piece_of_work_says_so() -> None:
    stream = io.StringIO()
    with pytest.raises(RuntimeError), Progress("x", 2, "parts", stream=stream):
        raise RuntimeError
    assert stream.getvalue().endswith("stopped\n")
