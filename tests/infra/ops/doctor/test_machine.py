from __future__ import annotations

from pathlib import Path

import pytest

from infra.base.errors import OacirError
from infra.ops.doctor import machine
from infra.ops.doctor.finding import Finding, guarded
from infra.ops.doctor.machine import GIB


def test_the_interpreter() -> None:
    assert machine.python().state == "ok"
    assert (machine.python("3.10.4").state, machine.python("3.12.1").state) == ("fault", "ok")
    assert "3.10.4, and >=3.11 is needed" in machine.python("3.10.4").text


def test_packages_that_are_missing_or_too_old_are_named() -> None:
    assert machine.packages().state == "ok"
    found = machine.packages(["pydantic>=2", "no-such-package>=1", "numpy>=99", 'absent; extra == "dev"'])
    assert (found.state, found.check) == ("fault", "packages")
    assert found.text.startswith("missing: no-such-package; numpy ")
    assert found.text.endswith("instead of >=99")
    assert found.fix.startswith("pip install")


def test_without_a_gpu_it_is_a_fault_only_where_one_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(machine, "has_gpu", lambda: False)
    assert (machine.cuda(False).state, machine.cuda(True).state) == ("ok", "fault")
    monkeypatch.setattr(machine, "has_gpu", lambda: True)
    told = machine.cuda(False)
    assert (told.state, told.text[:15]) == ("fault", "there is a GPU,")


def test_the_tightest_disk_decides() -> None:
    states = {2.1: "warning", 1.9: "fault", 20: "ok"}
    for gib, state in states.items():
        found = machine.disk("s3://b/r", {"/tmp": 500 * GIB, "/data": int(gib * GIB)})
        assert found.state == state
    assert "/data" in machine.disk("s3://b/r", {"/tmp": 500 * GIB, "/data": GIB}).fix
    assert machine.disk("/nowhere/at/all").text.count("GiB free") in (
        1,
        2,
    )  # of /, where there is no such folder


def test_shared_memory_holds_rays_share_of_the_memory() -> None:
    short = machine.shared_memory(size=64 << 20, memory=100 * GIB)
    assert short.state == "warning"
    assert "--shm-size=30g" in short.fix
    assert machine.shared_memory(size=30 * GIB, memory=100 * GIB).state == "ok"
    assert (
        machine.shared_memory(size=200 * GIB, memory=4000 * GIB).state == "ok"
    )  # Ray takes no more than that


def test_room_of_a_feature_store(tmp_path: Path) -> None:
    room = 257 * 1408 * 2  # bfloat16 tokens of a ViT-g
    found = machine.feature_room(1_000_000, room, str(tmp_path), free=700 * GIB)
    assert found.state == "ok"
    assert "1,000,000 images × 0.72 MB = 674.0 GiB, kept in" in found.text
    short = machine.feature_room(1_000_000, room, "s3://b/r", free=600 * GIB)
    assert short.state == "fault"
    assert "fetched to by each machine that trains" in short.text


def test_a_number_of_images_or_the_name_of_a_benchmark() -> None:
    assert [machine.images_named(t) for t in ("1,000,000", "12_000", "7", "world", "s3://b/7", "")] == [
        1_000_000, 12_000, 7, None, None, None,
    ]  # fmt: skip


def test_a_check_that_fails_itself_is_a_finding() -> None:
    def told() -> Finding:
        raise OacirError("s3://b: no credentials; set KEYS")

    def untold() -> Finding:
        raise ZeroDivisionError("a\nb")

    assert str(guarded("storage", told)) == "fault    storage   s3://b: no credentials; set KEYS"
    assert guarded("ray", untold).text == "ZeroDivisionError: a b"
