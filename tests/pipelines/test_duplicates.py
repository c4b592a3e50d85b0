from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import duplicates
from pipelines.duplicates import SIDES, NearDuplicates, Sightings, bits_apart, candidates, close_pairs, judge

HASH = st.integers(0, 2**64 - 1)


def flipped(base: int, places: list[int]) -> int:
    for place in places:
        base ^= 1 << place
    return base


@st.composite
def clustered(draw: st.DrawFn) -> list[int]:
    """Hashes of which many lie near each other, some equal."""
    bases = draw(st.lists(HASH, min_size=1, max_size=4))
    near = st.builds(flipped, st.sampled_from(bases), st.lists(st.integers(0, 63), max_size=14))
    return draw(st.lists(st.one_of(near, near, HASH), max_size=40))


def slow_pairs(hashes: list[int], max_bits: int) -> set[tuple[int, int]]:
    return {
        (i, j)
        for i in range(len(hashes))
        for j in range(i + 1, len(hashes))
        if (hashes[i] ^ hashes[j]).bit_count() <= max_bits
    }


def fast_pairs(hashes: list[int], max_bits: int) -> list[tuple[int, int]]:
    found = []
    for i, j in close_pairs(np.array(hashes, np.uint64), max_bits):
        found += [(min(a, b), max(a, b)) for a, b in zip(i.tolist(), j.tolist(), strict=True)]
    return found


@given(clustered(), st.integers(0, 16), st.sampled_from([1, 7, 1 << 20]))
def test_pairs_are_those_of_comparing_all_each_once(hashes: list[int], max_bits: int, at_once: int) -> None:
    patch = pytest.MonkeyPatch()
    patch.setattr(duplicates, "PAIRS_AT_ONCE", at_once)
    found = fast_pairs(hashes, max_bits)
    patch.undo()
    assert len(found) == len(set(found))
    assert set(found) == slow_pairs(hashes, max_bits)


