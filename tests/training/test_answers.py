"""Which images are equal: from a benchmark's tables to what a batch knows, on any worker."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_benchmark import write_benchmark
from small_plan import plan_of

from infra.base import storage, versions
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.records import TABLES
from training.answers import answers_of, numbered, require_room, same_photos, with_negatives
from training.batches import Answers, Batch, QuerySet
from training.config import TrainingSection
from training.data import read_quadruples
from training.distributed import share
from training.feed import make_batch
from training.gradients import micro_batches
from training.reader import Reader

QUERIES = pa.table(
    {"reference_id": ["a", "b", "a"], "target_ids": [["b"], ["c", "d"], ["b-copy"]]}
)  # a leads to b, b to c or d


class Nothing(Config):
    """A recipe without fields."""


def benchmark(root: Path, near: bool = True) -> Version:
    """Images a to e; b-copy has the bytes of b, and d was found to show the photo e, which shows c."""
    draft = versions.start("datasets", "equal", "k1", Nothing(), root=str(root))
    images = [{"image_id": i, "sha256": f"sha-{i[0]}"} for i in ("a", "b", "b-copy", "c", "d", "e")]
    for row in images:
        row |= {"domain": "x", "uri": "", "width": 1, "height": 1}  # type: ignore[operator]
    tables = {"images": images}
    if near:
        twins = {"split": "train", "other_split": "train", "bits": 1, "rejected": False}
        tables["near_duplicates"] = [
            {"image_id": one, "other_id": other, "instance_id": one, "other_instance_id": other} | twins
            for one, other in (("d", "e"), ("c", "e"))
        ]  # type: ignore[assignment]
    files = []
    for name, rows in tables.items():
        schema = TABLES[name]
        full = [{f.name: row.get(f.name) for f in schema} for row in rows]
        storage.write_table(draft.path(f"{name}.parquet"), pa.Table.from_pylist(full, schema=schema))
        files.append(versions.file_entry(draft.url, f"{name}.parquet", len(full)))
    return draft.commit(content_hash="c" * 64, files=files)


def test_the_same_target_is_the_same_image_and_there_is_one_right_answer(tmp_path: Path) -> None:
    found = answers_of(QUERIES, benchmark(tmp_path), "same_target")
    a, b, c, copy = found.references[0], found.right[0, 0], found.right[1, 0], found.right[2, 0]
    assert len({int(n) for n in (a, b, c, copy)}) == 4
    assert found.references.tolist() == [a, b, a]
    assert found.right.tolist() == [[b], [c], [copy]]


@pytest.mark.parametrize("near", [True, False])
def test_equivalent_are_equal_bytes_near_duplicates_and_further_targets(tmp_path: Path, near: bool) -> None:
    found = answers_of(QUERIES, benchmark(tmp_path, near), "equivalent")
    a, b = found.references[0], found.references[1]
    assert (
        found.right[0].tolist() == found.right[2].tolist() == [b, b]
    )  # the copy; padded with its own target
    first, second = found.right[1].tolist()
    assert (first == second) == near  # c and d both show e
    assert len({int(a), int(b), first}) == 3


def test_equal_is_what_a_chain_of_pairs_joins() -> None:
    found = numbered(["a", "b", "c", "d", "e"], [("b", "x"), ("d", "c"), ("x", "c"), ("y", "z")])
    assert found["b"] == found["c"] == found["d"]
    assert len(set(found.values())) == 3


def test_pairs_of_the_same_photo(tmp_path: Path) -> None:
    assert same_photos(benchmark(tmp_path)) == [("b", "b-copy"), ("d", "e"), ("c", "e")]


class Store:
    """Tokens that say their row."""

    def gather(self, rows: np.ndarray, device: torch.device) -> torch.Tensor:
        return torch.from_numpy(rows).float()[:, None, None].expand(-1, 3, 4)


@pytest.fixture
def told(queries: QuerySet) -> QuerySet:
    right = Answers(np.array([1, 2, 1]), np.array([[5, 5], [3, 4], [5, 2]]))
    return dataclasses.replace(queries, whole_rows=np.array([7, 5, 7]), answers=right)


def batch_of(queries: QuerySet, rows: list[int], start: int, end: int) -> Batch:
    return make_batch(queries, Store(), np.array(rows), start, end, torch.device("cpu"))  # type: ignore[arg-type]


def test_a_batch_knows_the_images_of_all_workers_and_the_answers_of_its_own(told: QuerySet) -> None:
    batch = batch_of(told, [1, 2, 0], 1, 3)
    assert batch.target_images is not None
    assert batch.reference_images is not None
    assert batch.right_images is not None
    assert batch.target_images.tolist() == [3, 5, 5]
    assert batch.reference_images.tolist() == [2, 1, 1]
    assert batch.right_images.tolist() == [[5, 2], [5, 5]]


def test_references_are_encoded_whole_and_once_also_where_they_are_targets_too(told: QuerySet) -> None:
    """Query 1 starts from image 5, which is the target of the others; theirs is image 7, seen through a view."""
    batch = batch_of(told, [1, 2, 0], 0, 3)
    assert batch.target_tokens[:, 0, 0].tolist() == [3, 5, 7]
    assert batch.reference_index is not None
    assert batch.target_tokens[batch.target_index][:, 0, 0].tolist() == [3, 5, 5]
    assert batch.target_tokens[batch.reference_index][:, 0, 0].tolist() == [5, 7, 7]
    assert batch.reference_tokens[:, 0, 0].tolist() == [2, 4, 0]


def test_without_the_options_a_batch_is_what_it_was(queries: QuerySet) -> None:
    assert batch_of(queries, [1, 2, 0], 0, 3)[-4:] == (None, None, None, None)


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_pieces_of_a_batch_know_their_own_columns(world_size: int) -> None:
    """Every row is its own image, so that only a column of the wrong row could be excluded."""
    count = 11
    rows = np.arange(count)
    queries = QuerySet(
        rows + 100, rows, np.full((count, 2), 3, np.int32), np.full(count, 2, np.int32), np.ones((count, 3), bool),
        rows + 100, Answers(rows + 100, np.stack([rows, rows], 1)),
    )  # fmt: skip
    of_workers = [
        micro_batches(batch_of(queries, rows.tolist(), *share(count, r, world_size)), 2, world_size)
        for r in range(world_size)
    ]
    for pieces in zip(*of_workers, strict=True):
        held = torch.cat([piece.right_images[:, 0] for piece in pieces if piece.right_images is not None])
        for piece in pieces:
            assert piece.target_images is not None
            assert piece.reference_images is not None
            assert piece.reference_index is not None
            assert piece.target_images.tolist() == held.tolist()
            assert piece.reference_images.tolist() == (held + 100).tolist()
            shown = piece.target_tokens[:, 0, 0]
            assert torch.equal(shown[piece.reference_index], shown[piece.target_index] + 100)


@pytest.mark.parametrize("crop", [None, 0.3])
def test_readers_show_references_as_targets(tmp_path: Path, crop: float | None) -> None:
    dataset = write_benchmark(tmp_path, identities=1, domains=("a",))
    plan = plan_of(dataset, {"mode": "frozen", "crop": crop})
    section = TrainingSection(reference_negatives=True, false_negatives="same_target")
    quadruples = read_quadruples(dataset, "train")
    known = with_negatives(plan.queries, section, quadruples, dataset, plan.images)
    step = Reader(dataclasses.replace(plan, queries=known), 0, 1).read(0)
    # four backgrounds, each a reference and a target once
    assert step["error"].tolist() == [""] * 8
    if crop is None:
        whole = plan.processor.squares([plan.images.image(row) for row in range(4)])
        assert np.array_equal(step["pixels"][4:], whole.numpy())
    assert known.answers is not None
    # the numbers are of the images, whichever part they play
    assert sorted(known.answers.right.flatten()) == sorted(known.answers.references) == [0, 1, 2, 3]


def test_a_bank_that_always_holds_the_own_target_is_refused() -> None:
    require_room(TrainingSection(memory_bank=99), 100, "data")
    require_room(TrainingSection(memory_bank=100, false_negatives="same_target"), 100, "data")
    with pytest.raises(
        OacirError, match=r"memory_bank 100 holds the targets of a whole epoch \(100 quadruples\)"
    ):
        require_room(TrainingSection(memory_bank=100), 100, "data")
