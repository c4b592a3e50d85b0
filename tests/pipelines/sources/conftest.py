"""Where the tests of the sources put their collections: a local folder, or a real S3 server on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def s3_bucket() -> Iterator[str]:
    """A real S3 server on loopback."""
    import boto3
    from moto.server import ThreadedMotoServer

    patch = pytest.MonkeyPatch()
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        patch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="oacir-collections")
    yield "s3://oacir-collections"
    server.stop()
    patch.undo()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A root, once local and once on S3."""
    if request.param == "local":
        return str(tmp_path / "collection")
    return f"{request.getfixturevalue('s3_bucket')}/{tmp_path.name}"
