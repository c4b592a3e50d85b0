"""Hostile files on S3 meet the same fate as on disk."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from s3_server import s3_bucket

from infra.base import storage
from pipelines.collect import CollectStage, write_listing
from pipelines.images import ImageLimits
from pipelines.sources.image_folder import ImageFolder, ImageFolderConfig
from pipelines.stages import part_path, prepare, run_part


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("nasty") as url:
        yield url


def fate(root: str, version: str) -> tuple[dict[str, tuple[int, int]], dict[str, tuple[str, str]]]:
    """Image → its size, and image → why it was refused and at which look."""
    source = ImageFolder(ImageFolderConfig(root=root))
    assert write_listing(source, version, 1000).parts == 1
    stage = CollectStage(ImageLimits(), None)
    prepare(stage, version)
    run_part(stage, version, 0)

    def table(name: str) -> list[dict[str, object]]:
        rows: list[dict[str, object]] = storage.read_table(
            storage.join(version, part_path(name, 0))
        ).to_pylist()
        return rows

    kept = {str(r["image_id"]): (r["width"], r["height"]) for r in table("_work/images/collected")}
    rejects = [*table("rejects/listing"), *table("rejects/collect")]
    return kept, {str(r["key"]): (r["reason"], r["stage"]) for r in rejects}  # type: ignore[return-value]


def test_every_nasty_file_on_s3_is_taken_or_refused_as_it_is_locally(
    shared_dir: Path, tmp_path: Path, bucket: str
) -> None:
    folder = tmp_path / "photos" / "d" / "nasty"
    shutil.copytree(shared_dir / "data" / "nasty", folder)
    files = [p for p in folder.rglob("*") if p.is_file()]
    for file in files:
        url = storage.join(bucket, "photos", str(file.relative_to(tmp_path / "photos")))
        storage.write_bytes(url, file.read_bytes())
    local = fate(str(tmp_path / "photos"), str(tmp_path / "version"))
    assert fate(f"{bucket}/photos", f"{bucket}/version") == local
    kept, refused = local
    assert len(kept) > 10
    assert len(refused) > 10
    assert "d/nasty/directory.jpg" in refused
