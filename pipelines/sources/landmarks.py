"""Google Landmarks v2, the train set: `train/a/b/c/abc….jpg` and its CSV files beside the folder.

The layout is that of https://github.com/cvdfoundation/google-landmark (README, "Download `train` set" and "Extracting
the data"): an image lies in folders named by the first three characters of its id.
- `train_clean.csv` (landmark_id, images: ids with spaces between) or `train.csv` (id, url, landmark_id) say which
  landmark an image shows: the instance. The clean list is read where it is there, unless the recipe says otherwise.
- `train_label_to_hierarchical.csv` gives the kind of landmark (hierarchical_label), which is the category: a landmark's
  own name would match no other instance, so that no distractor could share it. Without that file the name from
  `train_label_to_category.csv` (a Wikimedia URL) is the category; without both, "landmark".
- `train_attribution.csv` (id, url, author, license, title) gives each image's licence and attribution.
The data set gives no boxes.
"""

from __future__ import annotations

from typing import Literal
from urllib.parse import unquote

import pyarrow as pa
import pyarrow.compute as pc

from infra.base import storage
from infra.base.config import Config
from pipelines.sources.tables import TabledSource, files_below, match, read_csv, rows

DOMAIN = "landmark"
CLEAN, ALL = "train_clean.csv", "train.csv"
KINDS, NAMES = "train_label_to_hierarchical.csv", "train_label_to_category.csv"
ATTRIBUTION = "train_attribution.csv"


class LandmarksConfig(Config):
    """Google Landmarks v2, train set."""

    kind: Literal["landmarks"] = "landmarks"
    """Which source this is."""
    root: str
    """URL of the folder that holds train/ and the CSV files."""
    labels: Literal["clean", "all"] = "clean"
    """Which list says what an image shows: train_clean.csv (1.6 million images) or train.csv (4.1 million, noisy)."""


class Landmarks(TabledSource):
    """The source over such a folder."""

    name = "landmarks"
    layout = (
        f"<root>/train/<a>/<b>/<c>/<abc…>.jpg, {CLEAN} or {ALL}; if there: {KINDS}, {NAMES}, {ATTRIBUTION}"
    )

    def __init__(self, config: LandmarksConfig) -> None:
        super().__init__(config.root)
        self.labels = CLEAN if config.labels == "clean" else ALL

    def look(self) -> pa.Table:
        """See `TabledSource`."""
        tables = [
            f for f in storage.files_in(self.root) if f.path in (self.labels, KINDS, NAMES, ATTRIBUTION)
        ]
        photos = files_below(self.root, "train")
        named = [f.path for f in tables]
        if self.labels not in named or not len(photos):
            what = (
                "no train/" if self.labels in named else f"no {self.labels} (source.labels says which list)"
            )
            raise self.wrong(what)
        beside = [[f.path for f in tables], [f.size_bytes for f in tables], [f.mark for f in tables]]
        return pa.concat_tables([photos, pa.table(beside, schema=photos.schema)])

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """See `TabledSource`."""
        there = set(files.filter(pc.invert(pc.match_substring(files["path"], "/")))["path"].to_pylist())
        photos = files.filter(pc.starts_with(files["path"], "train/"))
        ids, landmarks = self._said()
        folders = [pc.utf8_slice_codeunits(ids, i, i + 1) for i in range(3)]
        names = pc.binary_join_element_wise(ids, "jpg", ".")
        claims = pa.table(
            {
                "key": pc.binary_join_element_wise("train", *folders, names, "/"),
                "id": ids,
                "instance": landmarks,
                "category": self._categories(landmarks, there),
            }
        )
        found, refused = match(claims, photos.append_column("key", photos["path"]), self.labels)
        if ATTRIBUTION in there:
            found = self._attributed(found)
        return rows(found, DOMAIN), refused

    def _said(self) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """Image ids and the landmarks that they show."""
        url = storage.join(self.root, self.labels)
        if self.labels == ALL:
            table = read_csv(url, ("id", "landmark_id")).drop_null()
            return table["id"], table["landmark_id"]
        table = read_csv(url, ("landmark_id", "images")).drop_null().combine_chunks()
        lists = pc.utf8_split_whitespace(table["images"])
        ids, owners = pc.list_flatten(lists), table["landmark_id"].take(pc.list_parent_indices(lists))
        filled = pc.not_equal(ids, "")
        return ids.filter(filled), owners.filter(filled)

    def _categories(self, landmarks: pa.ChunkedArray, there: set[str]) -> pa.ChunkedArray | pa.Array:
        if KINDS in there:
            table = read_csv(storage.join(self.root, KINDS), ("landmark_id", "hierarchical_label"))
            names = table["hierarchical_label"]
        elif NAMES in there:
            table = read_csv(storage.join(self.root, NAMES), ("landmark_id", "category"))
            names = pa.chunked_array([[_name(url) for url in table["category"].to_pylist()]], pa.string())
        else:
            return pa.repeat(DOMAIN, len(landmarks))
        named = pc.coalesce(names, DOMAIN).take(pc.index_in(landmarks, table["landmark_id"]))
        return pc.coalesce(named, DOMAIN).dictionary_encode()

    def _attributed(self, found: pa.Table) -> pa.Table:
        url = storage.join(self.root, ATTRIBUTION)
        table = read_csv(url, ("id", "license"), ("author", "title", "url"))
        table = pa.table(
            {
                "id": table["id"],
                "licence": table["license"].dictionary_encode(),
                "attribution": pa.chunked_array(
                    [_credit(batch) for batch in table.to_batches()], pa.string()
                ),
            }
        )
        here = table.take(pc.index_in(found["id"], table["id"]))
        return found.append_column("licence", here["licence"]).append_column(
            "attribution", here["attribution"]
        )


def _credit(batch: pa.RecordBatch) -> pa.Array:
    """Whom to name: author, title and URL, as far as there are any."""
    # each part with its comma or nothing; null_handling="skip" loses rows of which every part is null (pyarrow 25)
    parts = [
        pc.coalesce(pc.binary_join_element_wise(batch[n], "", ", "), "") for n in ("author", "title", "url")
    ]
    credit = pc.utf8_rtrim(pc.binary_join_element_wise(*parts, ""), ", ")
    return pc.if_else(pc.equal(credit, ""), pa.scalar(None, pa.string()), credit)


def _name(url: str | None) -> str | None:
    """The name in a Wikimedia URL: `…/Category:Happy_Valley_Racecourse`."""
    if url is None:
        return None
    return unquote(url.rsplit("/", 1)[-1].removeprefix("Category:")).replace("_", " ") or None
