"""A benchmark drawn from a seed, with everything that an export must not lose, written as a dataset version."""

from __future__ import annotations

import hashlib
import io
import random
from pathlib import Path
from typing import Any

from PIL import Image
from small_release import image_bytes

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from pipelines.gallery import gallery_hash
from pipelines.images import upright_box
from pipelines.records import TABLES, conform
from pipelines.stages import part_path, schema_name, table_hash, write_part

NAMES = ("thing 1", "Böse & Co", "deep/er", "a.b", "x__y", "7")
LICENCES = (None, "CC BY 4.0", "MIT")


class Drawn(Config):
    """What the benchmark depends on."""

    seed: int


def write(
    root: Path, seed: int, domains: int = 2, instances: int = 5, masks: bool = True
) -> versions.Version:
    """A finished version: turned photos, masks, several targets, groups, dev, distractors, odd names, a refusal."""
    draw = random.Random(seed)
    draft = versions.start("datasets", "drawn", f"{seed:016x}", Drawn(seed=seed), root=str(root))
    rows: dict[str, list[dict[str, Any]]] = {n: [] for n in ("images", "instances", "quadruples", "gallery")}
    serial = 0
    for domain in [f"dom{draw.choice('AB')}{d}" for d in range(domains)]:
        for number in range(instances):
            split = ("train", "dev", "test", "reserve", "train")[number % 5]
            instance = f"{domain}/{number} {draw.choice(NAMES)}"
            ids = []
            for scene in range(draw.randint(2, 4)):
                serial += 1
                image_id = f"{instance}/{'sub/' * draw.randint(0, 1)}{scene}.{draw.choice(('jpg', 'JPG'))}"
                ids.append(_image(rows, draft, draw, image_id, instance, split, serial, masks))
            _queries(rows, draw, domain, instance, split, ids)
    for table in rows.values():
        draw.shuffle(table)
    return _commit(draft, rows)


def _image(
    rows: dict[str, list[dict[str, Any]]],
    draft: versions.Draft,
    draw: random.Random,
    image_id: str,
    instance: str,
    split: str,
    serial: int,
    masks: bool,
) -> dict[str, Any]:
    size, orientation = (draw.randint(30, 60), draw.randint(20, 60)), draw.choice((1, 1, 3, 5, 6, 7, 8))
    data = image_bytes(serial, size, orientation)
    uri = draft.path("photos", image_id)
    storage.write_bytes(uri, data)
    x, y = draw.randint(0, 10), draw.randint(0, 10)
    stored = (x, y, x + draw.randint(1, 9) + draw.choice((0, 0.5)), y + 7.0)
    box = upright_box(stored, *size, orientation)
    assert box is not None
    width, height = size if orientation < 5 else size[::-1]
    mask = {"mask_uri": None, "mask_sha256": None}
    if masks and draw.random() < 0.4:
        stream = io.BytesIO()
        Image.new("L", (width, height), 1).save(stream, "PNG")
        digest = hashlib.sha256(stream.getvalue()).hexdigest()
        mask = {"mask_uri": draft.path("masks", f"{serial}.png"), "mask_sha256": digest}
        storage.write_bytes(str(mask["mask_uri"]), stream.getvalue())
    domain = image_id.split("/")[0]
    shown = {"image_id": image_id, "category": f"kind of {domain}", "box": list(box), **mask}
    rows["instances"].append(shown | {"instance_id": instance})
    if draw.random() < 0.3:  # a second instance on the same image
        rows["instances"].append(
            {
                **shown,
                "instance_id": f"{domain}/other {serial}",
                "box": None,
                "mask_uri": None,
                "mask_sha256": None,
            }
        )
    rows["images"].append(
        {
            "image_id": image_id,
            "domain": domain,
            "uri": uri,
            "width": width,
            "height": height,
            "sha256": hashlib.sha256(data).hexdigest(),
            "licence": draw.choice(LICENCES),
            "attribution": draw.choice((None, "someone")),
            "split": split,
        }
    )
    return shown


def _queries(
    rows: dict[str, list[dict[str, Any]]],
    draw: random.Random,
    domain: str,
    instance: str,
    split: str,
    shown: list[dict[str, Any]],
) -> None:
    ids = [row["image_id"] for row in shown]
    ranked = draw.choice(("dev", "test")) if split == "reserve" else split
    if split != "train":
        rows["gallery"] += [
            {
                "gallery_id": f"{domain}/{ranked}",
                "split": ranked,
                "image_id": i,
                "instance_id": instance,
                "category": f"kind of {domain}",
                "is_distractor": split == "reserve",
            }
            for i in ids
        ]
    if split == "reserve":
        return
    for number, row in enumerate(shown):
        others = ids[:number] + ids[number + 1 :]
        rows["quadruples"].append(
            {
                "query_id": f"{draw.random():.9f}-{row['image_id']}",
                "domain": domain,
                "split": split,
                "instance_id": instance,
                "category": f"kind of {domain}",
                "reference_id": row["image_id"],
                "reference_box": row["box"],
                "reference_mask_uri": row["mask_uri"],
                "reference_mask_sha256": row["mask_sha256"],
                "modification_text": draw.choice(("on a  beach ", "at “night”", "in the rain\n")),
                "target_ids": others if draw.random() < 0.3 else others[:1],
                "group_ids": ids if draw.random() < 0.3 else None,
                "provenance": {
                    "annotator": "test",
                    "model": None,
                    "prompt_sha256": None,
                    "confidence": draw.choice((None, 0.25)),
                    "parent_id": draw.choice((None, "p")),
                    "extra_json": None,
                },
            }
        )


def _commit(draft: versions.Draft, rows: dict[str, list[dict[str, Any]]]) -> versions.Version:
    """As a build would commit it, with a table of how it was made and one refused pair."""
    extra = {
        "rejects/filter": [
            {"stage": "filter", "entity": "pairs", "key": "p", "reason": "too_similar", "detail": "d"}
        ],
        "groups": [
            {
                "instance_id": "i", "domain": "d", "category": "c", "state": "valid", "found": 3, "images": 3,
                "pairs": 1, "boxed": 1,
            }
        ],
    }  # fmt: skip
    import pyarrow as pa

    files, hashes = [], {}
    for name, own in (rows | extra).items():
        schema = TABLES[schema_name(name)]
        full = [{f.name: row.get(f.name) for f in schema} for row in own]
        table = conform(pa.Table.from_pylist(full, schema), schema_name(name))
        files.append(write_part(draft.url, part_path(name, 0), table))
        hashes[name] = table_hash(table, schema_name(name))
    galleries: dict[str, list[str]] = {}
    for row in rows["gallery"]:
        galleries.setdefault(row["gallery_id"], []).append(row["image_id"])
    return draft.commit(
        content_hash=versions.content_hash(hashes),
        files=files,
        accounts={"filter": [Account(entity="pairs", taken_in=2, kept=1, rejected={"too_similar": 1})]},
        figures={
            "galleries": {
                place: {"images": len(ids), "sha256": gallery_hash(ids)} for place, ids in galleries.items()
            }
        },
    )
