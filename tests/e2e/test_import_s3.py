"""Import and export on object storage: release, root and export on S3 (moto's server over real HTTP)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import random_benchmark
from s3_server import s3_bucket

from infra.base import storage

DRIVER = """
import json, sys
from infra.base.command import Context
from infra.base.versions import open_version
from pipelines.exporting import ExportRecipe, export
from pipelines.importing import ImportRecipe, import_release

def back(release, root):
    tree = {"release": {"kind": "oacirr", "source": release}, "workers": 1, "images_per_part": 16}
    return import_release(ImportRecipe.model_validate(tree), Context(root=root)).location

bucket, release = sys.argv[1:]
first = back(release, bucket + "/root")
exports = [("oacirr", "again"), ("huggingface", "parquet")]
for layout, place in exports:
    recipe = ExportRecipe(dataset=first, layout=layout, joint=["union"])
    export(recipe, Context(root=bucket + "/root", out=f"{bucket}/{place}"))
second = back(bucket + "/again", bucket + "/other")
print(json.dumps([open_version(v).manifest.content_hash for v in (first, second)]))
"""


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_release_on_s3_comes_back_as_it_was(tmp_path: Path) -> None:
    from infra.base.command import Context
    from pipelines.exporting import ExportRecipe, export

    version = random_benchmark.write(tmp_path, seed=21, domains=2)
    recipe = ExportRecipe(dataset=version.url, layout="oacirr", joint=["union"])
    export(recipe, Context(root="unused", out=str(tmp_path / "release")))
    with s3_bucket("released") as bucket:
        for file in sorted(p for p in (tmp_path / "release").rglob("*") if p.is_file()):
            place = storage.join(bucket, "release", file.relative_to(tmp_path / "release").as_posix())
            storage.write_bytes(place, file.read_bytes())
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, bucket, f"{bucket}/release"],
            env=os.environ | {"RAY_ADDRESS": "local"},
            capture_output=True,
            text=True,
            timeout=500,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-3000:]
        assert json.loads(done.stdout.splitlines()[-1]) == [version.manifest.content_hash] * 2
        assert storage.exists(f"{bucket}/parquet/README.md")
