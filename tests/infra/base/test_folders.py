from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest

from infra.base import storage
from infra.base.errors import OacirError


def put(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def listed(root: Path) -> list[str]:
    return [file.path for file in storage.list_files(str(root))]


def test_a_circle_of_links_is_walked_once(tmp_path: Path) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    (tmp_path / "a" / "up").symlink_to("..")
    (tmp_path / "b" / "self").symlink_to(".")
    (tmp_path / "b" / "loop").symlink_to("loop")
    assert listed(tmp_path) == [
        "a/1.jpg",
        "b/2.jpg",
        "b/loop",
    ]  # a link to itself is a file that nobody can read


def test_a_folder_keeps_its_own_name_whatever_the_links_to_it_are_called(tmp_path: Path) -> None:
    put(tmp_path, "m/deep/1.jpg")
    (tmp_path / "a").symlink_to("m/deep")
    (tmp_path / "z").symlink_to("m")
    assert listed(tmp_path) == ["m/deep/1.jpg"]


def test_links_out_are_followed_once_and_told_in_one_line(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(tmp_path, "photos/a/1.jpg", "disk/b/2.jpg", "disk/c/3.jpg")
    (tmp_path / "photos" / "b").symlink_to(tmp_path / "disk" / "b")
    (tmp_path / "photos" / "c").symlink_to(tmp_path / "disk" / "c")
    (tmp_path / "photos" / "again").symlink_to(tmp_path / "disk")
    (tmp_path / "disk" / "back").symlink_to(tmp_path / "photos")
    with caplog.at_level(logging.WARNING):
        assert listed(tmp_path / "photos") == ["a/1.jpg", "again/b/2.jpg", "again/c/3.jpg"]
    (message,) = caplog.messages
    assert message.startswith(f"{tmp_path}/photos: links lead out of it and are followed, the first: ")
    assert message.endswith(f"photos/again -> {tmp_path}/disk")


def test_inner_links_need_no_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "a/1.jpg")
    (tmp_path / "b").symlink_to("a")
    assert listed(tmp_path) == ["a/1.jpg"]
    assert not caplog.messages


def test_a_folder_that_cannot_be_listed_stops_the_listing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path, "a/1.jpg", "b/2.jpg")
    scandir = os.scandir

    def refusing(path: Any) -> Any:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(
        OacirError, match=r"/b: this folder cannot be listed \(Permission denied\); .*chmod u\+rx"
    ):
        listed(tmp_path)


def test_no_folder_has_no_files(tmp_path: Path) -> None:
    put(tmp_path, "file")
    assert listed(tmp_path / "absent") == []
    assert listed(tmp_path / "file") == []
