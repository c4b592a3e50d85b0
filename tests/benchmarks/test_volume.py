"""The parts of the volume benchmark: images that are distinct and repeatable, and processes that are all counted."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def repository(monkeypatch):
    monkeypatch.syspath_prepend(str(REPOSITORY))


def test_fewer_images_are_the_first_of_more():
    from benchmarks.volume_photos import FEWEST, MOST, plan

    many, few = list(plan(1000, 3)), list(plan(300, 3))
    assert sum(i.images for i in many) == 1000
    assert sum(i.images for i in few) == 300
    assert few[:-1] == many[: len(few) - 1]
    assert all(FEWEST <= i.images <= MOST for i in many[:-1])
    assert [i.first for i in many] == np.cumsum([0, *(i.images for i in many)])[:-1].tolist()


def test_images_are_distinct_repeatable_and_carry_their_number():
    from benchmarks.volume_photos import MARK_BITS, MARK_CELL_PX, Instance, draw

    instance = Instance(number=70_001, first=123_456, images=6)
    drawn = list(draw(instance, 0))
    assert drawn == list(draw(instance, 0))
    assert len({data for data, _ in drawn}) == 6
    for offset, (data, (x, y, w, h)) in enumerate(drawn):
        image = Image.open(io.BytesIO(data))
        assert (image.format, image.size) == ("JPEG", (512, 512))
        assert 0 <= x < x + w <= 512
        assert 0 <= y < y + h <= 512
        grey, half = np.asarray(image.convert("L")), MARK_CELL_PX // 2
        cells = [divmod(bit, MARK_BITS // 4) for bit in range(MARK_BITS)]
        light = [grey[r * MARK_CELL_PX + half, c * MARK_CELL_PX + half] > 127 for r, c in cells]
        assert sum(int(on) << bit for bit, on in enumerate(light)) == 123_456 + offset


@pytest.mark.slow
def test_drawing_goes_on_where_it_stopped(tmp_path, capsys):
    from benchmarks import volume_photos
    from benchmarks.volume import bare_loop, image_paths

    root = volume_photos.make(tmp_path, 40, 0, processes=1)
    paths = image_paths(root)
    before = {p: Path(p).read_bytes() for p in paths}
    assert len(set(before.values())) == len(before) == 40 == len(list(root.rglob("*.jpg")))
    for path in (root / "boxes.csv", tmp_path / "drawn/00000.json", Path(paths[7])):
        path.unlink()
    assert volume_photos.make(tmp_path, 40, 0, processes=1) == root
    assert {p: Path(p).read_bytes() for p in image_paths(root)} == before
    fewer = image_paths(volume_photos.first(tmp_path, 13, 0))
    assert [Path(p).read_bytes() for p in fewer] == [before[p] for p in paths[:13]]
    assert 0 < bare_loop(paths)["cpu_share"] <= 1.1
    with pytest.raises(SystemExit, match="holds other images"):
        volume_photos.make(tmp_path, 41, 0)


def test_a_family_is_counted_whole_and_strangers_are_not(tmp_path):
    from benchmarks.machine import FamilyMemory

    (tmp_path / "file").write_bytes(bytes(30 << 20))
    work = (
        "import pathlib, sys, time; held = bytearray(150 << 20); "
        f"data = pathlib.Path({str(tmp_path / 'file')!r}).read_bytes(); print('there', flush=True); sys.stdin.read()"
    )
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {work!r}])"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with FamilyMemory(every_s=0.05) as memory:
        member = subprocess.Popen([sys.executable, "-c", parent], env=memory.environment(), **pipes)
        stranger = subprocess.Popen([sys.executable, "-c", work], **pipes)
        for process in (member, stranger):
            assert process.stdout.readline() == b"there\n"
        looks = memory.looks
        while memory.looks < looks + 2:  # one that began when both were there
            assert member.poll() is None
        read = memory.read_bytes("other")
        for process in (member, stranger):
            process.communicate()
    assert memory.processes == 2
    assert 180 << 20 < memory.peak_bytes < 300 << 20
    assert 30 << 20 < read < 40 << 20
    assert memory.read_bytes("driver") == 0


def test_the_arithmetic_of_100_million_images_by_hand():
    from benchmarks.scaling import lines

    build = {
        "images": 1000,
        "image_bytes": 50_000_000,
        "instances": 100,
        "parts": 4,
        "collect_and_filter_images_per_s": 1000.0,
        "worker_seconds": {"annotate": 1.5, "candidates": 0.25, "gallery": 0.25},
        "version_bytes": 3_000_000,
        "version_files": 80,
        "manifest_files": 40,
        "manifest_entry_bytes": 200.0,
    }
    near = {"hashes": 100_000_000, "max_bits": 8, "seconds": 7200.0}
    step = {"step": "deal", "per": "instance", "bytes_each": 1000, "microseconds_each": 12.0}
    reads = {"s3": {"cpu_ms": 2.1}, "local": {"cpu_ms": 0.1}}
    said = {line.what: line.value for line in lines({"builds": [build], "cores": 2}, near, [step], reads)}
    assert said["collect + filter from S3, a core"] == "250 images/s"  # 2 ms to collect, 2 ms to get
    assert said["collect + filter"] == "111 core hours"  # 10^8 / 250 / 3600
    assert said["the stages after"] == "56 core hours"  # 10^8 x 2 ms
    assert said["on these machines"] == "0.7 h, $7"  # 166.7 / 256 cores; x 16 x 0.714
    assert said["read from S3"] == "5.0 TB"
    assert said["GET requests"] == "100 million, $40"
    assert said["written"] == "300 GB, $7 a month"
    assert (said["parts"], said["files"]) == ("5,000", "100,000, $0.50 of PUTs")
    assert said["manifest"] == "50,000 entries, 10 MB"
    assert said["a pass over near-duplicates, one core"] == "2 h"
    assert said["driver: deal"] == "10 GB, 2 min"


@pytest.mark.skipif(
    not (REPOSITORY / "benchmarks/results/volume.json").exists(), reason="volume was not measured yet"
)
def test_the_document_says_what_was_measured():
    from benchmarks.scaling import measured, table

    assert table(measured()) in (REPOSITORY / "docs/scaling.md").read_text()
