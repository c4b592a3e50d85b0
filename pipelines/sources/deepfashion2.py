"""DeepFashion2: `train/` and `validation/`, each with `image/000001.jpg` and `annos/000001.json`.

The layout and the fields are those of https://github.com/switchablenorms/DeepFashion2 (README, "Data Organization"
and "Data Description"): an annotation has `source`, `pair_id` and one entry for each garment, `item1`, `item2` …,
with `style`, `category_id`, `category_name`, `bounding_box` [x1, y1, x2, y2] and more. The test set has no
annotations and is not read.

What an instance is. Garments with the same style above 0 in photos of the same pair_id are the same article; style 0
belongs to no article (README, and evaluation/evaluation.md). Numbers of the two sets are independent, and where
annotators gave one style number to garments of two categories they cannot be one thing. So an instance is (set,
pair_id, category_id, style > 0), `fashion/train-000123-01-2`; the category is `category_name`, the box the
annotation's. Articles in several colours are for `variants` of the recipe to split.

A photo shows several articles, but the tables that follow have one row for an image: in a gallery the same pixels
under two names would be two candidates of equal score, of which one counts as wrong. So each photo goes to one of its
articles: that with the most photos, which is the outfit's main piece and keeps groups large; ties go to the lower
instance, two garments of one article to the larger box. How many articles of photos were passed over is logged.
"""

from __future__ import annotations

import functools
import json
import logging
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import PurePosixPath
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from infra.base import storage
from infra.base.config import Config
from pipelines.sources.scans import in_parallel
from pipelines.sources.tables import TabledSource, boxes, files_below, match, rows

log = logging.getLogger(__name__)

DOMAIN = "fashion"
SETS = ("train", "validation")
PER_SCAN, READERS = 2000, 8
CORNERS = ("x1", "y1", "x2", "y2")
ITEMS = pa.schema(
    [(n, pa.string()) for n in ("key", "instance", "category", "reason", "detail")]
    + [(n, pa.float64()) for n in CORNERS]
)
"""A garment that is an article; or a photo without any, and the reason."""


class DeepFashion2Config(Config):
    """DeepFashion2, train and validation."""

    kind: Literal["deepfashion2"] = "deepfashion2"
    """Which source this is."""
    root: str
    """URL of the folder that holds train/ and validation/ (either may be absent)."""


class DeepFashion2(TabledSource):
    """The source over such a folder."""

    name = "deepfashion2"
    layout = "<root>/train/image/000001.jpg, train/annos/000001.json, and the same in validation/"

    def __init__(self, config: DeepFashion2Config) -> None:
        super().__init__(config.root)

    def look(self) -> pa.Table:
        """See `TabledSource`."""
        files = pa.concat_tables([files_below(self.root, name) for name in SETS])
        files = files.filter(pc.match_substring_regex(files["path"], "^[^/]+/(image|annos)/"))
        parts = [f"{s}/{part}/" for s in SETS for part in ("image", "annos")]
        there = {p for p in parts if pc.any(pc.starts_with(files["path"], p)).as_py()}
        if not there:
            raise self.wrong(f"no {' and no '.join(parts)}")
        return files

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """See `TabledSource`."""
        photos = files.filter(pc.match_substring_regex(files["path"], "^[^/]+/image/"))
        named = pc.match_substring_regex(files["path"], "^[^/]+/annos/[^/]+[.]json$")
        paths = files["path"].filter(named).to_pylist()
        batches = [json.dumps(paths[i : i + PER_SCAN]) for i in range(0, len(paths), PER_SCAN)]
        scan = functools.partial(scan_annotations, root=self.root)
        items = pa.concat_tables(
            [ITEMS.empty_table(), *in_parallel(scan, batches, "read the annotations", "batches")]
        )
        claims = one_article_each(items)
        found, refused = match(claims, photos.append_column("key", photos["path"]), "annos/")
        return rows(found, DOMAIN), refused


def scan_annotations(item: str, root: str) -> pa.Table:
    """The garments of some annotation files, as `ITEMS`; a photo without any has one row that says why.

    Args:
        item: their paths, as a JSON list.
        root: of the source.

    Raises:
        OacirError: a file cannot be read.
    """
    paths = json.loads(item)
    with ThreadPoolExecutor(READERS) as pool:  # stores answer in milliseconds
        texts = pool.map(lambda path: storage.read_bytes(storage.join(root, path)), paths)
        rows = [row for path, text in zip(paths, texts, strict=True) for row in garments(path, text)]
    return pa.Table.from_pylist(rows, ITEMS)


def garments(path: str, text: bytes) -> list[dict[str, Any]]:
    """The articles that an annotation names, as rows of `ITEMS`; or one row that says why there is none."""
    part, name = path.split("/")[0], PurePosixPath(path).stem
    key = f"{part}/image/{name}.jpg"
    found: list[dict[str, Any]] = []
    problem = ("no_identity", "no garment has a style above 0")
    try:
        said = json.loads(text)
        entries = [garment for name, garment in said.items() if re.fullmatch(r"item\d+", name)]
        for garment in entries:
            if int(garment["style"]) <= 0:
                continue
            corners = [float(v) for v in garment["bounding_box"]]
            if len(corners) != 4 or boxes(np.array([corners]))[1][0].as_py():
                problem = ("bad_label", f"bounding_box {str(corners)[:80]} encloses no area")
                continue
            pair, kind, style = int(said["pair_id"]), int(garment["category_id"]), int(garment["style"])
            article = {
                "instance": f"{part}-{pair:06d}-{kind:02d}-{style}",
                "category": str(garment["category_name"]),
            }
            found.append({"key": key} | article | dict(zip(CORNERS, corners, strict=True)))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        found, problem = (
            [],
            ("bad_label", f"{path}: {type(error).__name__} {' '.join(str(error).split())[:150]}"),
        )
    return found or [{"key": key, "reason": problem[0], "detail": problem[1]}]


def one_article_each(items: pa.Table) -> pa.Table:
    """Each photo once, as a claim: of the article with the most photos, then the lowest name, the largest garment."""
    photos_of = items.group_by("instance").aggregate([("key", "count_distinct")])
    photos = photos_of["key_count_distinct"].take(pc.index_in(items["instance"], photos_of["instance"]))
    area = pc.multiply(pc.subtract(items["x2"], items["x1"]), pc.subtract(items["y2"], items["y1"]))
    order = [
        ("key", "ascending"),
        ("photos", "descending"),
        ("instance", "ascending"),
        ("area", "descending"),
    ]
    ranked = items.append_column("photos", photos).append_column("area", area).sort_by(order).combine_chunks()
    keys = ranked["key"].combine_chunks()
    first = pa.concat_arrays([pa.array([True] * bool(len(keys))), pc.not_equal(keys[1:], keys[:-1])])
    chosen = ranked.filter(first)
    log.info("of %d garments of articles %d stand for their photos", len(items), len(chosen))
    corners = np.column_stack([chosen[n].to_numpy() for n in CORNERS])
    return chosen.select(["key", "instance", "category", "reason", "detail"]).append_column(
        "box", boxes(corners)[0]
    )
