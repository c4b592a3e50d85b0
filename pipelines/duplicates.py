"""Near-duplicates between instances: photos that a perceptual hash and the descriptor both call the same.

All pairs of hashes within a Hamming distance are found exactly without comparing all: the 64 bits are cut into bands,
and of two hashes that differ in at most r bits one of m bands differs in at most r // m (the pigeonhole principle), so
that it is found among the few hashes whose band lies that near (multi-index hashing, Norouzi et al. 2012). Only such
pairs are compared by their descriptors.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
Ints = NDArray[np.int64]
Vectors = NDArray[np.float32]
Flags = NDArray[np.bool_]

HASH_BITS = 64
WIDEST_BAND = 22
"""Bits of a band at most: a table of 4 million starts."""
PAIRS_AT_ONCE = 1 << 20
DESCRIBED_AT_ONCE = 1 << 13
SIDES = ("reserve", "train", "dev", "test")
"""Splits in the order in which an image gives way: of two near-duplicates in different splits the earlier goes."""


def bits_apart(a: Hashes, b: Hashes) -> Ints:
    """The Hamming distance of each two hashes."""
    x = a ^ b
    x = x - ((x >> np.uint64(1)) & np.uint64(0x5555555555555555))
    x = (x & np.uint64(0x3333333333333333)) + ((x >> np.uint64(2)) & np.uint64(0x3333333333333333))
    x = (x + (x >> np.uint64(4))) & np.uint64(0x0F0F0F0F0F0F0F0F)
    return ((x * np.uint64(0x0101010101010101)) >> np.uint64(56)).astype(np.int64)


def close_pairs(hashes: Hashes, max_bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Every pair of positions whose hashes differ in at most `max_bits` bits, each once, in pieces; i ≠ j, any order.

    Memory is a few numbers per hash and per pair of a piece (PAIRS_AT_ONCE), however many are equal.
    """
    order = np.argsort(hashes, kind="stable").astype(np.int64)
    values, first, sizes = np.unique(hashes[order], return_index=True, return_counts=True)
    first = first.astype(np.int64)
    ends = np.repeat(first + sizes, sizes)
    places = np.arange(len(hashes), dtype=np.int64)
    for i, j in _ranges(places, places + 1, ends - places - 1):  # of equal hashes each with those after it
        yield order[i], order[j]
    for a, b in _close_values(values, max_bits):
        for x, i in _ranges(np.arange(len(a), dtype=np.int64), first[a], sizes[a]):
            for p, j in _ranges(i, first[b[x]], sizes[b[x]]):
                yield order[p], order[j]


def _close_values(values: Hashes, max_bits: int) -> Iterator[tuple[Ints, Ints]]:
    """Every pair of positions of distinct hashes within `max_bits` bits, each once, the smaller position first."""
    bands = _bands(len(values), max_bits)
    radius = max_bits // len(bands)
    cuts = [_cut(values, shift, width) for shift, width in bands]
    for number, (_, width) in enumerate(bands):
        keys = cuts[number]
        order = np.argsort(keys, kind="stable").astype(np.int64)
        counts = np.bincount(keys, minlength=1 << width)
        starts = np.concatenate([[0], np.cumsum(counts)])
        rows = np.arange(len(values), dtype=np.int64)
        for mask in _masks(width, radius):
            near = keys ^ mask
            for a, place in _ranges(rows, starts[near], counts[near]):
                b = order[place]
                keep = (a < b) & (bits_apart(values[a], values[b]) <= max_bits)
                a, b = a[keep], b[keep]
                for earlier in cuts[:number]:  # a pair that an earlier band has found is not found again
                    apart = bits_apart(earlier[a].astype(np.uint64), earlier[b].astype(np.uint64)) > radius
                    a, b = a[apart], b[apart]
                if len(a):
                    yield a, b


