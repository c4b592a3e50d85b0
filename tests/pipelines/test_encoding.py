"""Images through threads and tower: the right rows in the right order, errors named, nothing waits for the disk."""

from __future__ import annotations

import functools
import hashlib
import threading
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from infra.base.errors import OacirError
from pipelines.encoding import AHEAD, Shard, TowerEncoder, make_shards, tower_in
from training.model.auto import random_model
from training.model.config import preset
from training.stored import Dtype, pack, row_bytes

SIDE, CPU = 4, torch.device("cpu")


def pixels(item: int) -> Tensor:
    if item < 0:
        raise OacirError(f"{item}: cannot be decoded")
    return torch.full((3, SIDE, SIDE), float(item))


def tower(batch: Tensor) -> Tensor:
    """Tokens [B, 2, 3] of image n: n, n + 1, …, n + 5."""
    return batch[:, 0, 0, 0][:, None, None] + torch.arange(6.0).view(2, 3)


def encoder(batch_size: int = 3, threads: int = 2, dtype: Dtype = "float32") -> TowerEncoder[int]:
    return TowerEncoder(
        tower, pixels, side=SIDE, row_bytes=row_bytes(2, 3, dtype), dtype=dtype, device=CPU,
        batch_size=batch_size, threads=threads,
    )  # fmt: skip


def stored(items: Sequence[int], dtype: Dtype = "float32") -> Tensor:
    return pack(tower(torch.stack([pixels(item) for item in items])), dtype)


@given(
    st.lists(st.integers(1, 9), min_size=1, max_size=6),
    st.integers(1, 5),
    st.sampled_from(["float32", "int8"]),
)
def test_rows_come_in_order_whatever_the_borders_of_lists_and_batches(
    sizes: list[int], batch_size: int, dtype: Dtype
) -> None:
    numbers = iter(range(100))
    lists = [[next(numbers) for _ in range(size)] for size in sizes]
    found = list(encoder(batch_size, dtype=dtype)(lists))
    assert [f.wait() for f in found] == [None] * len(lists)
    for items, encoded in zip(lists, found, strict=True):
        assert torch.equal(encoded.rows, stored(items, dtype))


def test_the_next_batches_are_decoded_while_the_tower_computes() -> None:
    """The tower of the first batch does not end before the images of the next ones are there."""
    there = [threading.Event() for _ in range(8)]

    def decode(item: int) -> Tensor:
        there[item].set()
        return pixels(item)

    def slow(batch: Tensor) -> Tensor:
        first = int(batch[0, 0, 0, 0])
        for item in range(first, min(first + 2 * (1 + AHEAD), len(there))):
            assert there[item].wait(30), f"image {item} was not decoded beside the tower"
        return tower(batch)

    made = TowerEncoder(
        slow, decode, side=SIDE, row_bytes=row_bytes(2, 3, "float32"), dtype="float32", device=CPU,
        batch_size=2, threads=2,
    )  # fmt: skip
    lists = [[0, 1], [2, 3, 4, 5, 6, 7]]  # over the border of the lists too
    assert [len(found.rows) for found in made(lists)] == [2, 6]


def shards(lists: dict[int, Sequence[int]], written: dict[int, bytes]) -> list[Shard[int]]:
    def write(number: int, whole: memoryview) -> None:
        written[number] = whole.tobytes()

    return [
        Shard(
            n,
            items,
            [f"{i}.jpg" for i in items],
            lambda rows: memoryview(rows.numpy().tobytes()),
            functools.partial(write, n),
        )
        for n, items in lists.items()
    ]


def test_a_shard_is_written_while_the_next_one_is_computed() -> None:
    written: dict[int, bytes] = {}
    computed = threading.Event()

    def last(batch: Tensor) -> Tensor:
        if batch[0, 0, 0, 0] >= 10:
            computed.set()
        return tower(batch)

    made = encoder()
    made.encode = last
    first, second = shards({0: [1, 2], 1: [10, 11]}, written)

    def waiting(whole: memoryview) -> None:
        assert computed.wait(30), "the next shard waits for this one's file"
        first.write(whole)

    found = list(make_shards(made, [first._replace(write=waiting), second]))
    assert [(m.number, m.error) for m in found] == [(0, ""), (1, "")]
    assert [m.sha256 for m in found] == [hashlib.sha256(written[n]).hexdigest() for n in (0, 1)]
    assert written[1] == stored([10, 11]).numpy().tobytes()


def test_a_shard_without_an_image_to_compute_is_written_too() -> None:
    written: dict[int, bytes] = {}
    found = list(make_shards(encoder(), shards({4: [1], 5: [], 6: [2]}, written)))
    assert [(m.number, m.error) for m in found] == [(4, ""), (5, ""), (6, "")]
    assert written == {4: stored([1]).numpy().tobytes(), 5: b"", 6: stored([2]).numpy().tobytes()}


def test_an_image_that_cannot_be_decoded_ends_the_work_behind_what_is_done() -> None:
    written: dict[int, bytes] = {}
    found = list(make_shards(encoder(batch_size=2), shards({0: [1, 2], 1: [3, 4, -5], 2: [6]}, written)))
    assert [(m.number, m.error) for m in found] == [(0, ""), (1, "-5: cannot be decoded")]
    assert set(written) == {0}


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_tokens_that_are_no_finite_numbers_are_refused_with_their_image(dtype: Dtype) -> None:
    def broken(batch: Tensor) -> Tensor:
        tokens = tower(batch)
        tokens[batch[:, 0, 0, 0] == 7, 1, 2] = float("nan")
        return tokens

    written: dict[int, bytes] = {}
    made = encoder(batch_size=2, dtype=dtype)
    made.encode = broken
    (found,) = make_shards(made, shards({0: [5, 6, 8, 7]}, written))
    assert found.error.startswith("7.jpg: its tokens are no finite numbers; check model.weights")
    assert not written


def test_a_tower_in_bfloat16_differs_little_and_its_residual_stays_float32() -> None:
    model = random_model(preset("tiny"), seed=0)
    images = torch.randn(
        4, 3, model.config.image_size, model.config.image_size, generator=torch.Generator().manual_seed(0)
    )
    exact = tower_in(model, "float32", CPU)(images)
    rough = tower_in(model, "bfloat16", CPU)(images)
    assert rough.dtype == torch.float32
    error = ((rough - exact).norm() / exact.norm()).item()
    assert 1e-4 < error < 2e-2
