"""A build opens each image once and decodes it once, over all its processes: counted where Python and Pillow do it."""

from __future__ import annotations

import csv
import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from infra.base.versions import open_version

REPOSITORY = Path(__file__).resolve().parents[2]
COUNTER = '''
"""Read by every Python that starts with this folder on its path: the driver, Ray's workers and whatever they start."""
import hashlib, os, sys
from PIL import ImageFile

_log = os.open({log!r}, os.O_WRONLY | os.O_CREAT | os.O_APPEND)


def _opened(event, arguments):
    if event == "open" and isinstance(arguments[0], str) and arguments[0].startswith({root!r}):
        os.write(_log, f"opened\\t{{arguments[0]}}\\n".encode())


def _decodes(image, prepare=ImageFile.ImageFile.load_prepare):
    where = image.fp.tell()
    image.fp.seek(0)
    os.write(_log, f"decoded\\t{{hashlib.sha256(image.fp.read()).hexdigest()}}\\n".encode())
    image.fp.seek(where)
    prepare(image)


sys.addaudithook(_opened)
ImageFile.ImageFile.load_prepare = _decodes
'''
SECOND_READ = """
from infra.base import storage

read_once = storage.read_bytes
storage.read_bytes = lambda url: (read_once(url), read_once(url))[1]
"""
SECOND_DECODE = """
import pipelines.collected

decode_once = pipelines.collected.decode
pipelines.collected.decode = lambda *a, **k: (decode_once(*a, **k), decode_once(*a, **k))[1]
"""


def counted(root: Path, place: Path, plant: str = "") -> tuple[Counter[str], Counter[str]]:
    """How often a build opens each file below the root, and decodes each content."""
    place.mkdir()
    log = place / "log"
    (place / "sitecustomize.py").write_text(COUNTER.format(log=str(log), root=f"{root}/") + plant)
    loose = {"tau_valid": 4, "tau_high": 0.99, "tau_centric": 0.98, "tau_count": 2}
    recipe = {
        "source": {"kind": "image_folder", "root": str(root)},
        "thresholds": {"default": loose},
        "images_per_part": 8,
    }
    (place / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [sys.executable, "-m", "infra.cli", "build", "--config", str(place / "recipe.yaml")]
    environment = os.environ | {"PYTHONPATH": f"{place}{os.pathsep}{REPOSITORY}"}
    subprocess.run(
        [*command, "--out", str(place / "built")],
        env=environment,
        check=True,
        capture_output=True,
        timeout=240,
    )
    assert len(open_version(str(place / "built")).table("quadruples")) > 0
    found: dict[str, Counter[str]] = {"opened": Counter(), "decoded": Counter()}
    for line in log.read_text().splitlines():
        event, _, what = line.partition("\t")
        found[event][what] += 1
    return found["opened"], found["decoded"]


@pytest.fixture(scope="module")
def photos(photo_folder: Any) -> Path:
    root = photo_folder(domains=("toys",), instances=6, images=5)
    assert len(list(csv.reader((root / "boxes.csv").open()))) == 31
    return root


@pytest.mark.slow
@pytest.mark.ray
def test_each_image_is_opened_once_and_decoded_once(photos: Path, tmp_path: Path) -> None:
    images = sorted(photos.rglob("*.jpg"))
    assert len(images) == 30
    opened, decoded = counted(photos, tmp_path / "once")
    assert {p: n for p, n in opened.items() if p.endswith(".jpg")} == {str(p): 1 for p in images}
    assert decoded == {hashlib.sha256(p.read_bytes()).hexdigest(): 1 for p in images}


@pytest.mark.slow
@pytest.mark.ray
def test_a_second_read_and_a_second_decode_are_counted(photos: Path, tmp_path: Path) -> None:
    images = sorted(photos.rglob("*.jpg"))
    opened, decoded = counted(photos, tmp_path / "twice", SECOND_READ + SECOND_DECODE)
    assert {p: n for p, n in opened.items() if p.endswith(".jpg")} == {str(p): 2 for p in images}
    assert decoded == {hashlib.sha256(p.read_bytes()).hexdigest(): 2 for p in images}
