from __future__ import annotations

import io
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import pytest
from small_disk import NoMountsError, small_disk

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.s3 import PatientS3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
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
    boto3.client("s3").create_bucket(Bucket="oacir-test")
    PatientS3.clear_instance_cache()
    yield "s3://oacir-test"
    PatientS3.clear_instance_cache()
    server.stop()
    patch.undo()


@pytest.fixture(params=["local", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "local":
        return str(tmp_path / "store")
    return f"{request.getfixturevalue('bucket')}/{tmp_path.name}"


def test_bytes_and_tables_come_back(place: str) -> None:
    url = storage.join(place, "folder", 'na,me "100%25" #ü.bin')
    storage.write_bytes(url, b"one")
    storage.write_bytes(url, b"two")
    assert storage.read_bytes(url) == b"two"
    assert storage.sha256_of(url) == "3fc4ccfe745870e2c0d99f71f30ff0656c8dedd41cc1d7d3d376b0dbe685e2f3"
    table = pa.table({"a": [1, 2], "b": ["x", None]})
    storage.write_table(storage.join(place, "t.parquet"), table)
    assert storage.read_table(storage.join(place, "t.parquet")) == table
    assert storage.read_table(storage.join(place, "t.parquet"), ["b"]).column_names == ["b"]


def test_a_run_of_bytes_inside_a_file_is_read_by_itself(place: str) -> None:
    url = storage.join(place, "folder", "a #1.tar")
    storage.write_bytes(url, b"0123456789")
    assert storage.read_bytes(storage.byte_range(url, 3, 4)) == b"3456"
    assert storage.read_bytes(storage.byte_range(url, 9, 1)) == b"9"
    assert storage.read_bytes(storage.byte_range(url, 3, 0)) == b""
    with pytest.raises(OacirError, match=r"a #1\.tar#bytes=8\+4: 4 bytes wanted, 2 are there"):
        storage.read_bytes(storage.byte_range(url, 8, 4))
    with pytest.raises(OacirError, match="cannot be read"):
        storage.read_bytes(storage.byte_range(storage.join(place, "absent.tar"), 0, 4))


def test_a_table_is_read_with_the_columns_and_in_the_order_asked_for(place: str) -> None:
    url = storage.join(place, "kind=x", "t.parquet")
    table = pa.table({"a": [1, 2], "b": [[1.0, 2.0], None], "c": [{"x": 1}, {"x": 2}]})
    storage.write_table(url, table)
    assert storage.read_table(url) == table
    assert storage.read_table(url, ["c", "b"]) == table.select(["c", "b"])
    with pytest.raises(OacirError, match=r"t\.parquet: no table as expected"):
        storage.read_table(url, ["a", "d"])
    storage.write_bytes(url, b"no parquet")
    with pytest.raises(OacirError, match=r"t\.parquet: no table as expected"):
        storage.read_table(url)
    with pytest.raises(OacirError, match=r"absent\.parquet: cannot be read"):
        storage.read_table(storage.join(place, "absent.parquet"))


def test_no_thread_of_arrow_holds_a_python_object(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that lets go of it while the interpreter ends aborts the process: about one command in twenty under load."""
    file = tmp_path / "t.parquet"
    table = pa.table({"a": list(range(50_000)), "b": [str(i) for i in range(50_000)]})
    storage.write_table(str(file), table)
    readers: set[int] = set()

    class Stream(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            readers.add(threading.get_ident())
            return super().read(size)

    class Cloud:
        def open(self, path: str, mode: str) -> Stream:
            return Stream(file.read_bytes())

        def cat_file(self, path: str, max_concurrency: int) -> bytes:
            return file.read_bytes()

    def batches(url: str) -> list[pa.RecordBatch]:
        with storage.open_parquet(url) as opened:
            return list(opened.iter_batches(10_000, use_threads=storage.arrow_threads(url)))

    monkeypatch.setattr(storage, "filesystem", lambda url: (Cloud(), str(file)))
    assert storage.read_table("s3://bucket/t.parquet") == table
    assert pa.Table.from_batches(batches("s3://bucket/t.parquet")) == table
    assert readers == {threading.get_ident()}
    readers.clear()
    assert storage.read_table(str(file)) == table
    assert pa.Table.from_batches(batches(str(file))) == table
    assert not readers  # Arrow opened it by itself


def test_files_come_and_go_without_passing_through_memory(place: str, tmp_path: Path) -> None:
    here, back, url = tmp_path / "here.bin", tmp_path / "back.bin", storage.join(place, "a", "b.bin")
    here.write_bytes(b"x" * 100_000)
    storage.send(here, url)
    storage.send(here, url)
    storage.fetch(url, back)
    assert back.read_bytes() == here.read_bytes()
    assert [f.path for f in storage.list_files(place)] == ["a/b.bin"]
    with pytest.raises(OacirError, match=r"nothing\.bin: cannot be read"):
        storage.fetch(storage.join(place, "nothing.bin"), back)


def test_listing_is_sorted_relative_and_without_temporaries(place: str) -> None:
    ours = ("a/.x.01234abc.tmp", ".manifest.json.01234abc.tmp")
    theirs = ("b/2.txt", "a/1.txt", "b.txt", "a/photo.tmp", "a/.hidden.tmp", "a/x.01234abc.tmp")
    for name in (*ours, *theirs):
        storage.write_bytes(storage.join(place, name), name.encode())
    found = list(storage.list_files(place))
    assert [f.path for f in found] == sorted(theirs)
    assert [f.size_bytes for f in found] == [len(name) for name in sorted(theirs)]
    assert [f.path for f in storage.files_in(storage.join(place, "a"))] == [
        ".hidden.tmp",
        "1.txt",
        "photo.tmp",
        "x.01234abc.tmp",
    ]
    assert all(f.mark for f in found)
    assert storage.list_folders(place) == ["a", "b"]
    storage.remove(place)
    assert list(storage.list_files(place)) == []
    assert storage.list_folders(place) == []


def test_the_files_directly_in_a_folder(place: str) -> None:
    for name in ("b/2.txt", "a.txt", "c.txt", ".x.01234abc.tmp"):
        storage.write_bytes(storage.join(place, name), name.encode())
    assert storage.files_in(place) == [f for f in storage.list_files(place) if "/" not in f.path]
    assert [(f.path, f.size_bytes) for f in storage.files_in(place)] == [("a.txt", 5), ("c.txt", 5)]
    assert storage.files_in(storage.join(place, "absent")) == []


def test_what_a_killed_writer_leaves_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the moment: the names under which bytes wait are never listed."""
    waiting: list[str] = []

    def killed(self: Path, target: Path) -> None:
        waiting.extend(p.name for p in tmp_path.iterdir())
        assert list(storage.list_files(str(tmp_path))) == []
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        storage.write_bytes(str(tmp_path / "manifest.json"), b"{}")
    monkeypatch.undo()

    def link(source: str, target: str) -> None:
        waiting.append(Path(source).name)
        assert list(storage.list_files(str(tmp_path))) == []

    monkeypatch.setattr(os, "link", link)
    storage.write_new(str(tmp_path / "manifest.json"), b"{}")
    assert len(waiting) == 2


def test_folder_markers_on_s3_are_no_files(bucket: str) -> None:
    import boto3

    client = boto3.client("s3")
    for key in ("ph/", "ph/car/", "ph/car/1.jpg"):
        client.put_object(Bucket="oacir-test", Key=key, Body=b"x" if key.endswith("jpg") else b"")
    assert [f.path for f in storage.list_files(f"{bucket}/ph")] == ["car/1.jpg"]
    assert [f.path for f in storage.list_files(f"{bucket}/ph/car")] == ["1.jpg"]
    assert [f.path for f in storage.files_in(f"{bucket}/ph")] == []
    assert [f.path for f in storage.files_in(f"{bucket}/ph/car")] == ["1.jpg"]
    assert storage.list_folders(f"{bucket}/ph") == ["car"]


def test_only_the_first_writer_of_a_new_file_wins(place: str) -> None:
    url = storage.join(place, "manifest.json")
    assert storage.write_new(url, b"first")
    assert not storage.write_new(url, b"second")
    assert storage.read_bytes(url) == b"first"
    assert [f.path for f in storage.list_files(place)] == ["manifest.json"]


def test_existence_is_asked_of_the_store(place: str) -> None:
    url = storage.join(place, "later")
    assert not storage.exists(url)
    storage.write_bytes(url, b"")
    assert storage.exists(url)
    storage.remove(url)
    assert not storage.exists(url)


def test_a_missing_file_is_one_clear_line(place: str) -> None:
    with pytest.raises(OacirError, match="cannot be read") as caught:
        storage.read_bytes(storage.join(place, "absent"))
    assert "\n" not in str(caught.value)


def test_unknown_scheme_is_refused_with_what_is_allowed() -> None:
    with pytest.raises(OacirError, match="s3://bucket/prefix"):
        storage.absolute("ftp://host/x")


def test_a_failed_local_write_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "inside").write_bytes(b"")
    with pytest.raises(OacirError, match="cannot be written"):
        storage.write_bytes(str(tmp_path / "taken"), b"data")
    assert [p.name for p in tmp_path.iterdir()] == ["taken"]


@pytest.mark.parametrize("write", [storage.write_bytes, storage.write_new])
def test_a_file_where_a_folder_is_to_be_is_one_line(tmp_path: Path, write: Callable[..., object]) -> None:
    (tmp_path / "out").write_text("a file")
    for name in ("out/b.bin", "out/a/b.bin"):
        with pytest.raises(OacirError, match=rf"{name}: cannot be written \((File exists|Not a directory)\)"):
            write(str(tmp_path / name), b"data")
    assert (tmp_path / "out").read_text() == "a file"


def test_the_last_change_below_a_folder_is_known(place: str) -> None:
    assert storage.last_change(place) is None
    began = time.time()
    storage.write_bytes(f"{place}/deep/a", b"x")
    changed = storage.last_change(place)
    assert changed is not None
    assert began - 2 < changed < time.time() + 2  # stores keep whole seconds


def test_a_full_disk_is_one_line_and_leaves_what_was_there(tmp_path: Path) -> None:
    """On a real one, of 64 KiB."""
    try:
        with small_disk(tmp_path / "disk", 64 << 10) as disk:
            kept, big = str(disk.folder / "kept.bin"), b"x" * (100 << 10)
            storage.write_bytes(kept, b"old")
            outside = tmp_path / "outside.bin"
            outside.write_bytes(big)
            table = pa.table({"a": pa.array([os.urandom(1000) for _ in range(100)])})
            for write in (
                lambda: storage.write_bytes(kept, big),
                lambda: storage.write_new(str(disk.folder / "new.json"), big),
                lambda: storage.send(outside, kept),
                lambda: storage.write_table(str(disk.folder / "t.parquet"), table),
            ):
                with pytest.raises(
                    OacirError, match=r"No space left on device.*; free space or choose --out"
                ) as told:
                    write()
                assert "\n" not in str(told.value)
                assert [p.name for p in disk.folder.iterdir()] == ["kept.bin"]
                assert storage.read_bytes(kept) == b"old"
            disk.resize(1 << 20)
            storage.write_bytes(kept, big)
            assert storage.read_bytes(kept) == big
    except NoMountsError as error:
        pytest.skip(str(error))
