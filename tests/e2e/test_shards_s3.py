"""A whole build from tar shards on S3, interrupted by the loss of the store and taken up again."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from photo_sources import picture, tar, write
from s3_front import front_of
from s3_server import s3_bucket

sys.path.insert(0, str(Path(__file__).parent))

from drilling import THRESHOLDS, Build

RECIPE = """name: shards
source: {{kind: webdataset, root: {root}, instance: json.id, domain: cups, box: json.box, box_format: xywh}}
{thresholds}
workers: 2
images_per_part: 10
"""
INSTANCES, IMAGES, SHARDS = 12, 5, 3


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with s3_bucket("shards") as url:
        yield url


def shards() -> dict[str, bytes]:
    """Shards whose samples are those of the instances in turn."""
    members: dict[str, list[tuple[str, bytes]]] = {f"{n:03d}.tar": [] for n in range(SHARDS)}
    for instance in range(INSTANCES):
        for n in range(IMAGES):
            said = {"id": f"cup-{instance:02d}", "box": [8, 8, 20 + 4 * n, 16]}
            name = f"{instance:02d}-{n}"
            members[f"{instance % SHARDS:03d}.tar"] += [
                (f"{name}.jpg", picture(instance * IMAGES + n, 64)),
                (f"{name}.json", json.dumps(said).encode()),
            ]
    return {name: tar(content) for name, content in members.items()}


def recipe(folder: Path, root: str) -> Path:
    path = folder / f"{len(list(folder.iterdir()))}.yaml"
    path.write_text(RECIPE.format(root=root, thresholds=THRESHOLDS))
    return path


@pytest.mark.long
@pytest.mark.ray
@pytest.mark.timeout(600)
def test_shards_on_s3_are_read_by_ranges_and_a_lost_store_costs_nothing(bucket: str, tmp_path: Path) -> None:
    files: dict[str, Any] = shards()
    write(str(tmp_path / "shards"), files)
    write(f"{bucket}/shards", files)
    local = Build(recipe(tmp_path, str(tmp_path / "shards")), tmp_path / "local").run()
    with front_of(os.environ["AWS_ENDPOINT_URL"]) as front:
        there = recipe(tmp_path, f"{bucket}/shards")

        def build() -> Build:
            return Build(there, f"{bucket}/root", AWS_ENDPOINT_URL=front.url, OACIR_S3_PATIENCE_S="2")  # type: ignore[arg-type]

        front.watch = lambda call: (
            front.outages.setdefault(front.came, float("inf"))
            if call.method == "PUT" and "_accounts/filter" in call.path
            else None
        )  # the store goes when the first part of Stage 2 is finished
        with pytest.raises(RuntimeError, match=r"exit code 1: .*oacir: error: .*run the same command again"):
            build().run()
        before = front.puts()
        assert sum("/_accounts/" in path for path in before) >= 2
        front.watch = lambda call: None
        front.up()
        said = build().run()
        assert said["content_hash"] == local["content_hash"]
        assert said["accounts"] == local["accounts"]
        redone = [path for path, times in front.puts().items() if times > before[path] > 0]
        assert len(redone) <= 0.1 * len(before)
        assert not [path for path in redone if "/_accounts/" in path]
        reads = [c for c in front.calls if c.method == "GET" and c.path.endswith(".tar") and not c.fault]
        assert all("range" in c.headers for c in reads)
        images = INSTANCES * IMAGES
        assert (
            images <= len(reads) <= 2 * images + 2 * SHARDS * 2
        )  # each image by itself; headers in few blocks
