"""Storage on S3 behind a front that fails as stores do."""

from __future__ import annotations

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from s3_front import Call, Faults, Front, front_of
from s3_server import s3_bucket

from infra.base import s3, storage
from infra.base.errors import OacirError


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("deep") as url:
        yield url


@pytest.fixture
def front(bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """The way to the bucket; patience is short, and so are the pauses."""
    with front_of(os.environ["AWS_ENDPOINT_URL"], seed=1) as made:
        monkeypatch.setenv("AWS_ENDPOINT_URL", made.url)
        monkeypatch.setenv(s3.PATIENCE, "20")
        monkeypatch.setattr(s3, "LONGEST_PAUSE_S", 0.2)
        yield made
        s3.PatientS3.clear_instance_cache()


@pytest.fixture
def place(bucket: str, tmp_path: Path) -> str:
    return f"{bucket}/{tmp_path.name}"


def behind(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ask the store itself from here on."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", front.store)


def client(front: Front) -> Any:
    import boto3

    return boto3.client("s3", endpoint_url=front.store)


BOUNDED_S = 30.0
"""Far below what a patient call waits, far above what an impatient one needs on a busy machine."""


def impatient(monkeypatch: pytest.MonkeyPatch, seconds: float = 0) -> None:
    monkeypatch.setenv(s3.PATIENCE, str(seconds))


def work(place: str) -> None:
    """Write, list, read, replace and delete a few dozen files of several sizes."""
    table = pa.table({"a": list(range(2000)), "b": [str(i) for i in range(2000)]})

    def one(n: int) -> None:
        url, data = f"{place}/d{n % 3}/{n}.bin", n.to_bytes(2, "big") * (1 + 700 * n)
        storage.write_bytes(url, b"first")
        storage.write_bytes(url, data)
        assert storage.read_bytes(url) == data
        assert storage.read_bytes(storage.byte_range(url, 1, 1)) == data[1:2]
        storage.write_table(f"{place}/t{n}.parquet", table)
        assert storage.read_table(f"{place}/t{n}.parquet", ["b"]) == table.select(["b"])
        assert storage.exists(url)
        assert not storage.exists(f"{url}.absent")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(one, range(24)))
    assert len(list(storage.list_files(place))) == 48
    assert storage.list_folders(place) == ["d0", "d1", "d2"]
    storage.remove(f"{place}/d1")
    assert len(list(storage.list_files(place))) == 40


WEATHER = {
    "errors": Faults(errors=0.2),
    "cuts": Faults(cuts=0.2),
    "lost answers": Faults(lost=0.2),
    "spoilt bodies": Faults(spoilt=0.2),
    "shortened bodies": Faults(shortened=0.2),
    "all": Faults(0.05, 0.05, 0.05, 0.05, 0.05),
}


@pytest.mark.parametrize("name", WEATHER)
def test_whatever_fails_comes_right_by_itself(
    name: str, front: Front, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    front.faults = WEATHER[name]
    work(place)
    assert (
        sum(front.fault_counts().values()) >= 3
    )  # of about a dozen; which requests they meet depends on threads
    behind(front, monkeypatch)
    for n in range(24):
        if n % 3 != 1:
            assert storage.read_bytes(f"{place}/d{n % 3}/{n}.bin") == n.to_bytes(2, "big") * (1 + 700 * n)


@pytest.mark.parametrize("name", WEATHER)
def test_without_patience_the_same_fails(
    name: str, front: Front, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch)
    front.faults = WEATHER[name]
    with pytest.raises(OacirError) as caught:
        work(place)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["spoilt bodies", "shortened bodies"])
