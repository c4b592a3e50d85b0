"""What the tests of the sources share: drawn images as bytes, files by URL, tars, and what a source says."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from infra.base import storage
from pipelines.records import LISTING, REASONS
from pipelines.sources.base import Source


def picture(seed: int, side: int = 24, kind: str = "JPEG") -> bytes:
    """A drawn image as a file: blobs and bars, another one for each seed."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", (side, side), tuple(rng.integers(0, 256, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(6):
        x, y = rng.integers(0, side, 2).tolist()
        w, h = rng.integers(side // 8, side // 2, 2).tolist()
        shape = pen.ellipse if rng.random() < 0.5 else pen.rectangle
        shape((x, y, x + w, y + h), fill=tuple(rng.integers(0, 256, 3).tolist()))
    stream = io.BytesIO()
    image.save(stream, kind)
    return stream.getvalue()


def write(root: str, files: dict[str, bytes | str]) -> None:
    """Files below a root, local or on S3."""
    for name, data in files.items():
        storage.write_bytes(storage.join(root, name), data.encode() if isinstance(data, str) else data)


def tar(members: Iterable[tuple[str, bytes]], *more: tarfile.TarInfo) -> bytes:
    """A tar of these members, in order; `more` are headers without data."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as archive:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for info in more:
            archive.addfile(info)
    return stream.getvalue()


def rows(source: Source) -> list[dict[str, Any]]:
    """What a source lists; it must be sorted, of the schema, and without an image twice."""
    tables = list(source.listing())
    assert all(table.schema == LISTING for table in tables)
    found = [row for table in tables for row in table.to_pylist()]
    keys = [(r["domain"], r["instance_id"], r["image_id"]) for r in found]
    assert keys == sorted(keys)
    assert len({r["image_id"] for r in found}) == len(found)
    return found


def refused(source: Source) -> dict[str, tuple[str, str]]:
    """Key → reason and detail of what a source refuses."""
    found = list(source.rejects())
    assert all(r["stage"] == "collect" and r["entity"] == "images" and r["reason"] in REASONS for r in found)
    assert all(r["detail"] and "\n" not in r["detail"] for r in found)
    assert [r["key"] for r in found] == sorted(r["key"] for r in found)
    return {r["key"]: (r["reason"], r["detail"]) for r in found}


def reasons(source: Source) -> dict[str, str]:
    """Key → reason of what a source refuses."""
    return {key: reason for key, (reason, _) in refused(source).items()}