def work(count: int, max_bits: int, bands: int) -> float:
    """How much is looked up and compared among so many hashes if they are cut into so many bands."""
    width = -(-HASH_BITS // bands)
    masks = sum(math.comb(width, r) for r in range(max_bits // bands + 1))
    return bands * masks * (count + count * count / 2.0 ** (HASH_BITS // bands))


def best_bands(count: int, max_bits: int) -> int:
    """The number of bands with the least work."""
    return min(
        range(-(-HASH_BITS // WIDEST_BAND), max_bits + 4), key=lambda bands: work(count, max_bits, bands)
    )


def _bands(count: int, max_bits: int) -> list[tuple[int, int]]:
    """How to cut the hashes: (shift, width) of each band."""
    number = best_bands(count, max_bits)
    edges = [HASH_BITS * i // number for i in range(number + 1)]
    return [(a, b - a) for a, b in itertools.pairwise(edges)]


def _cut(values: Hashes, shift: int, width: int) -> Ints:
    return ((values >> np.uint64(shift)) & np.uint64((1 << width) - 1)).astype(np.int64)


def _masks(width: int, radius: int) -> Iterator[int]:
    """Every number of `width` bits with at most `radius` bits set."""
    for count in range(radius + 1):
        for places in itertools.combinations(range(width), count):
            yield sum(1 << p for p in places)


def _ranges(rows: Ints, starts: Ints, lengths: Ints) -> Iterator[tuple[Ints, Ints]]:
    """Each row with every number of its range [start, start + length), in pieces of about PAIRS_AT_ONCE."""
    some = lengths > 0
    rows, starts, lengths = rows[some], starts[some], lengths[some]
    done = np.cumsum(lengths)
    begin = 0
    while begin < len(rows):
        before = int(done[begin - 1]) if begin else 0
        end = max(begin + 1, int(np.searchsorted(done, before + PAIRS_AT_ONCE, side="right")))
        sizes = lengths[begin:end]
        offsets = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        yield np.repeat(rows[begin:end], sizes), np.repeat(starts[begin:end], sizes) + offsets
        begin = end


@dataclass(frozen=True)
class Sightings:
    """The images among which near-duplicates are looked for; arrays of one length, in the order of the listing."""

    hashes: Hashes
    """[n] perceptual hashes."""
    instances: Ints
    """[n] number of the instance."""
    sides: Ints
    """[n] the instance's split, as a position in SIDES."""
    used: Flags
    """[n] whether a pair has the image as reference or target."""


@dataclass(frozen=True)
class NearDuplicates:
    """What was found; numbers are positions in the sightings."""

    pairs: int
    """Pairs of near-duplicates in different instances."""
    straddling: int
    """Of these, pairs of used images whose instances lie in different splits."""
    images: Ints
    """[k] images that have a near-duplicate in another instance, ascending."""
    other: Ints
    """[k] the nearest one of each; of a rejected image the nearest that forces it out."""
    bits: Ints
    """[k] how many bits of the hashes they differ in."""
    rejected: Flags
    """[k] whether the image gives way, so that no near-duplicates lie in two splits."""


def candidates(sightings: Sightings, max_bits: int) -> Flags:
    """[n] which images have a hash that near in another instance, so that their descriptors are needed."""
    found = np.zeros(len(sightings.hashes), np.bool_)
    for i, j in _foreign(sightings, max_bits):
        found[i] = found[j] = True
    return found


def judge(
    sightings: Sightings, needed: Ints, vectors: Vectors, max_bits: int, min_cosine: float
) -> NearDuplicates:
    """Compare candidates by their descriptors, and decide which images give way.

    Two images of different instances are near-duplicates if their hashes differ in at most `max_bits` bits and the
    cosine of their descriptors is at least `min_cosine`. Where both are used and their instances lie in different
    splits, the one in the split that comes first in SIDES gives way: train before dev before test. So the evaluation
    keeps its images, the choice depends on nothing but the pair, and no two that remain lie in two splits. Images of
    the reserve are in no pair; those found here must not become distractors, which is the gallery's business.

    Args:
        sightings: all images.
        needed: [c] positions of the candidates, ascending.
        vectors: [c, d] their unit descriptors.
        max_bits: see above.
        min_cosine: see above.
    """
    where = np.full(len(sightings.hashes), -1, np.int64)
    where[needed] = np.arange(len(needed))
    nearest, forcing = (np.full(len(sightings.hashes), np.iinfo(np.uint64).max, np.uint64) for _ in range(2))
    pairs = straddling = 0
    for i, j in _alike(sightings, where, vectors, max_bits, min_cosine):
        bits = bits_apart(sightings.hashes[i], sightings.hashes[j])
        _keep_nearest(nearest, i, j, bits)
        _keep_nearest(nearest, j, i, bits)
        pairs += len(i)
        across = (
            sightings.used[i] & sightings.used[j] & (sightings.sides[i] != sightings.sides[j])
        )  # images of the reserve are never used
        straddling += int(across.sum())
        i, j, bits = i[across], j[across], bits[across]
        first = sightings.sides[i] < sightings.sides[j]
        _keep_nearest(forcing, np.where(first, i, j), np.where(first, j, i), bits)
    images = np.flatnonzero(nearest != np.iinfo(np.uint64).max)
    rejected = forcing[images] != np.iinfo(np.uint64).max
    best = np.where(rejected, forcing[images], nearest[images])
    other = (best & np.uint64((1 << 48) - 1)).astype(np.int64)
    return NearDuplicates(
        pairs, straddling, images, other, (best >> np.uint64(48)).astype(np.int64), rejected
    )


def _foreign(sightings: Sightings, max_bits: int) -> Iterator[tuple[Ints, Ints]]:
    for i, j in close_pairs(sightings.hashes, max_bits):
        apart = sightings.instances[i] != sightings.instances[j]
        yield i[apart], j[apart]


def _alike(
    sightings: Sightings, where: Ints, vectors: Vectors, max_bits: int, min_cosine: float
) -> Iterator[tuple[Ints, Ints]]:
    for i, j in _foreign(sightings, max_bits):
        for start in range(0, len(i), DESCRIBED_AT_ONCE):
            a, b = i[start : start + DESCRIBED_AT_ONCE], j[start : start + DESCRIBED_AT_ONCE]
            cosine = np.einsum("pd,pd->p", vectors[where[a]], vectors[where[b]])
            alike = cosine >= min_cosine
            yield a[alike], b[alike]


def _keep_nearest(best: Hashes, images: Ints, others: Ints, bits: Ints) -> None:
    """Lower `best` of each image to its distance (upper 16 bits) and its partner's position, the smallest first."""
    np.minimum.at(best, images, (bits.astype(np.uint64) << np.uint64(48)) | others.astype(np.uint64))