def test_without_a_check_of_bodies_damage_goes_unseen(
    name: str, front: Front, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{place}/x", b"0123456789")
    monkeypatch.setattr(s3.failures, "etag_is_md5", lambda answer, bucket: False)
    monkeypatch.setenv(
        "AWS_RESPONSE_CHECKSUM_VALIDATION", "when_required"
    )  # what the store itself sent along
    s3.PatientS3.clear_instance_cache()
    front.faults = Faults(spoilt=1, shortened=0) if name == "spoilt bodies" else Faults(shortened=1)
    assert storage.read_bytes(f"{place}/x") != b"0123456789"


def test_a_verdict_is_asked_for_once(front: Front, place: str) -> None:
    with pytest.raises(OacirError, match="cannot be read"):
        storage.read_bytes(f"{place}/absent")
    assert [(c.method, c.status) for c in front.calls] == [("GET", 404)]
    with pytest.raises(OacirError, match="there is no bucket 'absent'"):
        storage.write_bytes("s3://absent/x", b"x")
    assert [(c.method, c.status) for c in front.calls[1:]] == [("PUT", 404)]


def test_a_photo_is_one_call(front: Front, place: str) -> None:
    storage.write_bytes(f"{place}/1.jpg", b"x" * 60_000)
    storage.read_bytes(f"{place}/1.jpg")
    storage.read_bytes(storage.byte_range(f"{place}/1.jpg", 10, 10))
    assert [c.method for c in front.calls] == ["PUT", "GET", "GET"]
    assert front.calls[2].headers["range"] == "bytes=10-19"


def test_an_upload_states_its_checksum(front: Front, place: str) -> None:
    storage.write_bytes(f"{place}/1", b"123456789")
    assert front.calls[0].headers["x-amz-checksum-crc32"] == "y/Q5Jg=="  # 0xCBF43926, the known check value


def test_the_store_may_be_restarted(front: Front, place: str) -> None:
    storage.write_bytes(f"{place}/x", b"here")
    front.outages[front.came] = 1.5
    with ThreadPoolExecutor(16) as pool:  # more than botocore's own quota of retries would bear
        assert set(pool.map(storage.read_bytes, [f"{place}/x"] * 64)) == {b"here"}
    assert front.outages_had == 1


def test_a_lost_store_is_one_line_in_bounded_time_and_the_same_call_works_later(
    front: Front, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage.write_bytes(f"{place}/x", b"here")
    impatient(monkeypatch, 1)
    front.down()
    began = time.monotonic()
    with pytest.raises(OacirError, match=r"cannot be reached at .* run the same command again") as caught:
        storage.read_bytes(f"{place}/x")
    assert 1 <= time.monotonic() - began < BOUNDED_S
    assert str(caught.value).count(front.url) == 1
    assert "\n" not in str(caught.value)
    front.up()
    assert storage.read_bytes(f"{place}/x") == b"here"


def test_a_store_that_always_fails_is_not_asked_for_ever(
    front: Front, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    impatient(monkeypatch, 1)
    front.faults = Faults(errors=1)
    began = time.monotonic()
    for call in (storage.exists, storage.read_bytes, storage.list_folders, storage.remove):
        with pytest.raises(OacirError, match=r"the store of bucket 'deep' keeps failing .*tried for 1 s"):
            call(f"{place}/x")
    assert time.monotonic() - began < BOUNDED_S
    assert len(front.calls) < 100  # pauses grow


def test_a_dead_peer_does_not_hold_a_call(monkeypatch: pytest.MonkeyPatch, bucket: str) -> None:
    monkeypatch.setattr(s3, "SILENCE_S", 0.5)
    impatient(monkeypatch, 1)
    with socket.create_server(("127.0.0.1", 0)) as dead:  # takes connections, says nothing
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{dead.getsockname()[1]}")
        began = time.monotonic()
        with pytest.raises(OacirError, match="cannot be reached"):
            storage.read_bytes(f"{bucket}/x")
        assert time.monotonic() - began < BOUNDED_S


def test_one_try_has_an_end(front: Front, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Even of a peer that sends a byte now and then, which no time-out of the connection ends."""
    monkeypatch.setattr(s3, "TRY_S", 0.5)
    impatient(monkeypatch, 0)
    with socket.create_server(("127.0.0.1", 0)) as slow:

        def drip() -> None:
            peer, _ = slow.accept()
            try:
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
                while not done.wait(0.1):
                    peer.sendall(b"x")
            except OSError:
                pass

        done = threading.Event()
        thread = threading.Thread(target=drip)
        thread.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{slow.getsockname()[1]}")
        with pytest.raises(OacirError, match="cannot be reached"):
            storage.read_bytes(f"{place}/x")
        done.set()
        thread.join()


@pytest.mark.parametrize("said", ["-1", "inf", "nan", "3601", "a minute"])
def test_a_patience_that_is_none_is_refused(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(s3.PATIENCE, said)
    with pytest.raises(OacirError, match=f"{s3.PATIENCE}={said}: no number of seconds from 0 to 3600"):
        storage.filesystem("s3://bucket/x")


def only(front: Front, faults: Faults, chosen: Callable[[Call], bool] = lambda call: True) -> None:
    """These faults befall calls until the first one that is chosen has been."""

    def watch(call: Call) -> None:
        if call.fault and chosen(call):
            front.faults = Faults()

    front.faults, front.watch = faults, watch


def test_a_manifest_whose_first_try_arrived_is_ours(front: Front, place: str) -> None:
    only(front, Faults(lost=1))
    assert storage.write_new(f"{place}/manifest.json", b"ours")
    assert [(c.method, c.fault, c.status) for c in front.calls] == [
        ("PUT", "lost", 200), ("PUT", "", 412), ("GET", "", 200),
    ]  # fmt: skip
    assert not storage.write_new(f"{place}/manifest.json", b"another's")


def test_a_manifest_that_arrived_damaged_is_put_right(front: Front, place: str) -> None:
    only(front, Faults(spoilt=1))
    assert storage.write_new(f"{place}/manifest.json", b"ours")
    assert storage.read_bytes(f"{place}/manifest.json") == b"ours"


def test_a_manifest_that_another_wrote_between_two_tries_is_not_ours(front: Front, place: str) -> None:
    def others(call: Call) -> None:
        if call.fault:
            front.faults = Faults()
            client(front).put_object(Bucket="deep", Key=f"{place.split('/', 3)[3]}/m.json", Body=b"theirs")

    front.faults, front.watch = Faults(errors=1), others
    assert not storage.write_new(f"{place}/m.json", b"ours")
    assert storage.read_bytes(f"{place}/m.json") == b"theirs"


def large(tmp_path: Path) -> Path:
    file = tmp_path / "large.bin"
    file.write_bytes(os.urandom(1 << 20) * 20 + b"end")
    return file


def uploads(front: Front) -> list[str]:
    return [u["Key"] for u in client(front).list_multipart_uploads(Bucket="deep").get("Uploads", [])]


def test_a_large_file_goes_up_and_down_in_checked_pieces(front: Front, place: str, tmp_path: Path) -> None:
    file, key = large(tmp_path), f"{place.split('/', 3)[3]}/large.bin"
    client(front).create_multipart_upload(Bucket="deep", Key=key)  # of a killed process
    client(front).create_multipart_upload(Bucket="deep", Key=f"{key}.other")
    front.faults = Faults(errors=0.1, cuts=0.1, shortened=0.1)
    storage.send(file, f"{place}/large.bin")
    storage.fetch(f"{place}/large.bin", tmp_path / "back.bin")
    assert (tmp_path / "back.bin").read_bytes() == file.read_bytes()
    parts = [c for c in front.calls if "partNumber" in c.query and c.status == 200]
    assert sorted(c.body_bytes for c in parts) == [4 << 20 | 3, 8 << 20, 8 << 20]
    assert all("x-amz-checksum-crc32" in c.headers for c in parts)
    reads = [
        c.headers["range"] for c in front.calls if c.method == "GET" and "?" not in c.path and not c.query
    ]
    assert set(reads) == {"bytes=0-8388607", "bytes=8388608-16777215", "bytes=16777216-20971522"}
    assert uploads(front) == [f"{key}.other"]
    storage.write_bytes(f"{place}/large.bin", file.read_bytes()[::-1])
    assert storage.read_bytes(f"{place}/large.bin") == file.read_bytes()[::-1]
    assert storage.sha256_of(f"{place}/large.bin") == storage.sha256_of(_reversed(file))
    client(front).abort_multipart_upload(
        Bucket="deep", Key=f"{key}.other",
        UploadId=client(front).list_multipart_uploads(Bucket="deep")["Uploads"][0]["UploadId"],
    )  # fmt: skip


def test_a_view_of_memory_goes_up_in_pieces_and_never_whole(front: Front, place: str) -> None:
    """A checkpoint lies in one buffer; to copy all of it at once would stop every other thread."""
    data = memoryview(bytearray(os.urandom(1 << 20) * 20 + b"end"))
    front.faults = Faults(errors=0.1)
    storage.write_bytes(f"{place}/large.bin", data)
    storage.write_bytes(f"{place}/small.bin", data[:1000])
    parts = [c for c in front.calls if "partNumber" in c.query and c.status == 200]
    assert sorted(c.body_bytes for c in parts) == [4 << 20 | 3, 8 << 20, 8 << 20]
    assert storage.read_bytes(f"{place}/large.bin") == data
    assert storage.read_bytes(f"{place}/small.bin") == data[:1000]


def _reversed(file: Path) -> str:
    there = file.with_suffix(".rev")
    there.write_bytes(file.read_bytes()[::-1])
    return str(there)


def test_an_upload_whose_completion_went_unheard_is_complete(
    front: Front, place: str, tmp_path: Path
) -> None:
    file = large(tmp_path)

    def completion(call: Call) -> None:
        if call.method == "PUT" and "partNumber=3" in call.query:
            front.faults = Faults(lost=1)
        elif call.fault:
            front.faults = Faults()

    front.watch = completion
    storage.send(file, f"{place}/large.bin")
    (lost,) = [c for c in front.calls if c.fault]
    assert lost.method == "POST"
    assert storage.read_bytes(f"{place}/large.bin") == file.read_bytes()


def test_an_upload_that_fails_leaves_no_parts(
    front: Front, place: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = large(tmp_path)
    impatient(monkeypatch, 0.5)

    def watch(call: Call) -> None:
        front.faults = Faults(errors=1.0 if call.method in ("PUT", "POST") else 0)

    front.watch = watch
    with pytest.raises(OacirError, match="keeps failing"):
        storage.send(file, f"{place}/large.bin")
    assert not storage.exists(f"{place}/large.bin")
    left = uploads(front)  # the abort failed too, or not: the next upload clears up
    front.watch, front.faults = (lambda call: None), Faults()
    storage.send(file, f"{place}/large.bin")
    assert uploads(front) == []
    assert len(left) <= 1


def test_a_file_that_is_replaced_while_it_is_copied_is_refused(
    front: Front, place: str, tmp_path: Path
) -> None:
    file = large(tmp_path)
    storage.send(file, f"{place}/large.bin")

    def replace(call: Call) -> None:
        if call.method == "HEAD":
            client(front).put_object(Bucket="deep", Key=f"{place.split('/', 3)[3]}/large.bin", Body=b"other")

    front.watch = replace
    with pytest.raises(OacirError, match=r"large\.bin"):
        storage.fetch(f"{place}/large.bin", tmp_path / "back.bin")


def test_a_store_with_other_etags_is_served_too(front: Front, place: str) -> None:
    front.other_etags = True
    storage.write_bytes(f"{place}/x", b"0123456789")
    assert storage.read_bytes(f"{place}/x") == b"0123456789"
    front.faults = Faults(spoilt=0.3)
    for n in range(10):
        storage.write_bytes(f"{place}/{n}", b"%d" % n * 50)
        assert storage.read_bytes(f"{place}/{n}") == b"%d" % n * 50


def test_what_is_deleted_in_part_is_an_error(
    front: Front, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store may answer 200 and say in the body which keys it did not delete."""
    import s3fs

    true_call, said = s3fs.S3FileSystem._call_s3, [{"Code": "InternalError"}, {"Code": "AccessDenied"}]

    async def call(self: Any, method: str, *rest: Any, **kwargs: Any) -> Any:
        if method == "delete_objects" and said:
            return {"Errors": [{"Key": "x", "Message": "no", **said.pop(0)}]}
        return await true_call(self, method, *rest, **kwargs)

    storage.write_bytes(f"{place}/x", b"x")
    monkeypatch.setattr(s3fs.S3FileSystem, "_call_s3", call)
    with pytest.raises(OacirError, match="denied"):
        storage.remove(place)
    storage.remove(place)
    assert not storage.exists(f"{place}/x")
