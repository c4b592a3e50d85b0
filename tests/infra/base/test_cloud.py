from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from infra import cli
from infra.base import cloud, storage, versions
from infra.base.errors import OacirError
from infra.base.s3 import PatientS3

READS = {
    "exists": storage.exists,
    "read_bytes": storage.read_bytes,
    "list_files": lambda url: list(storage.list_files(url)),
    "files_in": storage.files_in,
    "list_folders": storage.list_folders,
    "sha256_of": storage.sha256_of,
    "read_table": storage.read_table,
    "write_bytes": lambda url: storage.write_bytes(url, b"x"),
    "write_new": lambda url: storage.write_new(url, b"x"),
    "fetch": lambda url: storage.fetch(url, Path("unused")),
    "send": lambda url: storage.send(Path(__file__), url),
}


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """An S3 server on loopback."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture
def endpoint(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """The server in the environment, without any setting of whoever runs the tests."""
    for name in [n for n in os.environ if n.startswith("AWS_")]:
        monkeypatch.delenv(name)
    for name, value in {
        "AWS_ENDPOINT_URL": server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": str(tmp_path / "none"),
        "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
        "AWS_EC2_METADATA_DISABLED": "true",
        "OACIR_S3_PATIENCE_S": "0",
    }.items():
        monkeypatch.setenv(name, value)
    PatientS3.clear_instance_cache()
    cloud._asked.cache_clear()
    yield server
    PatientS3.clear_instance_cache()


def told(name: str) -> str:
    """What an operation on s3://absent/… raises, as one line."""
    with pytest.raises(OacirError) as caught:
        READS[name]("s3://absent/a/b.parquet")
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", READS)
def test_a_bucket_that_is_not_there_is_never_an_empty_one(name: str, endpoint: str) -> None:
    line = told(name)
    assert f"there is no bucket 'absent' at {endpoint}; create it, or correct the URL" in line


@pytest.mark.parametrize("name", ["exists", "write_bytes", "list_files", "read_table"])
def test_no_credentials_name_the_variables(name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    line = told(name)
    assert f"no credentials for bucket 'absent' at {endpoint}; set AWS_ACCESS_KEY_ID and" in line


@pytest.mark.parametrize("name", ["exists", "write_bytes", "list_files", "read_table"])
def test_a_store_that_is_down_names_its_endpoint(
    name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    line = told(name)
    assert "the store of bucket 'absent' cannot be reached at http://127.0.0.1:9; check that it is up" in line


@pytest.mark.parametrize("name", READS)
def test_denied_access_names_bucket_and_keys(
    name: str, endpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from moto import settings

    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0.0)  # the server knows no keys at all
    line = told(name)
    assert f"access to bucket 'absent' is denied at {endpoint}; check AWS_ACCESS_KEY_ID and" in line


def test_an_absent_file_in_a_bucket_is_no_matter_of_the_bucket(endpoint: str) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket="there")
    assert not storage.exists("s3://there/a")
    assert storage.list_folders("s3://there/a") == []
    assert list(storage.list_files("s3://there/a")) == []
    with pytest.raises(OacirError, match=r"^s3://there/a: cannot be read"):
        storage.read_bytes("s3://there/a")
    with pytest.raises(OacirError, match=r"^s3://there/a: nothing lies there"):
        storage.sha256_of("s3://there/a")


def test_commands_name_the_bucket_in_place_of_no_datasets(
    endpoint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(OacirError, match="there is no bucket 'absent'"):
        versions.resolve("s3://absent/root", "datasets", "world")
    assert cli.main(["train", "--config", "tiny", "--root", "s3://absent/root"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "there is no bucket 'absent'" in line


def test_a_url_without_a_bucket_is_refused() -> None:
    with pytest.raises(OacirError, match=r"s3:///root: names no bucket"):
        storage.absolute("s3:///root")
