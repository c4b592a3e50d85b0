"""The exact search against the bare chunked matrix product, and against the way of the released code.

python -m benchmarks.search [--queries 2000] [--targets 5000] [--members 32] [--dim 256] [--rounds 5]

Ways, in turns in one process: the products alone in the search's own chunks; the products and their maximum over each
set; the search (top 50, the same for any chunk); the product of the whole in double precision, as evaluation scores.
The released way (every query broadcast against every set, distances, a full argsort, arrays of names from which the
reference is taken out) is measured on a few queries against the whole gallery and scaled: its copy of the targets for
each query would not fit otherwise. Results are checked against each other first.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks import plain
from benchmarks.machine import write_result
from pipelines.retrieval.engine import score
from pipelines.retrieval.search import CHUNK_BYTES, PRODUCT_BYTES, search
from training.scoring import max_over_set

TOP = 50
RELEASED_QUERIES = 4
GOALS = {"times_bare": 1.2, "times_faster_than_released": 20.0}


def make(queries: int, targets: int, members: int, dim: int) -> tuple[Tensor, Tensor]:
    """Unit vectors: targets [T, M, d] at random, queries [Q, d] each near a vector of one of them."""
    generator = torch.Generator().manual_seed(0)
    sets = F.normalize(torch.randn(targets, members, dim, generator=generator), dim=-1)
    noise = torch.randn(queries, dim, generator=generator) / dim**0.5
    return F.normalize(sets[torch.arange(queries) % targets, 0] + noise, dim=-1), sets


def bare(queries: Tensor, targets: Tensor, maximum: bool) -> None:
    """Every product of the search's screening, in its chunks and its layout; nothing is kept."""
    rows = max(1, min(len(queries), CHUNK_BYTES // 2 // (5 * len(targets))))
    for first in range(0, len(queries), rows):
        right = queries[first : first + rows].T.contiguous()
        step = max(1, PRODUCT_BYTES // (4 * targets.shape[1] * right.shape[1]))
        room = torch.empty(step * targets.shape[1], right.shape[1])
        for start in range(0, len(targets), step):
            block = targets[start : start + step]
            products = torch.mm(block.flatten(0, 1), right, out=room[: len(block) * targets.shape[1]])
            if maximum:
                products.view(len(block), targets.shape[1], -1).amax(1)


def released(
    queries: Tensor, targets: Tensor, names: list[str], removed: np.ndarray[Any, Any]
) -> list[list[str]]:
    """Names in order of distance, each query's reference taken out, as the released evaluation makes them."""
    distances = 1 - plain.scores(queries, targets)
    order = torch.argsort(distances, dim=-1).numpy()
    ranked = np.array(names)[order]
    mask = ranked != np.array(names)[removed][:, None]
    return [row.tolist() for row in ranked[mask].reshape(len(queries), len(names) - 1)]


def seconds(run: Callable[[], object]) -> float:
    """Wall time of one run."""
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser()
    for name, default in (("queries", 2000), ("targets", 5000), ("members", 32), ("dim", 256), ("rounds", 5)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--name", default="search", help="of the result file")
    asked = parser.parse_args()
    queries, targets = make(asked.queries, asked.targets, asked.members, asked.dim)
    removed = np.arange(asked.queries) * 7 % asked.targets
    names = [f"image-{n:06d}" for n in range(asked.targets)]

    part = slice(0, min(RELEASED_QUERIES, asked.queries))
    theirs = released(queries[part], targets, names, removed[part])
    ours = search(queries, targets, TOP, removed)
    for row, theirs_row in zip(ours.columns, theirs, strict=False):
        if [names[c] for c in row] != theirs_row[: len(row)]:
            raise SystemExit("the search and the released way rank differently")
    cut = search(
        queries,
        [targets[n : n + 997] for n in range(0, len(targets), 997)],
        TOP,
        removed,
        chunk_bytes=CHUNK_BYTES // 5,
    )
    if not (np.array_equal(cut.columns, ours.columns) and np.array_equal(cut.scores, ours.scores)):
        raise SystemExit("the search depends on its chunks")

    ways: dict[str, Callable[[], object]] = {
        "bare": lambda: bare(queries, targets, maximum=False),
        "bare_and_maximum": lambda: bare(queries, targets, maximum=True),
        "search": lambda: search(queries, targets, TOP, removed),
        "double_precision": lambda: score(max_over_set, queries, targets),
    }
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(asked.rounds):
        for name, way in ways.items():
            times[name].append(seconds(way))
    median = {name: statistics.median(values) for name, values in times.items()}
    part_seconds = statistics.median(
        seconds(lambda: released(queries[part], targets, names, removed[part])) for _ in range(asked.rounds)
    )
    whole = part_seconds * asked.queries / (part.stop - part.start)
    ratios = [ours / bare for ours, bare in zip(times["search"], times["bare"], strict=True)]
    flop = 2 * asked.queries * asked.targets * asked.members * asked.dim
    data = {
        "command": f"python -m benchmarks.search --queries {asked.queries} --targets {asked.targets}"
        f" --members {asked.members} --dim {asked.dim} --rounds {asked.rounds}",
        "threads": torch.get_num_threads(),
        "seconds": median,
        "every_round": times,
        "gflop_per_second_bare": flop / median["bare"] / 1e9,
        "chunk_bytes": CHUNK_BYTES,
        "released": {
            "measured_queries": part.stop - part.start,
            "seconds_of_the_part": part_seconds,
            "seconds_scaled_to_all": whole,
        },
        "times_bare": statistics.median(ratios),
        "times_bare_and_maximum": median["search"] / median["bare_and_maximum"],
        "times_faster_than_released": whole / median["search"],
        "goals": GOALS,
    }
    path = write_result(asked.name, data)
    for name, value in median.items():
        print(f"{name:18s} {value:8.3f} s")
    print(f"released           {whole:8.1f} s (scaled from {part.stop - part.start} queries)")
    print(
        f"{data['times_bare']:.2f} x the bare product (goal {GOALS['times_bare']}),"
        f" {data['times_faster_than_released']:.0f} x faster than the released way"
        f" (goal {GOALS['times_faster_than_released']:.0f}): {path}"
    )


if __name__ == "__main__":
    main()
