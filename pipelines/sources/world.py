"""The procedural world as a source: rendered once by Ray Data into a version of its own, then listed from there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config, recipe_hash
from pipelines import world
from pipelines.records import TABLES
from pipelines.stages import WORK, Part, Stage, StageResult, publish, run_stages
from pipelines.world.config import WorldConfig

RENDERED = "world-images"
"""Name of the rendered version: not `world`, which is the benchmark that the shipped recipe builds of it."""
WRITERS = 8


class WorldSourceConfig(Config):
    """The procedural world, rendered."""

    kind: Literal["world"] = "world"
    """Which source this is."""
    world: WorldConfig = Field(default_factory=WorldConfig)
    """Seed, sizes and counts."""


@dataclass
class RenderStage(Stage):
    """Numbers of instances → image files and their exact truth."""

    config: WorldConfig
    version_url: str
    instances_per_part: int
    name = "render"
    inputs = ()
    outputs = ("listing", "files")

    def __call__(self, part: Part) -> StageResult:
        """Render the instances of the part; a listing's uri is relative to the version."""
        import pyarrow as pa

        from pipelines.stages import StageResult
        from pipelines.world.world import render_scene, scene_specs

        listing, files, writes = [], [], []
        first = part.number * self.instances_per_part
        for domain, index in instances(self.config)[first : first + self.instances_per_part]:
            for spec in scene_specs(self.config, domain, index):
                scene = render_scene(self.config, spec)
                path = storage.join("images", scene.record["image_id"])
                writes.append((storage.join(self.version_url, path), scene.jpeg))
                digest, size = hashlib.sha256(scene.jpeg).hexdigest(), len(scene.jpeg)
                files.append({"path": path, "size_bytes": size, "sha256": digest})
                record = dict(scene.record)
                context = json.dumps(record.pop("context"), sort_keys=True)
                listing.append(
                    record | {"uri": path, "size_bytes": size, "mark": digest, "context_json": context}
                )
        with ThreadPoolExecutor(WRITERS) as pool:  # stores answer in milliseconds; pixels need the processor
            list(pool.map(lambda write: storage.write_bytes(*write), writes))
        listing.sort(key=lambda r: (r["domain"], r["instance_id"], r["image_id"]))
        return StageResult(
            {
                "listing": pa.Table.from_pylist(listing, TABLES["listing"]),
                "files": pa.Table.from_pylist(files, TABLES["files"]),
            },
            [Account(entity="images", taken_in=len(files), kept=len(files))],
        )


def instances(config: WorldConfig) -> list[tuple[str, int]]:
    """Every instance of a world, in the order of its listing."""
    return [(domain, i) for domain in sorted(config.domains) for i in range(config.instances_per_domain)]


@cache
def code_hash() -> str:
    """SHA-256 (hex) over the world's source files: a change of a look or a wording makes another world."""
    digest = hashlib.sha256()
    for file in sorted(Path(world.__file__).parent.glob("*.py")):
        digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


class WorldSource:
    """Renders the world where it is not rendered yet; see `sources.base.Source`."""

    name = "world"

    def __init__(self, config: WorldConfig, root: str, *, images_per_part: int, workers: int | None) -> None:
        self.config, self.root, self.workers = config, root, workers
        self.instances_per_part = -(-images_per_part // config.scenes_per_instance)

    def fingerprint(self) -> str:
        """Hash of the options and of the world's code: equal for equal bytes, never equal for other ones."""
        return recipe_hash(self.config, code_hash())

    def expected_images(self) -> dict[str, int]:
        """Domain → images that the world has, without rendering any."""
        from pipelines.world.world import scene_specs

        counts: dict[str, int] = dict.fromkeys(sorted(self.config.domains), 0)
        for domain, i in instances(self.config):
            counts[domain] += len(scene_specs(self.config, domain, i))
        return counts

    def rejects(self) -> Iterator[dict[str, Any]]:
        """None: every rendered file is an image."""
        yield from ()

    def listing(self) -> Iterator[pa.Table]:
        """The truth tables in order, with absolute URLs."""
        version = self.version
        for path in sorted(f.path for f in version.manifest.files if f.path.startswith("listing/")):
            table = storage.read_table(version.path(path))
            uris = [version.path(uri) for uri in table["uri"].to_pylist()]
            yield table.set_column(
                table.schema.get_field_index("uri"), table.schema.field("uri"), pa.array(uris)
            )

    @cached_property
    def version(self) -> versions.Version:
        """The rendered world; renders what is missing."""
        draft = versions.start("datasets", RENDERED, self.fingerprint(), self.config, root=self.root)
        if draft.finished:
            return versions.Version(draft.url, draft.finished)
        layout = draft.path(WORK, "layout.json")
        if not storage.exists(layout):
            storage.write_new(layout, json.dumps({"instances_per_part": self.instances_per_part}).encode())
        per_part = int(json.loads(storage.read_bytes(layout))["instances_per_part"])  # as it was begun
        stage = RenderStage(self.config, draft.url, per_part)
        parts = -(-len(instances(self.config)) // per_part)
        records = run_stages([stage], draft.url, parts, workers=self.workers, label="render the world")
        return publish(draft, records)
