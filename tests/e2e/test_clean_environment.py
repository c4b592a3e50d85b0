"""From a trained model on S3 to a stranger's environment, with real processes: `mlflow start` with artifacts on S3,
register, promote, a worse one refused; then pip installs the model's requirements.txt into a new virtual environment,
and there `models:/…@champion` is loaded and ranks."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mlflow_server import mlflow_start
from s3_server import s3_bucket
from small_root import make_root
from stranger import ranking, wheel

from infra.base import storage
from infra.base.versions import resolve
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A server that `oacir mlflow start` runs, and a bucket."""
    with (
        s3_bucket("cluster") as bucket,
        mlflow_start(tmp_path / "server", f"{bucket}/artifacts") as server,
    ):
        yield server, bucket


def oacir(*words: str, code: int = 0) -> dict[str, Any]:
    done = subprocess.run(
        [sys.executable, "-m", "infra.cli", *words, "--json"],
        check=False,
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
    )
    assert done.returncode == code, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_a_stranger_loads_the_champion_and_ranks(uri: tuple[str, str], tmp_path: Path) -> None:
    server, bucket = uri
    root = f"{bucket}/root"
    context = make_root(root)
    evaluate(EvaluateRecipe(name="adafocal", model="adafocal", dataset="benchmark"), context)
    package = f"oacir @ {wheel(tmp_path)}"

    common = ["--mlflow_uri", server, "--root", root, "--name", "clean"]
    first = oacir(
        "register", *common, "--model", "adafocal", "--dataset", "benchmark", "--galleries", "[car/test]",
        "--evaluations", "[adafocal]", "--package", package,
    )  # fmt: skip
    assert (first["version"], first["new"]) == ("1", True)
    gated = ["--dataset", "benchmark"]
    assert oacir("promote", *common, *gated)["promoted"]
    oacir("register", *common, "--model", "beta0", "--package", package)
    refused = oacir("promote", *common, *gated, "--gates.size_bytes", "1000", code=3)
    assert not refused["promoted"]
    assert any(f.path.endswith(".safetensors") for f in storage.list_files(f"{bucket}/artifacts"))

    dataset = resolve(context.root, "datasets", "benchmark")
    images = {r["image_id"]: r["uri"] for r in dataset.table("images").to_pylist()}
    asked = [r for r in dataset.table("quadruples").to_pylist() if r["query_id"] in ("car-0-0", "car-3-2")]
    answer = ranking(server, "clean", "car/test", asked, images, tmp_path)
    rankings = resolve(root, "evaluations", "adafocal").table("rankings").to_pylist()
    expected = {r["query_id"]: r["candidate_ids"][:5] for r in rankings}
    assert answer == [expected[row["query_id"]] for row in asked]
