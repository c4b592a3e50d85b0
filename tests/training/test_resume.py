"""Which checkpoint a training goes on from: the newest that all workers can read, and it says which it could not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray
import torch
from torch import Tensor

from training import checkpoints
from training.checkpoints import CheckpointWriter, DamagedError
from training.devset import DEV_COLUMNS
from training.history import HISTORY_COLUMNS, History
from training.loop import Loop


class Engine:
    """One that notes what it was told to go on with."""

    def __init__(self) -> None:
        self.restored: list[float] = []

    def read(self, parts: Iterable[Mapping[str, Tensor]]) -> list[float]:
        return [float(part["weights/0/w"].sum()) for part in parts]

    def restore(self, found: list[float]) -> None:
        self.restored = found


class Worker(Loop):
    """A worker that resumes and does nothing else."""

    def __init__(self, run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.warnings: list[str] = []
        board = SimpleNamespace(warn=SimpleNamespace(remote=self.warnings.append))
        self.job: Any = SimpleNamespace(run_url=str(run), board=board)
        self.engine: Any = Engine()
        self.meter: Any = SimpleNamespace(earlier=lambda _: [])
        self.life: Any = SimpleNamespace(beat=lambda: None)
        self.rank, self.world_size, self.step, self.saved = 0, 2, 0, 0
        self.device, self.history, self.galleries, self.dev = torch.device("cpu"), History(), [], []
        monkeypatch.setattr(ray, "get", lambda value: value)
        monkeypatch.setattr("training.loop.dist.broadcast_object_list", lambda *_, **__: None)

    def tell(self, *_: Any) -> None:
        pass


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Checkpoints of steps 3, 6 and 9 by two workers."""
    for step in (3, 6, 9):
        for rank in range(2):
            writer = CheckpointWriter(str(tmp_path), rank, 2, 3)
            rows = {
                "history": torch.zeros(step, len(HISTORY_COLUMNS), dtype=torch.float64),
                "dev": torch.zeros(0, len(DEV_COLUMNS), dtype=torch.float64),
            }
            writer.save(
                step, {"weights/0/w": torch.full((2,), step + rank / 4)} | (rows if rank == 0 else {})
            )
            writer.close()
    return tmp_path


def part(run: Path, step: int, rank: int) -> Path:
    return run / "checkpoints" / f"step-{step:08d}" / f"rank-{rank}-of-2.safetensors"


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1  # a number of a tensor: the file can be parsed still
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def lose_sum(path: Path) -> None:
    path.with_name(path.name + checkpoints.SUM).unlink()


def test_training_goes_on_from_the_newest(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    worker = Worker(run, monkeypatch)
    worker.resume()
    assert (worker.step, worker.engine.restored, worker.warnings) == (9, [18.0, 18.5], [])
    assert len(worker.history.rows) == 9


@pytest.mark.parametrize("damage", [flip, cut, lose_sum])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_damaged_checkpoint_is_passed_over_and_said(
    damage: Any, rank: int, run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    damage(part(run, 9, rank))
    worker = Worker(run, monkeypatch)
    worker.resume()
    assert (worker.step, worker.engine.restored) == (6, [12.0, 12.5])
    (warning,) = worker.warnings
    assert f"step-00000009/rank-{rank}-of-2.safetensors: damaged checkpoint" in warning
    assert checkpoints.complete_steps(str(run)) == [3, 6]


def test_without_any_good_one_nothing_is_begun_anew(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for step in (3, 6, 9):
        flip(part(run, step, 1))
    worker = Worker(run, monkeypatch)
    with pytest.raises(DamagedError, match="and so are all others; delete checkpoints/ to begin anew"):
        worker.resume()
    assert checkpoints.complete_steps(str(run)) == [3, 6, 9]
    assert worker.engine.restored == []


def test_what_another_worker_cannot_read_is_not_gone_on_from(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    others = iter([1.0, 0.0])
    monkeypatch.setattr("training.loop.largest_of_all", lambda value, _: max(value, next(others)))
    worker = Worker(run, monkeypatch)
    worker.resume()
    assert (worker.step, worker.engine.restored) == (6, [12.0, 12.5])


def test_what_was_learned_behind_the_step_gone_on_from_is_forgotten(
    run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other workers would come to other weights, and might export those of a course that was given up."""
    writer = CheckpointWriter(str(run), 0, 2, 3)
    for step in (8, 11):
        writer.save_best(step, {"w": torch.full((2,), float(step))})
    writer.close()
    part(run, 12, 0).parent.mkdir()
    part(run, 12, 0).write_bytes(part(run, 9, 0).read_bytes())
    worker = Worker(run, monkeypatch)
    worker.resume()
    assert worker.step == 9
    assert checkpoints.best_steps(str(run)) == [8]
    assert not part(run, 12, 0).exists()
