"""What the driver decides between filter and annotation: the instances' splits, and which images give way to others.

Both need all instances at once, but only a few bytes of each image.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.base import versions
from infra.base.accounts import Account
from pipelines.annotate import deal
from pipelines.config import BuildRecipe, DuplicateOptions
from pipelines.duplicates import SIDES, NearDuplicates, Sightings, Vectors, candidates, judge
from pipelines.records import TABLES
from pipelines.stages import part_path, read_parts, table_hash, write_part

NEAR = "near_duplicates"
REASON = "near_duplicate_across_splits"
NAMED = 5
"""Near-duplicates that the figures name."""


@dataclass(frozen=True)
class Dealt:
    """What was decided and written."""

    splits: pa.Table
    """Rows of `records.SPLITS`."""
    files: list[versions.FileEntry]
    hashes: dict[str, int]
    account: Account
    """Of the images of valid instances."""
    figures: dict[str, Any]
    """Of the near-duplicates."""


def write_splits(recipe: BuildRecipe, version_url: str, parts: int, keep: Mapping[str, str]) -> Dealt:
    """Deal the instances and find near-duplicates; writes `splits`, `near_duplicates` and `rejects/split`.

    Args:
        recipe: of the build.
        version_url: where the tables lie.
        parts: how many parts they have.
        keep: instance → split of the version that this one updates.
    """
    groups = [row for table in read_parts(version_url, "groups", parts) for row in table.to_pylist()]
    if recipe.grounding is not None:  # any photo may get a box yet
        groups = [row | {"boxed": row["pairs"]} for row in groups]
    same = _same_content(version_url, parts)
    rows = deal(groups, same, recipe.split, recipe.gallery.dev_share, recipe.seed, keep)
    splits = pa.Table.from_pylist(rows, TABLES["splits"])
    found = _near_duplicates(recipe.duplicates, version_url, parts, splits)
    files, hashes = [], {}
    for name, path, table in (
        ("splits", "splits.parquet", splits),
        (NEAR, f"{NEAR}.parquet", found.table),
        ("rejects/split", part_path("rejects/split", 0), found.rejects()),
    ):
        files.append(write_part(version_url, path, table))
        hashes[name] = table_hash(table, name.split("/")[0])
    return Dealt(splits, files, hashes, found.account, found.figures)


def _same_content(version_url: str, parts: int) -> Iterator[tuple[str, str]]:
    """Pairs of instances that hold the same bytes.

    Eight bytes of every hash are held in memory (16 MB for two million images), whole rows only for repeated ones.
    """
    marks = [
        np.array([int(h[:16], 16) for h in table["sha256"].to_pylist()], np.uint64)
        for table in read_parts(version_url, "_work/images/collected", parts, ["sha256"])
    ]
    values, counts = np.unique(np.concatenate(marks), return_counts=True)
    repeated = {f"{int(v):016x}" for v in values[counts > 1]}
    if not repeated:
        return
    owners: dict[str, set[str]] = {}
    images = read_parts(version_url, "_work/images/collected", parts, ["sha256"])
    instances = read_parts(version_url, "instances", parts, ["instance_id"])
    for image_table, owner_table in zip(images, instances, strict=True):
        pairs = zip(image_table["sha256"].to_pylist(), owner_table["instance_id"].to_pylist(), strict=True)
        for sha256, instance in pairs:
            if sha256[:16] in repeated:
                owners.setdefault(sha256, set()).add(instance)
    for same in owners.values():
        yield from ((min(same), other) for other in sorted(same) if len(same) > 1)


@dataclass(frozen=True)
class _Found:
    table: pa.Table
    account: Account
    figures: dict[str, Any]

    def rejects(self) -> pa.Table:
        """The images that give way, with what they give way to."""
        rows = [
            {
                "stage": "split",
                "entity": "images",
                "key": r["image_id"],
                "reason": REASON,
                "detail": f"{r['bits']} bits from {r['other_id']} ({r['other_split']})",
            }
            for r in self.table.to_pylist()
            if r["rejected"]
        ]
        return pa.Table.from_pylist(rows, TABLES["rejects"])


def _near_duplicates(options: DuplicateOptions, version_url: str, parts: int, splits: pa.Table) -> _Found:
    sightings = _sightings(version_url, parts, splits)
    needed = np.flatnonzero(candidates(sightings, options.max_bits))
    vectors, ids = _described(version_url, parts, needed)
    found = judge(sightings, needed, vectors, options.max_bits, options.min_cosine)
    names = dict(zip(needed.tolist(), ids, strict=True))
    instance_ids = splits["instance_id"].to_pylist()
    rows = []
    for image, other, bits, rejected in zip(
        found.images.tolist(), found.other.tolist(), found.bits.tolist(), found.rejected.tolist(), strict=True
    ):
        rows.append(
            {
                "image_id": names[image],
                "instance_id": instance_ids[sightings.instances[image]],
                "split": SIDES[sightings.sides[image]],
                "other_id": names[other],
                "other_instance_id": instance_ids[sightings.instances[other]],
                "other_split": SIDES[sightings.sides[other]],
                "bits": bits,
                "rejected": rejected,
            }
        )
    valid = int((sightings.sides != SIDES.index("reserve")).sum())
    used, gone = int(sightings.used.sum()), int(found.rejected.sum())
    account = Account(
        entity="images",
        taken_in=valid,
        kept=used - gone,
        rejected={REASON: gone} if gone else {},
        not_sampled=valid - used,
    )
    return _Found(pa.Table.from_pylist(rows, TABLES[NEAR]), account, _figures(options, found, rows))


def _sightings(version_url: str, parts: int, splits: pa.Table) -> Sightings:
    """What `duplicates` needs of every image that passed the filter, in the order of the listing."""
    number = {instance: i for i, instance in enumerate(splits["instance_id"].to_pylist())}
    side = np.array([SIDES.index(s) for s in splits["split"].to_pylist()], np.int64)
    hashes, instances, used = [], [], []
    for part in _filtered(version_url, parts, ["image_id", "phash"]):
        hashes.append(part.descriptors["phash"].to_numpy())
        instances.append(np.array([number[i] for i in part.instances.to_pylist()], np.int64))
        in_pairs = pa.chunked_array([*part.pairs["reference_id"].chunks, *part.pairs["target_id"].chunks])
        used.append(pc.is_in(part.image_ids, value_set=in_pairs).to_numpy(zero_copy_only=False))
    owner = np.concatenate(instances)
    return Sightings(np.concatenate(hashes), owner, side[owner], np.concatenate(used))


def _described(version_url: str, parts: int, needed: Any) -> tuple[Vectors, list[str]]:
    """Descriptors and names of the images at some positions, ascending; only these are held."""
    vectors: list[Vectors] = []
    ids: list[str] = []
    first = 0
    for part in _filtered(version_url, parts, ["image_id", "descriptor"]) if len(needed) else ():
        count = len(part.image_ids)
        begin, end = np.searchsorted(needed, [first, first + count])  # ascending
        here = needed[begin:end] - first
        first += count
        if len(here):
            vectors.append(np.stack(part.descriptors["descriptor"].take(pa.array(here)).to_numpy()))
            ids += part.image_ids.take(pa.array(here)).to_pylist()
    return (np.concatenate(vectors) if vectors else np.zeros((0, 1), np.float32)), ids


@dataclass(frozen=True)
class _Part:
    """The images of a part that passed the filter, row by row."""

    image_ids: pa.ChunkedArray
    instances: pa.ChunkedArray
    descriptors: pa.Table
    pairs: pa.Table
    """All pairs of the part."""


def _filtered(version_url: str, parts: int, columns: list[str]) -> Iterator[_Part]:
    tables = zip(
        read_parts(version_url, "_work/images/filtered", parts, ["image_id"]),
        read_parts(version_url, "instances", parts, ["image_id", "instance_id"]),
        read_parts(version_url, "descriptors", parts, columns),
        read_parts(version_url, "pairs", parts, ["reference_id", "target_id"]),
        strict=True,
    )
    for images, instances, descriptors, pairs in tables:
        rows = pc.index_in(
            images["image_id"], value_set=instances["image_id"]
        )  # both are in the order of collect
        yield _Part(images["image_id"], instances["instance_id"].take(rows), descriptors.take(rows), pairs)


def _figures(
    options: DuplicateOptions, found: NearDuplicates, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    gone = [r for r in rows if r["rejected"]]
    named = sorted(gone or rows, key=lambda r: (r["bits"], r["image_id"]))[:NAMED]
    return {
        "max_bits": options.max_bits,
        "min_cosine": options.min_cosine,
        "pairs": found.pairs,
        "images": len(rows),
        "instances": len({r["instance_id"] for r in rows}),
        "pairs_across_splits": found.straddling,
        "images_rejected": dict(sorted(Counter(r["split"] for r in gone).items())),
        "images_of_the_reserve": sum(r["split"] == "reserve" for r in rows),
        "first": [{k: r[k] for k in ("image_id", "split", "other_id", "other_split", "bits")} for r in named],
    }
