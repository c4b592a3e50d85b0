"""Whether the Ray session has room for the workers of a training. Without it Ray Train would wait for ever."""

from __future__ import annotations

import logging
import math
import socket
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from infra.base.errors import OacirError
from training.config import ScalingSection

ROUNDING = 1e-6
ANSWERS_WITHIN_S = 2.0
ASKED_AT_ONCE = 32
log = logging.getLogger(__name__)


def needs(scaling: ScalingSection) -> dict[str, float]:
    """What Ray reserves for one worker, by resource."""
    return {"CPU": float(scaling.cpus_per_worker)} | ({"GPU": 1.0} if scaling.use_gpu else {})


def room(nodes: Iterable[Mapping[str, float]], needed: Mapping[str, float]) -> int:
    """How many workers fit; a worker lies on one node.

    Args:
        nodes: resources of each.
        needed: by one worker.
    """
    return sum(
        min(math.floor(node.get(kind, 0.0) / amount + ROUNDING) for kind, amount in needed.items())
        for node in nodes
    )


def leaving() -> frozenset[str]:
    """Ray's ids of machines that are about to be taken away."""
    from ray._private.state import state  # what Ray Train asks; no public call says it

    return frozenset(state.get_draining_nodes())


def room_now(scaling: ScalingSection) -> int:
    """How many workers fit on the machines that stay."""
    import ray

    gone = leaving()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["NodeID"] not in gone]
    return room([node["Resources"] for node in answering(nodes)], needs(scaling))


def answering(nodes: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Those whose Ray takes a connection. Ray itself counts a machine that went without notice as there until it has
    missed some questions, and Ray Train would wait a minute for a worker on it.

    Args:
        nodes: as `ray.nodes()` tells of them.
    """
    if not nodes:
        return []
    with ThreadPoolExecutor(min(ASKED_AT_ONCE, len(nodes))) as pool:
        return [node for node, answers in zip(nodes, pool.map(_answers, nodes), strict=True) if answers]


def _answers(node: Mapping[str, Any]) -> bool:
    try:
        with socket.create_connection(
            (node["NodeManagerAddress"], node["NodeManagerPort"]), ANSWERS_WITHIN_S
        ):
            return True
    except OSError:
        return False


def require_workers_fit(scaling: ScalingSection, prefix: str = "") -> int:
    """Refuse a training that the session has no room for; where the cluster can grow, tell that it waits.

    Args:
        scaling: of the training.
        prefix: what the user writes before the section's name.

    Returns:
        how many workers fit, of this training or of several beside each other.

    Raises:
        OacirError: fewer workers fit than the recipe asks for.
    """
    import ray
    from ray._private.state import state

    nodes: list[dict[str, Any]] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    needed = needs(scaling)
    fitting = room(nodes, needed)
    if fitting >= scaling.fewest:
        return fitting
    there = " and ".join(f"{sum(n.get(kind, 0.0) for n in nodes):g} {kind}s" for kind in needed)
    each = " and ".join(f"{amount:g} {kind}{'s' * (amount != 1)}" for kind, amount in needed.items())
    key = "workers" if scaling.min_workers is None else "min_workers"
    told = (
        f"{prefix}scaling.{key} {scaling.fewest}: each needs {each} of one machine, the Ray session has {there} on"
        f" {len(nodes)} machine{'s' * (len(nodes) != 1)}, room for {fitting}"
    )
    if state.get_max_resources_from_cluster_config():
        log.warning("%s; waiting for the cluster to grow", told)
        return fitting
    gpu = f", set {prefix}scaling.use_gpu to false" if scaling.use_gpu else ""
    fewer = f"{prefix}scaling.{key} or {prefix}scaling.cpus_per_worker"
    raise OacirError(f"{told}; lower {fewer}{gpu}, or join more machines (RAY_ADDRESS)")
