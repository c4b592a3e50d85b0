"""The loop of one worker: what it decides alone and what all workers have to decide at the same step."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from training import loop as loop_module
from training.feed import Fed
from training.history import DivergedError, History, Pending
from training.job import Wish
from training.loop import JUDGED_EVERY_STEPS, Loop
from training.meters import Parts
from training.task import StepOutput
from training.tracking import TrackingSection

BATCH = np.array([4, 7, 9])
BROKEN_AT = 45
"""A step between two checkpoints: those of 20, 40 and more steps lie 1, 2 and more apart."""


def ignore(*_: object) -> None:
    pass


class Ready:
    """Batches that are there already."""

    waited_s = 0.0

    def __next__(self) -> Fed:
        return Fed(0, BATCH, None)  # type: ignore[arg-type]  # nobody looks into it

    def __enter__(self) -> Ready:
        return self

    def __exit__(self, *_: object) -> None:
        pass


class Worker(Loop):
    """A worker of which only the course of the steps is real; each step's sums are there at once."""

    def __init__(
        self, run_url: str, broken_at: int, total: int = 200, wish: Wish = Wish.NONE, asked_at: int = 0
    ) -> None:
        recipe = SimpleNamespace(tracking=TrackingSection())
        self.job: Any = SimpleNamespace(run_url=run_url, total_steps=total, board=None, recipe=recipe)
        self.training: Any = SimpleNamespace(checkpoint_every_steps=50, dev_every_epochs=None, patience=None)
        self.sampler: Any = SimpleNamespace(steps_per_epoch=total)
        self.parts = Parts()
        # figures need all workers; here is one
        self.meter: Any = SimpleNamespace(begin=ignore, add=ignore, read=lambda rows: [])
        self.engine: Any = SimpleNamespace(model=SimpleNamespace(train=lambda: None))
        self.rank, self.step, self.saved, self.posted, self.least = 1, 0, 0, 0.0, 1
        self.history, self.galleries, self.dev = History(), [], []
        self.broken_at, self.checkpoints = broken_at, list[int]()
        self.drain: Any = SimpleNamespace(
            after_step=lambda: wish if self.step >= asked_at else Wish.NONE, close=ignore
        )
        self.life: Any = SimpleNamespace(beat=ignore)
        self.writer: Any = SimpleNamespace(settle=lambda: "", written_at=0.0)
        self.gauges: Any = SimpleNamespace(saved=ignore)
        self.finished = False

    def resume(self) -> None:
        pass

    def begin(self) -> None:
        pass

    def feed(self) -> Any:
        return Ready()

    def train_step(self, fed: Fed, began: float, waited: float) -> None:
        rows, epoch = fed.rows, fed.epoch
        self.step += 1
        loss = float("nan") if self.step >= self.broken_at else 3.0
        sums = torch.tensor([loss * len(rows), 0.0, 0.0, 0.0], dtype=torch.float64)
        handle, rest = SimpleNamespace(wait=lambda: None), (1e-3, 1.0, 0.1, 0.0, 1.0, 0.0, 1e9)
        pending = Pending(self.step, epoch, rows, float("nan"), torch.tensor(0.07), sums, handle, rest)
        self.history.pending.append(pending)

    def save(self) -> None:
        self.judge()
        self.checkpoints.append(self.step)
        self.saved = self.step

    def finish(self) -> None:
        self.finished = True


