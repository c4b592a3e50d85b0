"""The pools of ray_cluster.yaml under Ray's own autoscaler, with machines that are processes: a pool grows from 0 when
work needs it, and goes back to 0."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray_head import ray_head

from infra.ops.processes import free_ports

pytestmark = [pytest.mark.long, pytest.mark.timeout(400)]
FILE = Path(__file__).parents[2] / "ray_cluster.yaml"
HEAD, HEAD_ID = "ray.head.default", "f" * 51 + "00000"
"""What Ray's provider of fake machines calls the head."""
WORK = """
import json, os, sys, time, ray
ray.init(address=sys.argv[1], log_to_driver=False)

def alive():
    return sum(node["Alive"] for node in ray.nodes())

def pool():
    return os.environ["RAY_NODE_TYPE_NAME"]

said = {"before": alive()}
asked = [ray.remote(num_cpus=1)(pool).remote(), ray.remote(num_cpus=1, num_gpus=1)(pool).remote()]
said["pools"], said["grown"] = ray.get(asked, timeout=150), alive()
until = time.monotonic() + 120
while alive() > 1 and time.monotonic() < until:
    time.sleep(0.5)
print(json.dumps(said | {"after": alive()}))
"""


def small(address: str) -> dict[str, Any]:
    """The shipped pools and limits, a CPU and a GPU in place of 96 and 8, and machines that are processes."""
    shipped = yaml.safe_load(FILE.read_text())
    pools = {}
    for name, pool in shipped["available_node_types"].items():
        resources = {kind: min(count, 1) for kind, count in pool["resources"].items()}
        own = {} if name == "head" else {"object_store_memory": 100 << 20}
        pools[HEAD if name == "head" else name] = pool | {"node_config": {}, "resources": resources | own}
    kept = ("cluster_name", "max_workers", "upscaling_speed")
    provider = {"type": "fake_multinode", "gcs_address": address, "head_node_id": HEAD_ID}
    unused = {"file_mounts": {}, "cluster_synced_files": [], "file_mounts_sync_continuously": False}
    return {key: shipped[key] for key in kept} | {
        "available_node_types": pools,
        "head_node_type": HEAD,
        "idle_timeout_minutes": 0.1,
        "provider": provider | {"use_node_id_as_ip": True, "disable_node_updaters": True},
        "auth": {},
        **unused,
        **{key: [] for key in shipped if key.endswith("commands")},
    }


def test_a_pool_grows_from_nothing_and_goes_back(tmp_path: Path) -> None:
    from ray.util import get_node_ip_address

    (port,) = free_ports(1)
    address = f"{get_node_ip_address()}:{port}"
    config = tmp_path / "cluster.json"
    config.write_text(json.dumps(small(address)))
    variables = {
        "RAY_FAKE_CLUSTER": "1",
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_AUTH_MODE": "disabled",
    }
    with ray_head(variables, cpus=0, gcs=port, more=("--autoscaling-config", str(config))):
        done = subprocess.run(
            [sys.executable, "-c", WORK, address], capture_output=True, text=True, check=False, timeout=300,
            env=os.environ | {"RAY_AUTH_MODE": "disabled"},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    said = json.loads(done.stdout)
    cpu, gpu = said.pop("pools")
    assert cpu == "cpu"
    assert gpu in ("gpu", "gpu-spot")
    assert said == {"before": 1, "grown": 3, "after": 1}
