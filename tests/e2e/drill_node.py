"""Drill: loss of one node of a three-node Ray cluster on this machine at seeded random moments of a build.

python tests/e2e/drill_node.py --trials 10 --seed 0 --json result.json

The head runs no work; of the two other nodes the drawn one, which runs a part just then, is killed with all its
processes, and a new node takes its place for the next build. The driver joins by RAY_ADDRESS.
--without-recovery: the parts of a lost node are not given to the other one.
"""

from __future__ import annotations

import argparse
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from drilling import (
    Build,
    Drill,
    Trial,
    command_line,
    environment,
    finished,
    judge_end,
    moments,
    photos,
    recipe,
)

STORE_BYTES = 100 << 20


def drill(options: argparse.Namespace, folder: Path) -> Drill:
    from ray.cluster_utils import Cluster

    os.environ |= {k: environment()[k] for k in ("PYTHONPATH",)}  # what the nodes hand to their workers
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    left_out = " (taken out)" if options.without_recovery else ""
    result = Drill(
        "loss of one of three nodes", options.seed, f"Ray gives the parts to another node{left_out}"
    )
    made = recipe(folder, "recipe", photos(folder / "photos", options.instances), images_per_part=8)
    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False},
    )
    try:
        nodes = [_added(cluster) for _ in range(2)]
        first = Build(made, folder / "whole", RAY_ADDRESS=cluster.address)
        whole = first.run()
        result.undisturbed_seconds = first.seconds
        total = len(finished(folder / "whole"))
        rng, shares = moments(options.seed, options.trials)
        for number, share in enumerate(shares):
            lost = rng.randrange(len(nodes))
            trial = Trial(f"node {lost} after {share:.3f} of the files")
            planted = ["--without", "no_retries"] if options.without_recovery else []
            build = Build(made, folder / f"loss-{number}", planted, RAY_ADDRESS=cluster.address)
            build.start()
            build.until_files(round(share * total))
            if not build.until_at_work(partial(_raylet(nodes[lost]).children, recursive=True)):
                raise RuntimeError("the build was over before a node could be lost")
            cluster.remove_node(nodes[lost], allow_graceful=False)
            result.add(judge_end(trial, build, whole))
            nodes[lost] = _added(cluster)
    finally:
        cluster.shutdown()
    return result


def _added(cluster: Any) -> Any:
    return cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)


def _raylet(node: Any) -> psutil.Process:
    from ray._private.ray_constants import PROCESS_TYPE_RAYLET

    return psutil.Process(node.all_processes[PROCESS_TYPE_RAYLET][0].process.pid)


if __name__ == "__main__":
    sys.exit(command_line(__doc__ or "", drill))
