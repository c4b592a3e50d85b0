"""The whole way on object storage: `oacir demo` and `oacir query` with a root on S3 (moto's server over real HTTP)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

ROOT = "s3://way/root"
SMALL = ["--instances_per_domain", "14", "--scenes_per_instance", "4", "--steps", "2"]


@pytest.fixture(scope="module")
def environment() -> Iterator[dict[str, str]]:
    """Of a process that talks to a fresh S3 server."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    url = f"http://127.0.0.1:{port}"
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id="test",
        aws_secret_access_key="test",
        region_name="us-east-1",
    ).create_bucket(Bucket="way")
    yield os.environ | keys | {"AWS_ENDPOINT_URL": url, "RAY_ADDRESS": "local"}
    server.stop()


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.ray
def test_the_demo_and_a_query_run_on_s3(environment: dict[str, str]) -> None:
    def oacir(*words: str) -> dict[str, Any]:
        command = [sys.executable, "-m", "infra.cli", *words, "--root", ROOT, "--json"]
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=400, check=False
        )
        assert done.returncode == 0, done.stderr[-3000:]
        found: dict[str, Any] = json.loads(done.stdout)
        return found

    first = oacir("demo", *SMALL)
    assert first["location"].startswith(f"{ROOT}/reports/")
    assert {"AdaFocal", "β = 0"} == set(first["scores"])
    made = _files(environment, "manifest.json")
    again = oacir("demo", *SMALL)
    assert again["scores"] == first["scores"]
    assert _files(environment, "manifest.json") == made  # the second time everything was there

    image = "s3://" + _files(environment, ".jpg")[0]
    answer = oacir(
        "query", "--model", "adafocal", "--dataset", "world", "--image", image, "--text", "By night."
    )
    assert answer["images"] > 20
    assert len(answer["results"]) == 10

    listed = oacir("data", "list")["versions"]
    newest = {
        v["kind"]: v for v in listed
    }  # one version of each kind is verified: they are written by one verb
    assert set(newest) == {"datasets", "features", "runs", "evaluations"}
    for kind, one in newest.items():
        assert oacir("data", "verify", "--kind", kind, "--dataset", one["url"])["faults"] == []


def _files(environment: dict[str, str], ending: str) -> list[str]:
    """Keys in the bucket with that ending, sorted."""
    import s3fs

    filesystem = s3fs.S3FileSystem(
        key="test",
        secret="test",
        client_kwargs={"endpoint_url": environment["AWS_ENDPOINT_URL"]},
        use_listings_cache=False,
    )
    return sorted(path for path in filesystem.find("way/root") if path.endswith(ending))
