"""One command at a time in a folder, whatever became of the one before."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from s3_server import s3_bucket

from infra.base import hold, storage
from infra.base.errors import OacirError
from infra.base.hold import Holder, held

OTHER = """
import sys, time
from infra.base.hold import held
with held(sys.argv[1], "training"):
    print("held", flush=True)
    time.sleep(60)
"""
ROOT = Path(__file__).parents[3]


@pytest.fixture(params=["disk", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> object:
    if request.param == "disk":
        return (yield str(tmp_path / "run"))
    with s3_bucket("held") as bucket:
        yield f"{bucket}/{request.node.originalname}"


def other(folder: str) -> subprocess.Popen[str]:
    """A process that holds the folder."""
    made = subprocess.Popen(
        [sys.executable, "-c", OTHER, folder], cwd=ROOT, stdout=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert made.stdout is not None
    assert made.stdout.readline() == "held\n"
    return made


def elsewhere(number: int = 1, **changed: object) -> Holder:
    """A process of another machine."""
    fields = {
        "what": "training", "machine": "m2", "host": "worker-7", "pid": number, "began": 1.0,
        "since": "2026-01-01T00:00:00+00:00", "token": str(number),
    }  # fmt: skip
    return Holder.model_validate(fields | changed)


def put(folder: str, holder: Holder, number: int = 1) -> None:
    storage.write_bytes(storage.join(folder, f"hold-{number:06d}.json"), holder.model_dump_json().encode())


def files(folder: str) -> list[str]:
    return [file.path for file in storage.files_in(folder)]


def test_the_second_of_two_is_refused_and_a_killed_one_is_no_hindrance(folder: str) -> None:
    first = other(folder)
    with pytest.raises(OacirError, match=f"another command works here .training, process {first.pid} on "):
        held(folder, "training").__enter__()
    first.send_signal(signal.SIGSTOP)  # it may go on any time
    with pytest.raises(OacirError, match="another command works here"):
        held(folder, "training").__enter__()
    first.kill()
    first.wait()
    began = time.monotonic()
    with held(folder, "training"):
        assert time.monotonic() - began < hold.EXPIRES_S / 2
        assert files(folder)[-1] == "hold-000002.json"
    assert files(folder) == []


def test_one_that_failed_lets_others_in_and_the_numbers_go_on(folder: str) -> None:
    for number in (1, 2, 3):
        with suppress(ZeroDivisionError), held(folder, "training"):
            assert f"hold-{number:06d}.json" in files(folder)
            raise ZeroDivisionError
    with held(folder, "training"):
        assert files(folder) == ["hold-000003.json", "hold-000004.json"]
    assert files(folder) == []


def test_one_of_another_machine_is_waited_for_and_only_one_takes_over(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "EXPIRES_S", 1.0)
    put(folder, elsewhere())
    got: list[str] = []
    over = threading.Event()

    def take() -> None:
        try:
            with held(folder, "training"):
                got.append("held")
                over.wait(30)
        except OacirError as error:
            got.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(4)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while len(got) < 4 and time.monotonic() - began < 20:
        time.sleep(0.05)
    waited = time.monotonic() - began
    over.set()
    for thread in threads:
        thread.join()
    assert waited > 1.0
    assert got.count("held") == 1
    assert sum("another command works here" in told for told in got) == 3


def test_one_of_another_machine_that_goes_on_is_left_alone(
    folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hold, "EXPIRES_S", 20.0)
    put(folder, elsewhere())
    told = threading.Timer(1.0, put, (folder, elsewhere(renewed=1)))
    told.start()
    with pytest.raises(OacirError, match="process 1 on worker-7, since 2026"):
        held(folder, "training").__enter__()
    told.join()


def test_who_was_not_heard_of_in_time_finds_out(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hold, "RENEWED_EVERY_S", 0.05)
    with held(folder, "training") as mine:
        mine.require()
        first = storage.read_bytes(storage.join(folder, "hold-000001.json"))
        while storage.read_bytes(storage.join(folder, "hold-000001.json")) == first:
            time.sleep(0.01)
        put(folder, elsewhere(7), 2)
        limit = time.monotonic() + 10
        while mine.taken_by is None and time.monotonic() < limit:
            time.sleep(0.01)
        with pytest.raises(OacirError, match=r"another one has taken over .training, process 7 on worker-7"):
            mine.require()
    assert "hold-000002.json" in files(folder)


def test_a_damaged_hold_is_named(tmp_path: Path) -> None:
    (tmp_path / "hold-000003.json").write_text("{")
    with pytest.raises(OacirError, match=r"hold-000003\.json: damaged; delete it if no other"):
        held(str(tmp_path), "training").__enter__()
