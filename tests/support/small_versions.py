"""Dataset versions of a few rows, written by the very functions that stages write with, in milliseconds."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from pipelines.gallery import gallery_hash
from pipelines.records import TABLES
from pipelines.stages import Part, PartRecord, Stage, StageResult, prepare, publish, run_part

Rows = dict[str, list[dict[str, Any]]]


class SmallRecipe(Config):
    """What the version depends on."""

    name: str = "small"
    seed: int = 0


class RowsStage(Stage):
    """Gives out the rows it was made with."""

    name = "collect"

    def __init__(self, rows: Rows, accounts: list[Account]) -> None:
        self.rows, self.given = rows, accounts
        self.outputs = tuple(rows)  # type: ignore[misc]

    def __call__(self, part: Part) -> StageResult:
        """One part with all rows."""
        tables = {
            name: pa.Table.from_pylist(rows, TABLES[name.split("/")[0]]) for name, rows in self.rows.items()
        }
        return StageResult(tables, self.given)


def rows_of(instances: dict[str, str], images: int = 2) -> Rows:
    """Tables of instances `<domain>/<name>` → split: a ring of quadruples over the images of each."""
    rows: Rows = {"images": [], "quadruples": [], "gallery": [], "splits": [], "rejects/collect": []}
    for instance, split in instances.items():
        domain = instance.split("/")[0]
        place = split if split in ("dev", "test") else "test"
        row = {"instance_id": instance, "domain": domain, "category": "toy", "split": split}
        rows["splits"].append(row | {"gallery": place})
        ids = [f"{instance}/{n}.jpg" for n in range(images)]
        for n, image_id in enumerate(ids):
            digest = hashlib.sha256(image_id.encode()).hexdigest()
            image = {"image_id": image_id, "domain": domain, "uri": image_id, "width": 9, "height": 9}
            rows["images"].append(image | {"sha256": digest, "split": split})
            if split in ("dev", "test"):
                member = {"gallery_id": f"{domain}/{split}", "split": split, "image_id": image_id}
                member |= {"instance_id": instance, "category": "toy", "is_distractor": False}
                rows["gallery"].append(member)
            query = {"query_id": f"{image_id}>", "domain": domain, "split": split, "instance_id": instance}
            query |= {"category": "toy", "reference_id": image_id, "reference_box": [0.0, 0.0, 4.0, 4.0]}
            query |= {"modification_text": "put it on a table", "target_ids": [ids[(n + 1) % images]]}
            rows["quadruples"].append(query | {"provenance": {"annotator": "test"}})
    return rows


def write_version(
    root: str | Path, rows: Rows, *, name: str = "small", seed: int = 0, accounts: list[Account] | None = None
) -> versions.Version:
    """A finished dataset version of these rows, in one part, as `stages.publish` makes it."""
    recipe = SmallRecipe(name=name, seed=seed)
    draft = versions.start("datasets", name, f"{seed:016d}", recipe, root=str(root))
    stage = RowsStage(rows, accounts or [])
    prepare(stage, draft.url)
    record: PartRecord = run_part(stage, draft.url, 0)
    places: dict[str, list[str]] = {}
    for row in rows.get("gallery", []):
        places.setdefault(row["gallery_id"], []).append(row["image_id"])
    galleries = {
        place: {"images": len(ids), "distractors": {"matched": 0, "other": 0}, "sha256": gallery_hash(ids)}
        for place, ids in places.items()
    }
    return publish(draft, {"collect": [record]}, figures={"galleries": galleries})


def overwrite(version: versions.Version, path: str, data: bytes) -> None:
    """Change a file of a finished version, as no one should."""
    storage.write_bytes(version.path(path), data)
