"""A benchmark as parquet files that `datasets.load_dataset` opens, with a data card.

Three configurations, each with the benchmark's splits:
- `quadruples` (the default): a query a row: the reference as an image, its box, the text, ids of targets and group;
- `images`: every image once, with size, SHA-256, licence, attribution, and the instances it shows with their boxes;
- `gallery`: which images each gallery ranks.

An image column is a struct {bytes, path}, and the schema's metadata says under `huggingface` which columns are images.
So `datasets` writes parquet itself (`Features.arrow_schema`), and so its parquet builder reads it
(`Features.from_arrow_schema`) where the Arrow type of a field is exactly that of its feature. Lists are written in the
JSON form `[feature]`, which every release of `datasets` reads. The package is not needed to write the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pyarrow as pa

from infra.base import storage, versions
from infra.base.errors import OacirError
from infra.base.progress import Progress
from pipelines.exporters.datacard import SPLITS, data_card
from pipelines.records import conform

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
"""How `datasets.Image` is stored."""
NUMBERS = pa.list_(pa.float32())
STRINGS = pa.list_(pa.string())
QUADRUPLES = pa.schema(
    [
        ("query_id", pa.string()),
        ("domain", pa.string()),
        ("instance_id", pa.string()),
        ("category", pa.string()),
        ("reference_id", pa.string()),
        ("image", IMAGE),
        ("reference_box", NUMBERS),
        ("reference_mask", IMAGE),
        ("modification_text", pa.string()),
        ("target_ids", STRINGS),
        ("group_ids", STRINGS),
        ("provenance_json", pa.string()),
        ("licence", pa.string()),
        ("attribution", pa.string()),
    ]
)
IMAGES = pa.schema(
    [
        ("image_id", pa.string()),
        ("domain", pa.string()),
        ("image", IMAGE),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("sha256", pa.string()),
        (
            "instances",
            pa.list_(pa.struct([("instance_id", pa.string()), ("category", pa.string()), ("box", NUMBERS)])),
        ),
        ("licence", pa.string()),
        ("attribution", pa.string()),
    ]
)
GALLERY = pa.schema(
    [
        ("gallery_id", pa.string()),
        ("image_id", pa.string()),
        ("instance_id", pa.string()),
        ("category", pa.string()),
        ("is_distractor", pa.bool_()),
    ]
)
CONFIGS = {"quadruples": QUADRUPLES, "images": IMAGES, "gallery": GALLERY}
ROWS_PER_GROUP = 100
"""Rows of a parquet row group, so that a viewer reads few images to show a page."""
READERS = 8


def export(version: versions.Version, out: str, shard_bytes: int) -> dict[str, Any]:
    """Write the parquet files and the card `README.md`, last. Rows and files of each configuration's split.

    Raises:
        OacirError: an image is gone or changed.
    """
    images = {row["image_id"]: row for row in version.table("images").to_pylist()}
    quadruples = conform(version.table("quadruples"), "quadruples").sort_by("query_id").to_pylist()
    gallery = version.table("gallery").sort_by([("gallery_id", "ascending"), ("image_id", "ascending")])
    shown: dict[str, list[dict[str, Any]]] = {}
    for row in conform(version.table("instances"), "instances").to_pylist():
        shown.setdefault(row["image_id"], []).append({k: row[k] for k in ("instance_id", "category", "box")})
    rows: dict[str, dict[str, list[dict[str, Any]]]] = {
        "quadruples": _by_split(quadruples),
        "images": _by_split([row for _, row in sorted(images.items())]),
        "gallery": _by_split(gallery.to_pylist()),
    }
    written: dict[str, dict[str, int]] = {}
    total = sum(len(own) for config in ("quadruples", "images") for own in rows[config].values())
    with Progress("export rows", total, "rows") as progress:
        for config, by_split in rows.items():
            for split, own in by_split.items():
                filled = _filled(config, own, images, shown)
                count = _write_shards(out, config, split, filled, shard_bytes, progress)
                written.setdefault(config, {})[split] = len(own)
                if not count:
                    raise ValueError(f"no rows of {config} {split}")
    card = data_card(version, written, images.values())
    storage.write_bytes(storage.join(out, "README.md"), card.encode())
    return {"rows": written}


def _by_split(rows: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    found = {split: [row for row in rows if row["split"] == split] for split in SPLITS}
    return {split: own for split, own in found.items() if own}


def _filled(
    config: str,
    rows: Sequence[dict[str, Any]],
    images: Mapping[str, dict[str, Any]],
    shown: Mapping[str, list[dict[str, Any]]],
) -> Iterator[dict[str, Any]]:
    """Rows with the bytes of their images, a few read ahead."""
    if config == "gallery":
        yield from rows
        return
    key = "image_id" if config == "images" else "reference_id"

    def fill(row: dict[str, Any]) -> dict[str, Any]:
        image = images[row[key]]
        known = {k: image[k] for k in ("licence", "attribution")}
        data = _checked(image["uri"], image["sha256"])
        filled = row | known | {"image": {"bytes": data, "path": storage.name_of(row[key])}}
        if config == "images":
            return filled | {"instances": shown.get(row["image_id"], [])}
        mask = row["reference_mask_uri"] and _checked(row["reference_mask_uri"], row["reference_mask_sha256"])
        return filled | {
            "reference_mask": {"bytes": mask, "path": "mask.png"} if mask else None,
            "provenance_json": json.dumps(row["provenance"], sort_keys=True, ensure_ascii=False),
        }

    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(rows), READERS):
            yield from pool.map(fill, rows[start : start + READERS])


def _checked(url: str, sha256: str) -> bytes:
    data = storage.read_bytes(url)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OacirError(f"{url}: changed since the dataset was made (another sha256); make it again")
    return data


def _write_shards(
    out: str, config: str, split: str, rows: Iterator[dict[str, Any]], shard_bytes: int, progress: Progress
) -> int:
    """Write a split's files, each with about `shard_bytes` of images; how many."""
    schema = with_features(CONFIGS[config])
    waiting: list[dict[str, Any]] = []
    held = shards = 0

    def flush() -> None:
        nonlocal waiting, held, shards
        table = pa.Table.from_pylist([{n: row.get(n) for n in schema.names} for row in waiting], schema)
        _write_parquet(storage.join(out, config, f"{split}-{shards:05d}.parquet"), table)
        waiting, held, shards = [], 0, shards + 1

    for row in rows:
        waiting.append(row)
        if config != "gallery":
            held += len(row["image"]["bytes"])
            progress.update()
        if held >= shard_bytes:
            flush()
    if waiting:
        flush()
    return shards


def _write_parquet(url: str, table: pa.Table) -> None:
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    rows = ROWS_PER_GROUP if IMAGE in table.schema.types else len(table)
    pq.write_table(table, sink, compression="zstd", row_group_size=max(1, rows))
    storage.write_bytes(url, sink.getvalue().to_pybytes())


def with_features(schema: pa.Schema) -> pa.Schema:
    """The schema with the metadata from which `datasets` takes its features."""
    features = {field.name: feature_of(field.type) for field in schema}
    return schema.with_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def feature_of(kind: pa.DataType) -> Any:
    """What `datasets` calls an Arrow type, as JSON."""
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_struct(kind):
        return {field.name: feature_of(field.type) for field in kind}
    if pa.types.is_list(kind):
        return [feature_of(kind.value_type)]
    names = {pa.float32(): "float32", pa.bool_(): "bool"}
    return {"dtype": names.get(kind, str(kind)), "_type": "Value"}
