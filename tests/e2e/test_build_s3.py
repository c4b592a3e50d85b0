"""The whole build on object storage: the root, the photos and every table on S3 (moto's server over real HTTP)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

DRIVER = """
import json, sys
from infra.base.command import Context
from infra.base.versions import open_version
from pipelines.build import build
from pipelines.config import BuildRecipe

def run(source, root):
    tree = json.loads(sys.argv[1]) | {"source": source, "name": source["kind"]}
    outcome = build(BuildRecipe.model_validate(tree), Context(root=root))
    again = build(BuildRecipe.model_validate(tree), Context(root=root))
    assert again.message.startswith("nothing to do") and again.location == outcome.location
    return open_version(outcome.location)

world = {"kind": "world", "world": json.loads(sys.argv[2])}
results = {}
for name, root in (("s3", "s3://bench/root"), ("local", sys.argv[3])):
    made = run(world, root)
    images = made.table("images").to_pylist()
    folder = images[0]["uri"].rsplit("/", 3)[0]
    assert all(i["uri"].startswith(root + "/datasets/world-images/") for i in images)
    photos = run({"kind": "image_folder", "root": folder}, root)
    results[name] = [v.manifest.content_hash for v in (made, photos)]
    results[name] += [len(made.table("quadruples")), len(photos.table("images"))]
print(json.dumps(results))
"""
RECIPE = """{"thresholds": {"default": {"tau_valid": 3, "tau_high": 0.97, "tau_centric": 0.97, "tau_count": 3}},
"images_per_part": 8}"""
WORLD = '{"image_size_px": 48, "instances_per_domain": 6, "scenes_per_instance": 4, "domains": ["car", "product"]}'


@pytest.fixture(scope="module")
def s3() -> Iterator[dict[str, str]]:
    """Environment of a process that talks to a fresh S3 server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    keys: dict[str, Any] = {
        "aws_access_key_id": "test",
        "aws_secret_access_key": "test",
        "region_name": "us-east-1",
    }
    boto3.client("s3", endpoint_url=url, **keys).create_bucket(Bucket="bench")
    yield {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    server.stop()


@pytest.mark.slow
@pytest.mark.ray
def test_a_build_on_s3_has_the_content_of_a_local_one(s3: dict[str, str], tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", DRIVER, RECIPE, WORLD, str(tmp_path)],
        env=os.environ | s3 | {"RAY_ADDRESS": "local"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    results = json.loads(done.stdout.splitlines()[-1])
    assert results["s3"] == results["local"]  # content hashes and row counts
    assert results["s3"][2] > 50
