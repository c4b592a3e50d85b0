"""Figures of n steps, worked out by hand, and how they read."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist

from training import meters
from training.history import HISTORY_COLUMNS, History
from training.meters import Meter, Parts, memory_bytes, reading
from training.tracking import MEANINGS, note

CPU = torch.device("cpu")


@pytest.fixture
def one_worker() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def row(step: int, **values: float) -> tuple[float, ...]:
    """A step of half a second with 8 queries and 100 FLOPs."""
    usual = {
        "epoch": 0, "loss": 2.0, "temperature": 0.07, "beta_mean": 5.0, "beta_std": 1.0, "learning_rate": 1e-3,
        "gradient_norm": 3.0, "seconds": 0.5, "data_seconds": 0.1, "memory_bytes": 1e9, "samples": 8,
        "model_flops": 100.0, "loss_scale": 1.0, "skipped": 0.0,
    }  # fmt: skip
    return tuple(({"step": step} | usual | values)[name] for name in HISTORY_COLUMNS)


def test_a_reading_by_hand() -> None:
    rows = [
        row(1, loss=3.0, memory_bytes=2e9),
        row(2, loss=1.0, seconds=1.5, learning_rate=2e-3, temperature=0.05),
    ]
    found = reading(rows, peak=1000.0)
    assert found == pytest.approx(
        {
            "step": 2, "epoch": 0, "loss": 2.0, "temperature": 0.05, "beta_mean": 5.0, "beta_std": 1.0,
            "gradient_norm": 3.0, "learning_rate": 2e-3, "samples_per_second": 8.0, "data_wait_share": 0.1,
            "memory_bytes": 2e9, "model_flops_per_second": 100.0, "mfu": 0.1,
        }
    )  # fmt: skip
    assert set(found) - {"step", "epoch"} == set(MEANINGS) - {"host_available_bytes"}
    assert reading(rows, seconds=4.0)["samples_per_second"] == 4.0


def test_what_does_not_exist_is_left_out() -> None:
    """β = 0 has no β, a method whose FLOPs nobody knows no FLOPs, a device without a known peak no MFU."""
    found = reading([row(1, beta_mean=math.nan, beta_std=math.nan, model_flops=math.nan)], peak=None)
    assert not {"beta_mean", "beta_std", "model_flops_per_second", "mfu"} & set(found)
    assert "β" not in note(found)


def test_a_reading_in_words() -> None:
    assert note(reading([row(1, samples=640)], peak=400.0)) == (
        "loss 2.000, τ 0.0700, β 5.00±1.00, |g| 3, lr 1.0e-03, 1,280 samples/s, wait 20 %, 1.0 GB, MFU 50 %"
    )
    assert "1.6 samples/s" in note(reading([row(1, seconds=5.0)]))


def test_the_meter_tells_every_n_steps_and_at_the_end(
    one_worker: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second per step, of which 0.25 s are waited; two seconds of dev measurement belong to no step."""
    now = [0.0]
    monkeypatch.setattr(meters.time, "perf_counter", lambda: now[0])
    meter, rows = Meter(4, 10, CPU, 1600.0), []
    meter.begin(0, 0.0, 0.0)
    paused, told = 0.0, []
    for step in range(1, 11):
        now[0] += 1.0
        rows.append(row(step, seconds=9.0))  # on a GPU a step's own seconds say little
        meter.add(step, 0.25 * step, paused)
        if step == 6:
            now[0] += 2.0
            paused = 2.0
        told += meter.read(rows)
    assert [window.figures["step"] for window in told] == [4, 8, 10]
    for window in told:
        assert window.figures["samples_per_second"] == pytest.approx(8.0)
        assert window.figures["data_wait_share"] == window.own["data_wait_share"] == pytest.approx(0.25)
        assert window.figures["mfu"] == pytest.approx(100 / 1600)
        assert 0 < window.figures["memory_bytes"] < window.figures["host_available_bytes"] < 1e13
    assert [len(window.step_seconds) for window in told] == [4, 4, 2]
    assert [window.samples for window in told] == [32, 32, 16]


def test_a_meter_that_goes_on_in_the_midst_takes_the_steps_own_seconds(one_worker: None) -> None:
    rows = [row(step) for step in range(1, 8)]
    meter = Meter(4, 10, CPU, None)
    assert [found["step"] for found in meter.earlier(rows[:6])] == [4]
    meter.begin(6, 0.0, 0.0)
    for step in (7, 8):
        rows += [row(step)] if step == 8 else []
        meter.add(step, 0.0, 0.0)
    (window,) = meter.read(rows)
    assert window.figures["samples_per_second"] == pytest.approx(16.0)
    assert len(window.step_seconds) == 4
    # another worker than 0 has only the rows since it went on
    other = Meter(4, 10, CPU, None)
    other.begin(6, 0.0, 0.0)
    other.add(8, 0.0, 0.0)
    (window,) = other.read(rows[6:])
    assert len(window.step_seconds) == 2


def test_dev_and_checkpoints_are_pauses() -> None:
    assert Parts({"dev": 2.0, "checkpoint": 0.5, "forward": 7.0}).paused == 2.5


def test_memory_is_what_the_process_took_itself() -> None:
    before = memory_bytes(CPU)
    taken = mmap.mmap(
        -1, 64 << 20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    )  # never memory that was free here
    taken.write(b"x" * len(taken))
    assert memory_bytes(CPU) - before == pytest.approx(len(taken), rel=0.1)


def test_rows_of_earlier_code_lack_the_new_columns() -> None:
    history = History()
    history.restore([list(range(10))])
    assert history.rows[0][:10] == tuple(range(10))
    assert len(history.rows[0]) == len(HISTORY_COLUMNS)
    assert all(math.isnan(value) for value in history.rows[0][10:])
