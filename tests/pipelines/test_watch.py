from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest

from infra.base import storage
from pipelines.collect import CollectStage
from pipelines.images import ImageLimits
from pipelines.records import TABLES
from pipelines.sources.image_folder import ImageFolder, ImageFolderConfig
from pipelines.sources.released.opening import OpenStage
from pipelines.stages import Part
from pipelines.watch import Hung, Watch, alone_or_together, hung_in, hung_records
from pipelines.watchdog import SLOT, note_path

WORKER = """
import ctypes, sys, time
from pipelines.watch import Guard, Hung
guard = Guard(sys.argv[1], {"annotate": 60.0, "collect": 0.5})
print(guard.process.pid, flush=True)
watch = guard.watch("collect", 3, Hung())
"""
HANGS = {
    "in Python": "while True: pass",
    "in C": "ctypes.CDLL(None).pause()",
    "in C that holds the interpreter": "ctypes.PyDLL(None).pause()",
}


def worker(code: str, version: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WORKER + code, str(version)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("how", HANGS)
def test_a_record_that_hangs_is_noted_and_ends_its_worker(how: str, tmp_path: Path) -> None:
    done = worker(f"with watch.over(17):\n    {HANGS[how]}", tmp_path)
    assert done.returncode == -signal.SIGKILL, done.stderr
    (note,) = (p for p in tmp_path.rglob("*") if p.is_file())
    assert str(note.relative_to(tmp_path)) == "_work/hung/collect/part-00003/17+1.json"
    said = json.loads(note.read_text())
    assert said == {"stage": "collect", "part": 3, "first": 17, "records": 1, "seconds": 0.5}
    assert hung_in(str(tmp_path), "collect", 3) == Hung(frozenset({17}))
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == int(done.stdout)], timeout=10)
    assert not psutil.pid_exists(int(done.stdout))


def test_the_time_is_that_of_a_record_and_of_a_group_as_many_times_as_long(tmp_path: Path) -> None:
    code = """
for record in range(8):
    with watch.over(record): time.sleep(0.15)
with watch.over(0, 4): time.sleep(1.2)
time.sleep(0.7)  # between records there is no limit
try:
    with watch.over(9): raise KeyError
except KeyError: time.sleep(0.7)
assert guard.alive
"""
    done = worker(code, tmp_path)
    assert done.returncode == 0, done.stderr
    assert not list(tmp_path.iterdir())
    psutil.wait_procs([p for p in psutil.process_iter() if p.pid == int(done.stdout)], timeout=10)
    assert not psutil.pid_exists(int(done.stdout))  # the watchdog ends with its worker


def test_a_watch_writes_what_it_is_at_only_while_it_is() -> None:
    slot: Any = bytearray(SLOT.size)
    watch = Watch(2.0, slot=slot, stage=1, part=5)
    with watch.over(7, 3):
        *what, moment = SLOT.unpack_from(slot)
        assert what == [1, 5, 7, 3, 2.0]
        assert moment > 0
    assert not any(slot)


def test_notes_name_records_that_hung_alone_and_together(tmp_path: Path) -> None:
    for stage, part, first, count in (("a", 0, 3, 1), ("a", 0, 9, 1), ("a", 2, 4, 3), ("b", 1, 0, 1)):
        storage.write_bytes(str(tmp_path / note_path(stage, part, first, count)), b"{}")
    assert hung_records(str(tmp_path), ["a", "c"]) == {
        "a": {0: Hung(frozenset({3, 9})), 2: Hung(together=frozenset({4, 5, 6}))},
        "c": {},
    }
    assert hung_in(str(tmp_path), "a", 2) == Hung(together=frozenset({4, 5, 6}))
    assert hung_in(str(tmp_path), "a", 1) == Hung()


def test_those_that_hung_together_are_done_one_by_one() -> None:
    hung = Hung(alone=frozenset({1}), together=frozenset({4, 5}))
    groups = list(alone_or_together([0, 1, 2, 3, 4, 5, 7, 8, 9], hung, 2))
    assert groups == [[0, 2], [3], [4], [5], [7, 8], [9]]


def test_an_import_rejects_what_hung_unopened(photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=1, images=3)
    (root / "toys/thing-00/1.jpg").unlink()
    os.mkfifo(root / "toys/thing-00/1.jpg")
    listing = pa.concat_tables(ImageFolder(ImageFolderConfig(root=str(root))).listing())
    empty = {n: TABLES[n].empty_table() for n in ("instances", "quadruples")}
    tables = {"_work/listing": listing} | {f"_work/{n}/read": t for n, t in empty.items()}
    made = OpenStage(ImageLimits(), "")(Part(0, tables, Watch(30.0, Hung(frozenset({1}))))).tables
    (reject,) = made["_work/rejects/open"].to_pylist()
    assert (reject["key"], reject["reason"]) == ("toys/thing-00/1.jpg", "timeout")
    assert made["_work/images/opened"]["image_id"].to_pylist() == [f"toys/thing-00/{n}.jpg" for n in (0, 2)]


def collected(root: Path, watch: Watch, sizes: list[int]) -> Any:
    """Collect of one part, and how many images were described at once."""
    stage = CollectStage(ImageLimits(), None)
    stage.setup()
    true = stage._describer
    assert true is not None

    class Spy:
        def describe(self, images: Any) -> Any:
            sizes.append(len(images))
            return true.describe(images)

    stage._describer = Spy()  # type: ignore[assignment]
    listing = pa.concat_tables(ImageFolder(ImageFolderConfig(root=str(root))).listing())
    return stage(Part(0, {"listing": listing}, watch))


def test_collect_rejects_what_hung_unopened_and_describes_suspects_alone(photo_folder: Any) -> None:
    root = photo_folder(domains=("toys",), instances=2, images=5)
    (root / "toys/thing-00/1.jpg").unlink()
    os.mkfifo(root / "toys/thing-00/1.jpg")  # whoever opens it waits for ever
    sizes: list[int] = []
    hung = Hung(alone=frozenset({1}), together=frozenset({4, 5}))
    result = collected(root, Watch(30.0, hung), sizes)
    (reject,) = result.tables["rejects/collect"].to_pylist()
    assert (reject["key"], reject["reason"]) == ("toys/thing-00/1.jpg", "timeout")
    assert reject["detail"] == "not done after 30 s"
    images = next(a for a in result.accounts if a.entity == "images").check()
    assert (images.taken_in, images.kept, images.rejected) == (10, 9, {"timeout": 1})
    assert sizes == [3, 1, 1, 4]
    whole: list[int] = []
    again = collected(root, Watch(30.0, Hung(alone=frozenset({1}))), whole)
    assert whole == [9]
    for name in ("descriptors", "measures", "instances"):
        assert result.tables[name] == again.tables[name]