@pytest.mark.parametrize("broken_at", [BROKEN_AT, 1, 190, 200])
def test_workers_with_different_clocks_stop_at_the_same_step(
    broken_at: int, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that left a step earlier would let the other wait for it in a collective for ever."""
    stopped = []
    for clock in (0.0, 1e9):  # one looks at its losses after every step, one never
        monkeypatch.setattr(loop_module, "POST_EVERY_S", clock)
        worker = Worker(str(tmp_path), broken_at)
        with pytest.raises(DivergedError, match=rf"^the loss is nan at step {broken_at}$") as caught:
            worker.run()
        assert caught.value.rows.tolist() == [4, 7, 9]
        assert all(step < broken_at for step in worker.checkpoints)
        stopped.append(worker.step)
    assert stopped[0] == stopped[1]
    assert stopped[0] < broken_at + JUDGED_EVERY_STEPS


def test_a_healthy_worker_runs_to_the_end(tmp_path: Any) -> None:
    worker = Worker(str(tmp_path), broken_at=1000)
    worker.run()
    assert worker.checkpoints[-1] == 200
    assert [row[0] for row in worker.history.rows] == list(range(1, 201))


@pytest.mark.parametrize("clock", [0.0, 1e9])
def test_who_is_asked_to_leave_saves_that_step_and_goes(
    clock: float, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_module, "POST_EVERY_S", clock)
    monkeypatch.setattr(dist, "barrier", ignore)
    worker = Worker(str(tmp_path), broken_at=1000, wish=Wish.STOP, asked_at=BROKEN_AT)
    worker.run()
    assert (worker.step, worker.checkpoints[-1], worker.finished) == (BROKEN_AT, BROKEN_AT, False)


def test_who_gives_up_saves_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dist, "barrier", ignore)
    worker = Worker(str(tmp_path), broken_at=1000, wish=Wish.GIVE_UP, asked_at=BROKEN_AT)
    worker.run()
    assert (worker.step, worker.finished) == (BROKEN_AT, False)
    assert worker.checkpoints[-1] < BROKEN_AT


def test_a_training_that_is_done_is_not_left(tmp_path: Any) -> None:
    worker = Worker(str(tmp_path), broken_at=1000, wish=Wish.STOP, asked_at=200)
    worker.run()
    assert worker.finished
    assert worker.checkpoints[-1] == 200


def test_a_loss_that_is_no_number_is_said_also_of_the_step_that_is_left_behind(tmp_path: Any) -> None:
    worker = Worker(str(tmp_path), broken_at=BROKEN_AT, wish=Wish.STOP, asked_at=BROKEN_AT)
    with pytest.raises(DivergedError, match=rf"^the loss is nan at step {BROKEN_AT}$"):
        worker.run()
    assert worker.checkpoints[-1] < BROKEN_AT


class Unwritable(Worker):
    """A worker whose checkpoints cannot be written from some step on."""

    def __init__(self, run_url: str, failures: int) -> None:
        super().__init__(run_url, broken_at=1000)
        self.said: list[tuple[str, str]] = []
        remote = lambda name: SimpleNamespace(remote=lambda text, *_: self.said.append((name, str(text))))  # noqa: E731
        self.job.board = SimpleNamespace(warn=remote("warn"), fail=remote("fail"))
        self.asked: list[Wish] = []
        self.drain.ask = lambda wish, why: self.asked.append(wish)
        self.writer = SimpleNamespace(failures=failures, problem="there: cannot be written")


@pytest.mark.parametrize("failures", [0, 1, 2, 3])
def test_some_checkpoints_may_fail_and_too_many_end_the_training(failures: int, tmp_path: Any) -> None:
    worker = Unwritable(str(tmp_path), failures)
    worker._bear_failures()
    assert [name for name, _ in worker.said] == (
        [] if not failures else ["fail" if failures == 3 else "warn"]
    )
    assert worker.asked == ([Wish.GIVE_UP] if failures == 3 else [])
    assert all("there: cannot be written" in text for _, text in worker.said)


class Overflowing(Worker):
    """A worker whose gradients are no numbers from some step on, scaled or not."""

    def __init__(self, run_url: str, precision: str, loss: float) -> None:
        super().__init__(run_url, broken_at=1000)
        self.training.seed, self.training.precision, self.device = 0, precision, torch.device("cpu")
        output = StepOutput(torch.tensor(1.0), torch.tensor(loss), None, torch.tensor(0.07))
        self.engine = SimpleNamespace(
            model=SimpleNamespace(train=lambda: None, temp=torch.tensor(0.07)),
            step=lambda *_: output, rate=0.1, gradient_norm=math.inf, loss_scale=1.0, skipped=True, overflows=True,
        )  # fmt: skip

    train_step = Loop.train_step

    def _flops(self, fed: Fed) -> float:
        return 0.0


@pytest.mark.parametrize(
    ("precision", "loss", "told"),
    [
        ("float16", 3.0, "the gradient of step 1 overflows float16 even unscaled"),
        ("bfloat16", 3.0, "the gradient of step 1 is no number"),
        ("float32", math.nan, "the loss is nan at step 1"),
    ],
)
def test_a_gradient_that_no_scale_brings_back_ends_the_training_at_its_step(
    precision: str, loss: float, told: str, tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "all_reduce", lambda *_, **__: SimpleNamespace(wait=lambda: None))
    worker = Overflowing(str(tmp_path), precision, loss)
    with pytest.raises(DivergedError, match=told) as caught:
        worker.run()
    assert caught.value.rows.tolist() == [4, 7, 9]
    assert not worker.checkpoints
    worker.history.flush()
    row = worker.history.last
    assert (row["step"], row["loss_scale"], row["skipped"]) == (1, 1.0, 1.0)


class Judge(Loop):
    """Of a loop only what it knows of the dev measurements."""

    def __init__(self, patience: int | None, means: list[float]) -> None:
        self.training: Any = SimpleNamespace(patience=patience)
        # step, epoch, gallery, queries, R_ID@1, R@1, R@5, seconds
        self.dev = [(10 * (n + 1), n, 0, 5.0, mean, mean, mean, 0.1) for n, mean in enumerate(means)]


@pytest.mark.parametrize(
    ("patience", "means", "stops"),
    [
        (2, [30.0, 40.0, 35.0], False),
        (2, [30.0, 40.0, 35.0, 39.9], True),
        (2, [30.0, 40.0, 40.0, 40.0], True),  # as good is not better
        (2, [30.0, 40.0, 35.0, 41.0], False),
        (1, [30.0], False),
        (1, [], False),
        (None, [30.0, 20.0, 10.0, 5.0], False),
    ],
)
def test_patience_ends_after_as_many_measurements_without_a_better_one(
    patience: int | None, means: list[float], stops: bool
) -> None:
    assert Judge(patience, means).exhausted() is stops
