"""From a trained model on S3 to a stranger's environment, with real processes: `mlflow start` with artifacts on S3,
register, promote, a worse one refused; then pip installs the model's requirements.txt into a new virtual environment,
and there `models:/…@champion` is loaded and ranks."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import s3_bucket
from small_root import make_root

from infra.base import storage
from infra.base.versions import resolve
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate

pytestmark = [pytest.mark.long, pytest.mark.timeout(2400)]
REPOSITORY = Path(__file__).parents[2]

STRANGER = """
import base64, json, sys
import mlflow, pandas as pd

uri, name, rows = sys.argv[1], sys.argv[2], json.load(open(sys.argv[3]))
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
for row in rows:
    row["image"] = base64.b64decode(row["image"])
answer = model.predict(pd.DataFrame(rows), params={"gallery": "car/test", "top_k": 5})
import infra
print(json.dumps({"ids": [list(i) for i in answer["image_ids"]], "package": infra.__file__}))
"""


@pytest.fixture
def uri(tmp_path: Path) -> Iterator[tuple[str, str]]:
    """A server that `oacir mlflow start` runs, and a bucket."""
    with s3_bucket("cluster") as bucket:
        command = [sys.executable, "-m", "infra.cli", "mlflow", "start", "--port", "0"]
        command += ["--root", str(tmp_path / "server"), "--artifacts", f"{bucket}/artifacts"]
        server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=REPOSITORY)
        try:
            assert server.stderr is not None
            found = re.match(r"MLflow serves at (\S+) ", server.stderr.readline())
            assert found
            yield found[1], bucket
        finally:
            server.terminate()
            server.wait(60)


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
    built = tmp_path / "wheel"
    source = tmp_path / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "oacir-data", "*.egg-info", "build")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(built), str(source)]
    subprocess.run(command, check=True)
    (wheel,) = built.glob("*.whl")

    common = ["--mlflow_uri", server, "--root", root, "--name", "clean"]
    first = oacir(
        "register", *common, "--model", "adafocal", "--dataset", "benchmark", "--galleries", "[car/test]",
        "--evaluations", "[adafocal]", "--package", f"oacir @ {wheel.as_uri()}",
    )  # fmt: skip
    assert (first["version"], first["new"]) == ("1", True)
    gated = ["--dataset", "benchmark"]
    assert oacir("promote", *common, *gated)["promoted"]
    oacir("register", *common, "--model", "beta0", "--package", f"oacir @ {wheel.as_uri()}")
    refused = oacir("promote", *common, *gated, "--gates.size_bytes", "1000", code=3)
    assert not refused["promoted"]
    assert any(f.path.endswith(".safetensors") for f in storage.list_files(f"{bucket}/artifacts"))

    clean = tmp_path / "clean"
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True)
    found = _requirements(server, tmp_path)
    assert found.read_text().splitlines()[0].startswith("oacir @ file:///")
    subprocess.run([str(clean / "bin" / "pip"), "install", "--quiet", "-r", str(found)], check=True)
    dataset = resolve(context.root, "datasets", "benchmark")
    uri_of = {r["image_id"]: r["uri"] for r in dataset.table("images").to_pylist()}
    asked = [r for r in dataset.table("quadruples").to_pylist() if r["query_id"] in ("car-0-0", "car-3-2")]
    rows = [_row(row, uri_of) for row in asked]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    (tmp_path / "stranger.py").write_text(STRANGER)
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL", "OACIR"))}
    done = subprocess.run(
        [str(clean / "bin" / "python"), "stranger.py", server, "clean", "rows.json"],
        check=False, capture_output=True, text=True, cwd=tmp_path, env=outside,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["package"].startswith(str(clean))
    rankings = resolve(root, "evaluations", "adafocal").table("rankings").to_pylist()
    expected = {r["query_id"]: r["candidate_ids"][:5] for r in rankings}
    assert answer["ids"] == [expected[row["query_id"]] for row in asked]


def _requirements(server: str, folder: Path) -> Path:
    from infra.ops.registry.server import Registered

    registered = Registered(server, "clean")
    return registered.download(registered.find("champion"), folder / "model").folder / "requirements.txt"


def _row(row: dict[str, Any], uri_of: dict[str, str]) -> dict[str, Any]:
    import base64

    data = base64.b64encode(storage.read_bytes(uri_of[row["reference_id"]])).decode()
    return {"image": data, "box": list(row["reference_box"]), "text": row["modification_text"]}
