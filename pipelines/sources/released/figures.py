"""What an imported dataset says of itself, in the form of a built one, and what makes its scores differ from others."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

import pyarrow as pa

from pipelines.gallery import gallery_hash
from pipelines.sources.released.base import Release
from pipelines.summary import QUERY_SPLITS


def figures(release: Release, tables: Mapping[str, pa.Table], missing: int) -> dict[str, Any]:
    """The figures of an imported dataset; `missing` is how many named images are not there."""
    images = tables["images"].select(["domain", "split"]).to_pylist()
    columns = ["domain", "split", "instance_id", "modification_text"]
    queries = tables["quadruples"].select(columns).to_pylist()
    listed = Counter(row["domain"] for row in release.images.values())
    used = Counter((row["domain"], row["split"]) for row in images)
    asked = Counter((q["domain"], q["split"]) for q in queries)
    instances = {(q["domain"], q["split"], q["instance_id"]) for q in queries}
    shown = Counter(i[:2] for i in instances)
    words = Counter[str]()
    for query in queries:
        words[query["domain"]] += len(query["modification_text"].split())
    splits = (*QUERY_SPLITS, "hidden")
    galleries: dict[str, Any] = {}
    for row in tables["gallery"].to_pylist():
        members, distractors = galleries.setdefault(row["gallery_id"], ([], []))
        (distractors if row["is_distractor"] else members).append(row["image_id"])
    return {
        "release": {
            "kind": release.kind,
            "annotation_licence": release.annotation_licence,
            "records": dict(release.records),
        },
        "protocol": release.protocol,
        "notes": [*release.notes, *_warnings(release, tables, missing)],
        "domains": {
            d: {
                "images_listed": listed[d],
                "images_used": {s: used[d, s] for s in (*splits, "reserve")},
                "instances": {s: shown[d, s] for s in (*splits, "reserve")},
                "queries": {s: asked[d, s] for s in splits},
                "mean_words": round(words[d] / n, 2) if (n := sum(asked[d, s] for s in splits)) else None,
            }
            for d in sorted(listed)
        },
        "galleries": {
            place: {
                "images": len(members) + len(distractors),
                "distractors": {"named": len(distractors)},
                "named": len(release.galleries[place]),
                "sha256": gallery_hash([*members, *distractors]),
            }
            for place, (members, distractors) in sorted(galleries.items())
        },
    }


def _warnings(release: Release, tables: Mapping[str, pa.Table], missing: int) -> Iterator[str]:
    """What makes a score on this import differ from a published one, or easier than it looks."""
    present = Counter(tables["gallery"]["gallery_id"].to_pylist())
    for place, count in sorted(present.items()):
        named = len(release.galleries[place])
        if count < named:
            yield f"gallery {place} lacks {named - count:,} of its {named:,} images: its scores compare with no other"
    late = Counter(row["reason"] for row in release.refused)
    if late["missing_image"]:
        yield f"{late['missing_image']:,} queries lack an image and were refused ({missing:,} files are missing)"
    columns = ["domain", "split", "instance_id", "reference_id", "target_ids"]
    queries = tables["quadruples"].select(columns).to_pylist()
    if queries and all(q["instance_id"] in release.images for q in queries):
        yield "the release names no instances: each image is its own, so R_ID says what R says"
    asked = Counter((q["domain"], q["split"]) for q in queries)
    for domain in sorted({d for d, split in asked if split == "train" and not asked[d, "dev"]}):
        yield f"{domain} has no dev queries: no group of its training queries is small enough, or dev_share is 0"
    digests = {row["image_id"]: row["sha256"] for row in tables["images"].to_pylist()}
    trained: set[str] = set()
    for query in queries:
        if query["split"] == "train":
            trained |= {digests[i] for i in (query["reference_id"], *query["target_ids"])}
    ranked = {
        digests[row["image_id"]]
        for row in tables["gallery"].to_pylist()
        if row["split"] in ("test", "hidden")
    }
    if trained & ranked:
        yield f"{len(trained & ranked):,} photos of the test galleries are also trained on (same bytes)"
