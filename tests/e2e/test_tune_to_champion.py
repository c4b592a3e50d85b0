"""From a benchmark to a champion with real processes: an S3 server, an MLflow server with artifacts on it and a Ray
cluster of two nodes; a sweep of four trials, its best model registered and promoted, a worse one refused, and the
champion loaded in a stranger's environment, where it ranks as evaluated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import mlflow_start
from s3_server import s3_bucket
from stranger import ranking, wheel

from infra.base.versions import open_version, resolve

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
REPOSITORY = Path(__file__).parents[2]
STORE_BYTES = 150 << 20
BETAS = [0, 2, 4, 6]
SWEEP = """
name: champion
train:
  extends: tiny.yaml
  dataset: world
  model: {modulation: fixed}
  training: {steps: 24, epochs: 1}
  scaling: {workers: 1}
space:
  model.fixed_beta: {kind: grid, values: %s}
algorithm: {kind: grid}
driver_gib: 0.5
"""


@dataclass(frozen=True)
class Site:
    """Where everything runs."""

    root: str
    mlflow: str
    environment: dict[str, str]

    def oacir(self, *words: str, code: int = 0) -> dict[str, Any]:
        """A command's outcome."""
        command = [sys.executable, "-m", "infra.cli", *words, "--root", self.root, "--json"]
        done = subprocess.run(
            command, check=False, capture_output=True, text=True, cwd=REPOSITORY, env=self.environment
        )
        assert done.returncode == code, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    from ray.cluster_utils import Cluster

    with (
        s3_bucket("site") as bucket,
        mlflow_start(tmp_path / "server", f"{bucket}/artifacts") as server,
    ):
        paths = [str(REPOSITORY), os.environ.get("PYTHONPATH", "")]
        os.environ |= {"PYTHONPATH": os.pathsep.join(filter(None, paths)), "RAY_USAGE_STATS_ENABLED": "0"}
        head = {"num_cpus": 0, "object_store_memory": STORE_BYTES, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        try:
            for _ in range(2):
                cluster.add_node(num_cpus=1, object_store_memory=STORE_BYTES)
            environment = os.environ | {"RAY_ADDRESS": cluster.address, "MLFLOW_TRACKING_URI": server}
            yield Site(f"{bucket}/root", server, environment)
        finally:
            cluster.shutdown()


def test_a_sweeps_best_model_becomes_champion_and_ranks_elsewhere(site: Site, tmp_path: Path) -> None:
    from mlflow import MlflowClient

    sizes = ("--source.world.instances_per_domain", "10", "--source.world.scenes_per_instance", "6")
    built = site.oacir("build", "--config", "world.yaml", *sizes)
    recipe = tmp_path / "sweep.yaml"
    recipe.write_text(SWEEP % BETAS)
    swept = site.oacir("tune", "--config", str(recipe))
    assert (swept["trials"], swept["finished"], swept["failed"]) == (4, 4, 0)
    client = MlflowClient(site.mlflow)
    runs = [r for e in client.search_experiments() for r in client.search_runs([e.experiment_id])]
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    (parent,) = parents
    trials = [r for r in runs if r.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(trials) == 4

    best = swept["best"]["run"]
    sweep = resolve(site.root, "sweeps", "champion")
    rows = [json.loads(row["record"]) for row in sweep.table("trials").to_pylist()]
    assert {row["run"] for row in rows} >= {best}
    worst = min(rows, key=lambda row: row["figures"]["avg"])["run"]
    assert worst != best

    site.oacir("evaluate", "--name", "best", "--model", best, "--dataset", "world")
    common = ("--mlflow_uri", site.mlflow, "--name", "shop")
    package = f"oacir @ {wheel(tmp_path)}"
    domain = sorted(open_version(built["location"]).table("quadruples")["domain"].unique().to_pylist())[0]
    gallery = f"{domain}/test"
    registered = site.oacir(
        "register", *common, "--model", best, "--dataset", "world", "--galleries", f"[{gallery}]",
        "--evaluations", "[best]", "--package", package,
    )  # fmt: skip
    assert site.oacir("promote", *common)["promoted"]
    challenger = site.oacir("register", *common, "--model", worst, "--package", package)
    assert challenger["version"] != registered["version"]
    refused = site.oacir("promote", *common, "--gates.tolerance", "0", code=3)
    assert not refused["promoted"]

    dataset = open_version(built["location"])
    images = {r["image_id"]: r["uri"] for r in dataset.table("images").to_pylist()}
    quadruples = [r for r in dataset.table("quadruples").to_pylist() if r["split"] == "test"]
    asked = [r for r in quadruples if r["domain"] == domain][:3]
    answer = ranking(site.mlflow, "shop", gallery, asked, images, tmp_path)
    rankings = resolve(site.root, "evaluations", "best").table("rankings").to_pylist()
    expected = {r["query_id"]: r["candidate_ids"][:5] for r in rankings}
    assert answer == [expected[row["query_id"]] for row in asked]
