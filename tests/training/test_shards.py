"""Shards of a store on S3: fetched once for a machine, in ranges, believed only when they are whole."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from s3_front import Call, Front, front_of
from small_store import KEY, check, write_store

from infra.base import s3, storage
from infra.base.errors import VersionError
from training.features import FeatureStore
from training.shards import local_shards

RANGE_BYTES = 16
OPEN = f"""
import sys
from pathlib import Path
from infra.base import s3
s3.PIECE_BYTES = {RANGE_BYTES}
from training.features import FeatureStore
FeatureStore.open(sys.argv[1], cache=Path(sys.argv[2]))
"""


@pytest.fixture
def front(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Front]:
    """What looks at every call to the store of `s3_bucket`."""
    with front_of(os.environ["AWS_ENDPOINT_URL"]) as watched:
        monkeypatch.setenv("AWS_ENDPOINT_URL", watched.url)
        yield watched


def ranges(front: Front) -> list[tuple[str, int, int]]:
    """Shard, first and last byte of every range that was asked for, in order."""
    found = []
    for call in front.calls:
        asked = {name.lower(): value for name, value in call.headers.items()}.get("range", "")
        if call.method == "GET" and call.path.endswith(".bin"):
            first, last = re.fullmatch(r"bytes=(\d+)-(\d+)", asked).groups()  # type: ignore[union-attr]
            found.append((call.path.rsplit("/", 1)[1][:5], int(first), int(last)))
    return sorted(found)


def opening(url: str, cache: Path) -> subprocess.Popen[bytes]:
    """Another process of this machine that opens the store."""
    return subprocess.Popen([sys.executable, "-c", OPEN, url, str(cache)], stderr=subprocess.PIPE)


def believed(cache: Path) -> list[str]:
    """Names of the files that a store would take for shards."""
    return sorted(p.name[:5] for p in cache.rglob("*.bin"))


def test_a_shard_comes_in_ranges_each_asked_for_once(
    front: Front, s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_store(f"{s3_bucket}/root")
    monkeypatch.setattr(s3, "PIECE_BYTES", RANGE_BYTES)
    front.calls.clear()
    check(FeatureStore.open(url, KEY, cache=tmp_path))
    whole = [("00000", a, min(a + 15, 71)) for a in range(0, 72, 16)]
    assert ranges(front) == whole + [("00001", a, a + 15) for a in range(0, 48, 16)]
    check(FeatureStore.open(url, KEY, cache=tmp_path))
    assert len(ranges(front)) == 8  # the second time from here


def test_processes_that_open_one_store_fetch_each_shard_once(
    front: Front, s3_bucket: str, tmp_path: Path
) -> None:
    """Another process waits for the one that is fetching, and then takes what lies there."""
    url = write_store(f"{s3_bucket}/root")
    store = FeatureStore.open(url, KEY, cache=tmp_path / "mine")
    entry = store.version.manifest.files[1]
    mine = local_shards(store.version, [entry], tmp_path / "mine")[0]
    place = tmp_path / "shared" / mine.relative_to(tmp_path / "mine")
    place.parent.mkdir(parents=True)
    with place.with_name(f".{place.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        front.calls.clear()
        other = opening(url, tmp_path / "shared")
        try:
            while f"-> FLOCK  ADVISORY  WRITE {other.pid} " not in Path("/proc/locks").read_text():
                assert other.poll() is None, other.communicate()[1].decode()
            assert believed(tmp_path / "shared") in ([], ["00001"])  # the other shard is not locked
            place.write_bytes(mine.read_bytes())
            fcntl.flock(lock, fcntl.LOCK_UN)
            assert other.wait(60) == 0, other.communicate()[1].decode()
        finally:
            other.kill()
            other.communicate()
    assert {shard for shard, _, _ in ranges(front)} == {"00001"}
    check(FeatureStore.open(url, KEY, cache=tmp_path / "shared"))


def test_what_a_killed_process_left_is_not_believed(front: Front, s3_bucket: str, tmp_path: Path) -> None:
    url = write_store(f"{s3_bucket}/root")
    processes: list[subprocess.Popen[bytes]] = []

    def kill(call: Call) -> None:
        if call.path.endswith(".bin") and call.method == "GET" and processes:
            processes[0].send_signal(signal.SIGKILL)

    front.watch = kill
    with opening(url, tmp_path) as victim:
        processes.append(victim)
        assert victim.wait(60) == -signal.SIGKILL
    processes.clear()
    assert believed(tmp_path) == []
    left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
    assert any(name.endswith(".part") for name in left)
    check(FeatureStore.open(url, KEY, cache=tmp_path))
    assert believed(tmp_path) == ["00000", "00001"]
    assert not list(tmp_path.rglob("*.part"))


def test_bytes_that_are_not_the_manifests_are_refused(s3_bucket: str, tmp_path: Path) -> None:
    url = write_store(f"{s3_bucket}/root")
    shard = next(f.path for f in storage.list_files(url) if f.path.startswith("shards/00001"))
    storage.write_bytes(f"{url}/{shard}", bytes(48))
    with pytest.raises(VersionError, match=r"00001-.*\.bin: its bytes are not those of the manifest"):
        FeatureStore.open(url, KEY, cache=tmp_path)
    assert believed(tmp_path) == ["00000"]
    assert not list(tmp_path.rglob("*.part"))


def test_a_shard_is_written_from_the_memory_it_was_made_in(s3_bucket: str, tmp_path: Path) -> None:
    data = np.arange(48, dtype=np.uint8)
    for url in (f"{s3_bucket}/shard.bin", str(tmp_path / "shard.bin")):
        storage.write_bytes(url, data.data)
        assert storage.read_bytes(url) == data.tobytes()
