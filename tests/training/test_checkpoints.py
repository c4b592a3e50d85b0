"""Checkpoints of all ranks: a step counts when every part lies there, early ones lie close, old ones go."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import torch

from infra.base.errors import OacirError
from training import checkpoints
from training.checkpoints import FREE_S, CheckpointWriter, is_due, least_distance


def state(value: float) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((3,), value), "step": torch.tensor(value)}


def save(
    run: Path | str, step: int, world_size: int = 2, ranks: tuple[int, ...] = (0, 1), kept: int = 2
) -> None:
    for rank in ranks:
        writer = CheckpointWriter(str(run), rank, world_size, kept)
        writer.save(step, state(step + rank / 10))
        writer.close()


@pytest.mark.parametrize("longest", [50, 500])
def test_a_kill_at_any_step_repeats_at_most_a_twentieth_and_never_more_than_the_longest_distance(
    longest: int,
) -> None:
    last, repeated = 0, 0.0
    for step in range(1, 20_001):
        if is_due(step, last, longest):
            last = step
        repeated = max(repeated, (step - last) / step)
        assert step - last < longest
    assert repeated <= 0.05


def test_checkpoints_grow_rare() -> None:
    last, written = 0, 0
    for step in range(1, 20_001):
        if is_due(step, last, 500):
            last, written = step, written + 1
    assert written < 200


def test_writing_takes_a_tenth_of_the_time_at_most() -> None:
    step_s, write_s, last, least, spent = 0.2, 6.0, 0, 1, 0.0
    for step in range(1, 20_001):
        if is_due(step, last, 50, least):
            last, spent = step, spent + write_s
            least = least_distance(write_s, spent, step_s)
    assert spent <= FREE_S + write_s + 0.1 * 20_000 * step_s
    assert least == 300  # 60 s of steps, of which 6 s pass while one is written


def test_one_outage_of_the_store_moves_no_later_checkpoint_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    true, took = checkpoints._write, iter((0.0, 2.0, 0.0))

    def slow(url: str, tensors: dict[str, torch.Tensor]) -> None:
        time.sleep(next(took))
        true(url, tensors)

    monkeypatch.setattr(checkpoints, "_write", slow)
    writer, usual, outage = CheckpointWriter(str(tmp_path), 0, 1, 2), [], 0.0
    for step in (1, 2, 3):
        writer.save(step, state(step))
        writer.wait()
        usual.append(writer.usual_s)
        outage = max(outage, writer.last_s)
    writer.close()
    assert max(usual) < 2.0 <= outage
    assert writer.spent_s < 2.0  # nor is it time that writing takes


def test_cheap_checkpoints_and_the_first_of_any_lie_as_close_as_the_work_at_stake_asks() -> None:
    assert least_distance(write_s=0.01, spent_s=1000.0, step_s=0.2) == 1
    assert least_distance(write_s=6.0, spent_s=FREE_S, step_s=0.2) == 1


def test_a_writer_knows_what_it_cost(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), 0, 1, 2)
    writer.save(1, state(1.0))
    writer.wait()
    first = writer.last_s
    writer.save(2, state(2.0))
    writer.close()
    assert writer.spent_s == pytest.approx(first + min(first, writer.last_s))
    assert first > 0


def test_a_step_is_complete_when_every_rank_has_written(tmp_path: Path) -> None:
    assert checkpoints.complete_steps(str(tmp_path)) == []
    save(tmp_path, 3)
    save(tmp_path, 4, ranks=(0,))
    assert checkpoints.complete_steps(str(tmp_path)) == [3]
    save(tmp_path, 4, ranks=(1,))
    assert checkpoints.complete_steps(str(tmp_path)) == [3, 4]


def test_parts_of_different_worker_counts_do_not_complete_each_other(tmp_path: Path) -> None:
    save(tmp_path, 3, world_size=2, ranks=(0,))
    save(tmp_path, 3, world_size=4, ranks=(1, 2))
    assert checkpoints.complete_steps(str(tmp_path)) == []


def test_the_same_holds_on_s3(s3_bucket: str) -> None:
    run = f"{s3_bucket}/runs/small"
    assert checkpoints.complete_steps(run) == []
    for step in (1, 2, 3):
        save(run, step, ranks=(1, 0))
    save(run, 4, ranks=(1,))
    assert checkpoints.complete_steps(run) == [2, 3]
    assert checkpoints.load(run, 3, 1, 2)["weights"].tolist() == state(3.1)["weights"].tolist()
    checkpoints.remove_all(run)
    assert checkpoints.complete_steps(run) == []


def test_each_rank_reads_its_own_part_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    for rank in (0, 1):
        found = checkpoints.load(str(tmp_path), 7, rank, 2)
        assert {k: v.tolist() for k, v in found.items()} == {
            k: v.tolist() for k, v in state(7 + rank / 10).items()
        }


def test_old_complete_steps_go_and_an_incomplete_one_never_displaces_them(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step, ranks=(1, 0))
    assert checkpoints.complete_steps(str(tmp_path)) == [2, 3]
    save(tmp_path, 4, ranks=(0,))
    assert checkpoints.complete_steps(str(tmp_path)) == [2, 3]


def test_the_state_is_copied_before_training_goes_on(tmp_path: Path) -> None:
    writer = CheckpointWriter(str(tmp_path), 0, 1, 2)
    tensors = state(1.0)
    writer.save(1, tensors)
    tensors["weights"].add_(100)
    writer.close()
    assert checkpoints.load(str(tmp_path), 1, 0, 1)["weights"].tolist() == [1.0, 1.0, 1.0]


def test_a_failed_write_is_told_and_the_next_one_may_come_through(tmp_path: Path) -> None:
    in_the_way = tmp_path / checkpoints.FOLDER
    in_the_way.write_text("in the way")
    writer = CheckpointWriter(str(tmp_path), 0, 1, 2)
    for step in (1, 2):
        writer.save(step, state(1.0))
        with pytest.raises(OacirError, match=r"cannot be written \(Not a directory\)"):
            writer.wait()
        assert writer.failures == step
    in_the_way.unlink()
    writer.save(3, state(3.0))
    writer.wait()
    assert (writer.failures, writer.problem) == (0, "")
    assert checkpoints.complete_steps(str(tmp_path)) == [3]
    writer.close()


def best(step: int) -> dict[str, torch.Tensor]:
    return {"w": torch.tensor(float(step))}


def test_the_best_weights_stay_as_long_as_training_may_go_on_from_before_them(tmp_path: Path) -> None:
    run, writer = str(tmp_path), CheckpointWriter(str(tmp_path), 0, 1, kept=2)
    writer.save_best(4, best(4))
    for step in (5, 8):
        writer.save(step, state(step))
    writer.save_best(10, best(10))
    writer.save(10, state(10))
    writer.wait()
    assert checkpoints.complete_steps(run) == [8, 10]
    assert checkpoints.best_steps(run) == [4, 10]  # from 8 on, 4 would be the best again
    writer.save(12, state(12))
    writer.wait()
    assert checkpoints.complete_steps(run) == [10, 12]
    assert checkpoints.best_steps(run) == [10]
    assert float(checkpoints.load_best(run, 10)["w"]) == 10
    writer.close()
    checkpoints.remove_after(run, 8)
    assert checkpoints.best_steps(run) == []


def test_no_checkpoint_knows_of_best_weights_that_are_not_there(tmp_path: Path) -> None:
    run, writer = str(tmp_path), CheckpointWriter(str(tmp_path), 0, 1, kept=2)
    in_the_way = tmp_path / checkpoints.FOLDER / "best-00000004.safetensors.crc32"
    in_the_way.mkdir(parents=True)
    writer.save_best(4, best(4))
    writer.save(5, state(5))
    assert "cannot be written" in writer.settle()
    assert checkpoints.complete_steps(run) == []
    in_the_way.rmdir()
    writer.save(6, state(6))
    writer.wait()
    assert checkpoints.complete_steps(run) == [6]
    assert checkpoints.best_steps(run) == [4]
    writer.close()


def test_best_weights_are_copied_and_damage_of_theirs_is_told(tmp_path: Path) -> None:
    run, writer, weights = str(tmp_path), CheckpointWriter(str(tmp_path), 0, 1, kept=2), best(4)
    writer.save_best(4, weights)
    weights["w"].add_(1)
    writer.close()
    assert float(checkpoints.load_best(run, 4)["w"]) == 4
    file = tmp_path / checkpoints.FOLDER / "best-00000004.safetensors"
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(OacirError, match=r"best-00000004\.safetensors: damaged"):
        checkpoints.load_best(run, 4)


def test_a_damaged_part_is_told_with_its_place(tmp_path: Path) -> None:
    save(tmp_path, 2)
    part = tmp_path / "checkpoints" / "step-00000002" / "rank-1-of-2.safetensors"
    part.write_bytes(part.read_bytes()[:20])
    with pytest.raises(OacirError, match=r"rank-1-of-2\.safetensors: damaged"):
        checkpoints.load(str(tmp_path), 2, 1, 2)


def test_whole_numbers_and_float32_survive_as_rows() -> None:
    loss = float(torch.tensor(1 / 3, dtype=torch.float32))
    rows = [(19_860.0, loss), (2.0**40, float("nan"))]
    back = checkpoints.as_tensor(rows, 2).tolist()
    assert back[0] == [19_860.0, loss]
    assert back[1][0] == 2.0**40
    assert checkpoints.as_tensor([], 5).shape == (0, 5)


def test_a_run_begins_with_the_newest_checkpoint_of_another(tmp_path: Path) -> None:
    origin, run = tmp_path / "origin", tmp_path / "run"
    assert checkpoints.branch(str(origin), str(run)) == 0
    save(origin, 3)
    save(origin, 6)
    save(origin, 9, ranks=(0,))  # not complete
    assert checkpoints.branch(str(origin), str(run)) == 6
    assert checkpoints.complete_steps(str(run)) == [6]
    for rank in (0, 1):
        ours, theirs = (checkpoints.load(str(place), 6, rank, 2) for place in (run, origin))
        assert torch.equal(ours["weights"], theirs["weights"])


def test_a_checkpoint_that_is_deleted_while_it_is_copied_gives_way_to_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin, run = tmp_path / "origin", tmp_path / "run"
    save(origin, 3)
    save(origin, 6)
    listed = checkpoints.complete_steps(str(origin))
    (origin / "checkpoints/step-00000006/rank-1-of-2.safetensors").unlink()
    there = checkpoints.storage.files_in
    gone = there(str(origin / "checkpoints/step-00000003"))
    monkeypatch.setattr(checkpoints, "complete_steps", lambda url: listed)
    monkeypatch.setattr(
        checkpoints.storage, "files_in", lambda url: gone if url.endswith("06") else there(url)
    )
    assert checkpoints.branch(str(origin), str(run)) == 3
    assert not (run / "checkpoints/step-00000006").exists()


def test_a_written_part_says_when(tmp_path: Path) -> None:
    """The age of a checkpoint is measured from it; a write that fails makes nothing younger."""
    writer = CheckpointWriter(str(tmp_path / "run"), 0, 1, 2)
    began = time.time()
    writer.written_at = 0.0
    writer.save(1, state(1.0))
    writer.wait()
    assert began <= writer.written_at <= time.time()
    writer.written_at = 0.0
    (tmp_path / "run/checkpoints/step-00000002/rank-0-of-1.safetensors/in the way").mkdir(parents=True)
    writer.save(2, state(2.0))
    assert writer.settle()
    assert writer.written_at == 0.0
    writer.close()
