"""What tests of training share: three queries, and an S3 server on loopback."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from training.batches import QuerySet


@pytest.fixture
def queries() -> QuerySet:
    """Three queries, two of them with one target; the third has no region."""
    return QuerySet(
        reference_rows=np.array([0, 2, 4]),
        target_rows=np.array([5, 3, 5]),
        input_ids=np.array([[2, 7, 3, 0, 0], [2, 7, 8, 9, 3], [2, 3, 0, 0, 0]], np.int32),
        text_lengths=np.array([3, 5, 2], np.int32),
        patch_masks=np.array([[0, 1, 0], [0, 1, 1], [0, 0, 0]], bool),
    )


@pytest.fixture
def s3_bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """The URL of an empty bucket on a real S3 server of this process."""
    import boto3
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="oacir-training")
    yield "s3://oacir-training"
    server.stop()
