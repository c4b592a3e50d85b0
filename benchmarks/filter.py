"""Stage 2 on one group of thousands of images, and near-duplicates among a hundred thousand: seconds and peak memory.

python -m benchmarks.filter

Each row is a process of its own with one thread; its memory is what it held at its peak above what it held with its
inputs made. The baseline does the same by writing down every pair of the group at once.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.machine import write_result

GROUPS, WIDTH, MAX_PAIRS = (1_000, 5_000, 20_000), 504, 60
HASHES, MAX_BITS = (100_000, 1_000_000), 8
BASELINE_IMAGES = 5_000
ROUNDED_APART = 20


def main() -> None:
    """Measure and write results/filter.json."""
    os.environ["OMP_NUM_THREADS"] = "1"
    rows = [_apart(_group, n) for n in GROUPS]
    baseline = _apart(_all_pairs, BASELINE_IMAGES)
    near = [_apart(_near, n) for n in HASHES]
    same = next(r for r in rows if r["images"] == BASELINE_IMAGES)
    # of 25 million cosines a few lie so near the threshold that products of other shapes round them to its other side
    if (
        same["sample"] != baseline["sample"]
        or abs(same["good_pairs"] - baseline["good_pairs"]) > ROUNDED_APART
    ):
        sys.exit("the baseline chose other pairs: the filter is not exact")
    for row in (*rows, baseline):
        del row["sample"]
    path = write_result(
        "filter",
        {
            "command": "python -m benchmarks.filter",
            "one_group": rows,
            "one_group_all_pairs_at_once": baseline,
            "ratio_to_baseline": {k: round(baseline[k] / same[k], 1) for k in ("seconds", "peak_mib")},
            "near_duplicates": near,
        },
    )
    for row in (*rows, baseline, *near):
        print(row)
    print(f"written to {path}")


def _apart(measure: Callable[[int], dict[str, Any]], size: int) -> dict[str, Any]:
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(measure, (size,))


def _measured(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What the work gives, with its seconds and the growth of the process's peak memory."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    result = work()
    seconds = time.perf_counter() - began
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return {"seconds": round(seconds, 2), "peak_mib": round(grown / 1024, 1), **result}


def _inputs(images: int) -> tuple[NDArray[np.float32], list[str], NDArray[np.bool_], Any]:
    from pipelines.config import DomainThresholds

    vectors = np.random.default_rng(images).standard_normal((images, WIDTH), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    boxed = np.arange(images) % 2 == 0
    # random directions have cosines near 0 (standard deviation 0.045): 0.04 calls about a fifth too similar
    limits = DomainThresholds(tau_valid=4, tau_high=0.04, tau_centric=0.9, tau_count=3)
    return vectors, [f"d/i/{n}" for n in range(images)], boxed, limits


def _group(images: int) -> dict[str, Any]:
    from pipelines.filter import judge_group

    vectors, ids, boxed, limits = _inputs(images)

    def work() -> dict[str, Any]:
        verdict = judge_group(vectors, ids, boxed, limits, max_pairs=MAX_PAIRS, seed=0)
        good = verdict.not_sampled + len(verdict.pairs)
        return {"images": images, "good_pairs": good, "sample": verdict.pairs.tolist()}

    return _measured(work)


def _all_pairs(images: int) -> dict[str, Any]:
    """The same by the whole matrix and a table of all good pairs."""
    from pipelines.filter import _marks, _ranks

    vectors, ids, boxed, limits = _inputs(images)

    def work() -> dict[str, Any]:
        cosine = vectors @ vectors.T
        np.fill_diagonal(cosine, -1.0)
        central = (cosine > limits.tau_centric).sum(axis=1) >= limits.tau_count
        if central.any():
            raise ValueError("made to have none")
        good = cosine <= limits.tau_high
        np.fill_diagonal(good, val=False)
        pairs = np.argwhere(good)
        marks = _marks(ids, boxed, 0)
        rank = _ranks(marks[pairs[:, 0]], marks[pairs[:, 1]])
        chosen = np.sort(np.argsort(rank, kind="stable")[:MAX_PAIRS])
        return {"images": images, "good_pairs": len(pairs), "sample": pairs[chosen].tolist()}

    return _measured(work)


def _near(count: int) -> dict[str, Any]:
    from pipelines.duplicates import close_pairs

    hashes = np.random.default_rng(count).integers(0, 2**64, count, dtype=np.uint64)

    def work() -> dict[str, Any]:
        pairs = sum(len(i) for i, _ in close_pairs(hashes, MAX_BITS))
        return {"hashes": count, "max_bits": MAX_BITS, "pairs": pairs}

    return _measured(work)


if __name__ == "__main__":
    main()
