"""A stranger: a virtual environment into which pip installs a registered model's requirements, and which then ranks."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from infra.base import storage

REPOSITORY = Path(__file__).parents[2]
SCRIPT = """
import base64, json, sys
import mlflow, pandas as pd

uri, name, gallery = sys.argv[1:4]
rows = json.load(open("rows.json"))
mlflow.set_tracking_uri(uri)
model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
for row in rows:
    row["image"] = base64.b64decode(row["image"])
answer = model.predict(pd.DataFrame(rows), params={"gallery": gallery, "top_k": 5})
import infra
print(json.dumps({"ids": [list(i) for i in answer["image_ids"]], "package": infra.__file__}))
"""


def wheel(folder: Path) -> str:
    """URL of this package as a wheel."""
    source = folder / "source"
    ignored = shutil.ignore_patterns(".git", ".venv", "oacir-data", "*.egg-info", "build")
    shutil.copytree(REPOSITORY, source, ignore=ignored)
    built = folder / "wheel"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "-w", str(built), str(source)]
    subprocess.run(command, check=True)
    (found,) = built.glob("*.whl")
    return found.as_uri()


def ranking(
    uri: str, name: str, gallery: str, queries: Sequence[dict[str, Any]], images: dict[str, str], folder: Path
) -> list[list[str]]:
    """What the champion answers in an environment that pip made of its requirements.txt.

    Args:
        uri: of the MLflow server.
        name: of the registered model.
        gallery: that came with it.
        queries: rows of the table of quadruples.
        images: image_id → URL.
        folder: for the environment.
    """
    from infra.ops.registry.server import Registered

    registered = Registered(uri, name)
    packed = registered.download(registered.find("champion"), folder / "model")
    requirements = packed.folder / "requirements.txt"
    assert requirements.read_text().splitlines()[0].startswith("oacir @ file:///")
    clean = folder / "clean"
    # also for pip: a checkout on PYTHONPATH that was installed in place would count as this package
    outside = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL", "OACIR", "RAY"))}
    subprocess.run([sys.executable, "-m", "venv", str(clean)], check=True, env=outside)
    pip = [str(clean / "bin" / "pip"), "install", "--quiet", "-r", str(requirements)]
    subprocess.run(pip, check=True, env=outside)
    rows = [
        {
            "image": base64.b64encode(storage.read_bytes(images[row["reference_id"]])).decode(),
            "box": list(row["reference_box"]),
            "text": row["modification_text"],
        }
        for row in queries
    ]
    (folder / "rows.json").write_text(json.dumps(rows))
    (folder / "stranger.py").write_text(SCRIPT)
    done = subprocess.run(
        [str(clean / "bin" / "python"), "stranger.py", uri, name, gallery],
        check=False, capture_output=True, text=True, cwd=folder, env=outside,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["package"].startswith(str(clean))
    ids: list[list[str]] = answer["ids"]
    return ids
