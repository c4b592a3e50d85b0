"""Ranks of models that were never trained: tables as `tuning.reproduce` keeps them, with a share of hits as wanted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from tuning.reproduce.measure import OWN, SCHEMA

DOMAINS = ("a", "b")


def ranked(
    hits: float,
    queries: int = 200,
    seed: int = 0,
    variant: str = OWN,
    domains: tuple[str, ...] = DOMAINS,
    beta: float | None = None,
) -> pa.Table:
    """Of each domain's queries the first `hits` percent are found at once, the others at rank 9; two of an instance."""
    generator = np.random.default_rng(seed)
    rows = []
    for domain in domains:
        for i in range(queries):
            rank = 1 if i < queries * hits / 100 else 9
            rows.append(
                {
                    "variant": variant,
                    "query_id": f"{domain}-{i:04d}",
                    "instance_id": f"{domain}-{i // 2}",
                    "domain": domain,
                    "target_rank": rank,
                    "instance_rank": rank,
                    "beta": None if beta is None else beta * float(generator.uniform(0.5, 1.5)),
                    "box_share": float(generator.uniform(0.1, 0.4)),
                    "words": int(generator.integers(10, 30)),
                }
            )
    return pa.Table.from_pylist(rows, schema=SCHEMA)
