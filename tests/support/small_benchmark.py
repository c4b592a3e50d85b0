"""A benchmark of a few hundred drawn images, written as a dataset version: what training is tested on."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw

from infra.base import storage, versions
from infra.base.config import Config
from pipelines.gallery import gallery_hash
from pipelines.records import TABLES

COLOURS = {"red": (200, 40, 40), "green": (40, 160, 60), "blue": (50, 70, 200), "grey": (128, 128, 128)}
SPLITS = ("train", "dev", "test")
SIDE_PX = 70


class SmallRecipe(Config):
    """What the benchmark depends on."""

    identities: int
    seed: int


def write_benchmark(
    root: Path,
    identities: int = 24,
    seed: int = 0,
    name: str = "small",
    domains: tuple[str, ...] = ("a", "b"),
    masked: tuple[str, ...] = (),
) -> versions.Version:
    """Every identity is a square of its own colours on the four backgrounds; two thirds train, a sixth dev and test.

    A quadruple leads from each background to the next: "put it on a <colour> background". References on the
    backgrounds `masked` have a mask too: a disc well inside the box.
    """
    recipe = SmallRecipe(identities=identities, seed=seed)
    draft = versions.start("datasets", name, f"{identities:04d}{seed:04d}", recipe, root=str(root))
    generator = np.random.default_rng(seed)
    rows: dict[str, list[dict[str, object]]] = {
        "images": [],
        "quadruples": [],
        "gallery": [],
        "instances": [],
    }
    for domain in domains:
        for identity in range(identities):
            split = SPLITS[max(0, identity % 6 - 3)]
            _identity(rows, draft, domain, f"{domain}-{identity:03d}", split, generator, masked)
    files = []
    for table, entries in rows.items():
        schema = TABLES[table]
        full = [{f.name: entry.get(f.name) for f in schema} for entry in entries]
        storage.write_table(draft.path(f"{table}.parquet"), pa.Table.from_pylist(full, schema=schema))
        files.append(versions.file_entry(draft.url, f"{table}.parquet", len(full)))
    content = {table: versions.rows_hash(entries) for table, entries in rows.items() if table != "images"}
    content["images"] = versions.rows_hash({**e, "uri": ""} for e in rows["images"])
    galleries: dict[str, list[str]] = {}
    for row in rows["gallery"]:
        galleries.setdefault(str(row["gallery_id"]), []).append(str(row["image_id"]))
    stated = {place: {"sha256": gallery_hash(ids)} for place, ids in galleries.items()}
    return draft.commit(
        content_hash=versions.content_hash(content), files=files, figures={"galleries": stated}
    )


def _identity(
    rows: dict[str, list[dict[str, object]]],
    draft: versions.Draft,
    domain: str,
    instance: str,
    split: str,
    generator: np.random.Generator,
    masked: tuple[str, ...],
) -> None:
    inner, outer = (tuple(int(v) for v in generator.integers(0, 256, 3)) for _ in range(2))
    boxes, ids, masks = {}, {}, {}
    for colour, rgb in COLOURS.items():
        image = Image.new("RGB", (SIDE_PX, SIDE_PX), rgb)
        x, y = (int(v) for v in generator.integers(4, SIDE_PX - 30, 2))
        draw = ImageDraw.Draw(image)
        draw.rectangle((x, y, x + 23, y + 23), fill=outer)
        draw.rectangle((x + 7, y + 7, x + 16, y + 16), fill=inner)
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        image_id = f"{domain}/{instance}/{colour}.png"
        uri = draft.path("photos", image_id)
        storage.write_bytes(uri, buffer.getvalue())
        ids[colour], boxes[colour] = image_id, [float(x), float(y), x + 24.0, y + 24.0]
        masks[colour] = _mask(draft.path("masks", image_id), x, y) if colour in masked else {}
        rows["images"].append(
            {
                "image_id": image_id, "domain": domain, "uri": uri, "width": SIDE_PX, "height": SIDE_PX,
                "sha256": hashlib.sha256(buffer.getvalue()).hexdigest(), "split": split,
            }
        )  # fmt: skip
        rows["instances"].append(
            {"image_id": image_id, "instance_id": instance, "category": "square", "box": boxes[colour]}
        )
        if split != "train":
            rows["gallery"].append(
                {
                    "gallery_id": f"{domain}/{split}", "split": split, "image_id": image_id,
                    "instance_id": instance, "category": "square", "is_distractor": False,
                }
            )  # fmt: skip
    colours = list(COLOURS)
    for here, there in zip(colours, colours[1:] + colours[:1], strict=True):
        rows["quadruples"].append(
            {
                "query_id": f"{ids[here]}>{ids[there]}", "domain": domain, "split": split, "instance_id": instance,
                "category": "square", "reference_id": ids[here], "reference_box": boxes[here],
                "modification_text": f"put it on a {there} background", "target_ids": [ids[there]],
                "provenance": {"annotator": "test"}, **masks[here],
            }
        )  # fmt: skip


def _mask(uri: str, x: int, y: int) -> dict[str, str]:
    """Write a disc of 17 px inside the square of 24 px at x, y; the mask columns of a quadruple."""
    mask = Image.new("L", (SIDE_PX, SIDE_PX))
    ImageDraw.Draw(mask).ellipse((x + 2, y + 5, x + 18, y + 21), fill=255)
    buffer = io.BytesIO()
    mask.save(buffer, "PNG")
    storage.write_bytes(uri, buffer.getvalue())
    return {
        "reference_mask_uri": uri,
        "reference_mask_sha256": hashlib.sha256(buffer.getvalue()).hexdigest(),
    }