@pytest.mark.parametrize("count", [10, 10**3, 10**5, 10**7])
@pytest.mark.parametrize("max_bits", [0, 1, 3, 8, 16])
def test_bands_cover_the_hash_and_keep_the_pigeonholes(count: int, max_bits: int) -> None:
    bands = duplicates._bands(count, max_bits)
    covered = sorted(bit for shift, width in bands for bit in range(shift, shift + width))
    assert covered == list(range(64))
    assert max(width for _, width in bands) <= duplicates.WIDEST_BAND
    assert len(bands) * (max_bits // len(bands) + 1) > max_bits


@given(st.lists(st.tuples(HASH, HASH), min_size=1))
def test_bits_apart_is_the_hamming_distance(pairs: list[tuple[int, int]]) -> None:
    a, b = (np.array(side, np.uint64) for side in zip(*pairs, strict=True))
    assert bits_apart(a, b).tolist() == [(x ^ y).bit_count() for x, y in pairs]


def test_many_equal_hashes_are_paired_in_bounded_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(duplicates, "PAIRS_AT_ONCE", 1000)
    hashes = np.full(300, 7, np.uint64)
    pieces = [len(i) for i, _ in close_pairs(hashes, 4)]
    assert sum(pieces) == 300 * 299 // 2
    assert max(pieces) <= 1000 + 300


def at(*degrees: float) -> np.ndarray:
    angles = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def found(
    hashes: list[int],
    vectors: np.ndarray,
    instances: list[int],
    splits: list[str],
    used: list[bool] | None = None,
) -> NearDuplicates:
    sides = np.array([SIDES.index(s) for s in splits])
    flags = np.array([s != "reserve" for s in splits] if used is None else used)
    sightings = Sightings(np.array(hashes, np.uint64), np.array(instances), sides, flags)
    needed = np.flatnonzero(candidates(sightings, 8))
    return judge(sightings, needed, vectors[needed], 8, 0.9)


def test_both_the_hash_and_the_descriptor_must_agree() -> None:
    # 1 has 0's hash but another descriptor (cos 60° = 0.5), 2 has its descriptor but another hash; 3 is 4 bits away,
    # cos 20° = 0.94; 4 is of the same instance as 0
    result = found([0, 0, 2**40 - 1, 0b1111, 1], at(0, 60, 0, 20, 5), [0, 1, 2, 3, 0], ["train"] * 5)
    assert (result.pairs, result.straddling) == (2, 0)  # 0 with 3, 3 with 4
    assert result.images.tolist() == [0, 3, 4]
    assert result.other.tolist() == [3, 4, 3]  # 3 differs from 4 in three bits, from 0 in four
    assert result.bits.tolist() == [4, 3, 3]
    assert not result.rejected.any()


def test_train_gives_way_to_dev_and_dev_to_test() -> None:
    result = found([0, 0, 0], at(0, 0, 0), [0, 1, 2], ["test", "dev", "train"])
    assert (result.pairs, result.straddling) == (3, 3)
    assert dict(zip(result.images.tolist(), result.rejected.tolist(), strict=True)) == {
        0: False,
        1: True,
        2: True,
    }
    assert result.other.tolist() == [1, 0, 0]  # of equally near ones the first


def test_images_in_no_pair_and_of_the_reserve_push_nobody_out() -> None:
    used = found([0, 0], at(0, 0), [0, 1], ["test", "train"], [False, True])
    assert (used.pairs, used.straddling, used.rejected.any()) == (1, 0, False)
    reserve = found([0, 0], at(0, 0), [0, 1], ["test", "reserve"])
    assert reserve.images.tolist() == [0, 1]
    assert not reserve.rejected.any()


@given(st.data())
def test_after_the_rejections_no_near_duplicates_lie_in_two_splits(data: st.DataObject) -> None:
    """Against comparing all with all: who is found, who goes, and that nobody goes without need."""
    hashes = data.draw(clustered())
    n = len(hashes)
    instances = data.draw(st.lists(st.integers(0, 5), min_size=n, max_size=n))
    side_of = data.draw(st.lists(st.sampled_from(SIDES), min_size=6, max_size=6))
    splits = [side_of[i] for i in instances]
    degrees = data.draw(st.lists(st.sampled_from([0, 20, 90]), min_size=n, max_size=n))
    used = [s != "reserve" and data.draw(st.booleans()) for s in splits]
    result = found(hashes, at(*degrees) if n else np.zeros((0, 2), np.float32), instances, splits, used)
    near = {
        (i, j)
        for i, j in slow_pairs(hashes, 8)
        if instances[i] != instances[j]
        and abs(degrees[i] - degrees[j]) < 25  # cos 20° = 0.94, cos 70° = 0.34
    }
    assert result.pairs == len(near)
    assert result.images.tolist() == sorted({i for pair in near for i in pair})
    across = {(i, j) for i, j in near if used[i] and used[j] and splits[i] != splits[j]}
    assert result.straddling == len(across)
    gone = set(result.images[result.rejected].tolist())
    assert gone == {min(pair, key=lambda i: SIDES.index(splits[i])) for pair in across}
    assert all(i in gone or j in gone for i, j in across)


def test_a_hundred_thousand_hashes_take_seconds_not_their_square() -> None:
    rng = np.random.default_rng(0)
    hashes = rng.integers(0, 2**64, 100_000, dtype=np.uint64)
    twins = rng.permutation(100_000)[:2000].reshape(2, 1000)
    hashes[twins[1]] = hashes[twins[0]] ^ np.uint64(0b10000101)
    pairs = {
        (min(a, b), max(a, b))
        for i, j in close_pairs(hashes, 8)
        for a, b in zip(i.tolist(), j.tolist(), strict=True)
    }
    known = {(min(a, b), max(a, b)) for a, b in twins.T.tolist()}
    assert known <= pairs
    # of five thousand million pairs of random hashes one or two lie that near by chance
    assert len(pairs - known) < 20
    assert all((int(hashes[i]) ^ int(hashes[j])).bit_count() <= 8 for i, j in pairs)
