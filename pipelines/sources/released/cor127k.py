"""COR127K (COR_Bench_V1): `csv_data/{Train,Test_1,Test_2}.csv`, `dataset/<set>/{image,mask/<kind>,mask/sup}/`.

A row asks: the object that Support_mask marks on Support_img, changed as Text says: which pixels of the scene Query_img
(Query_mask)? Kinds are `<positives>q<negatives>n`; with 0q the mask is empty. Here the scene is the target image, the
reference's mask is the query's region, and the scene's mask is a row of `instances` under the query's id. Test_1 (base
categories) is the test split of domain base, Test_2 of domain novel; Train trains base. Rows with Compose other than 0
are refused (outside_protocol), as the authors' loader leaves them out.

The folders are documented in the authors' README; the CSV columns (Id, Compose, Dataset, Target, Query_img, Query_mask,
Support_img, Support_mask, Text, query_cat) are those that their loader reads. No COR127K file was at hand. The authors
score masks; ranking scenes is ours.
"""

from __future__ import annotations

from typing import Literal

from pipelines.sources.released.base import (
    NOT_STATED,
    Release,
    ReleaseFiles,
    TrainingReleaseConfig,
    present,
    relative,
)

SETS = {"Train": ("base", "train"), "Test_1": ("base", "test"), "Test_2": ("novel", "test")}
COLUMNS = (
    "Id", "Compose", "Dataset", "Target", "Query_img", "Query_mask", "Support_img", "Support_mask", "Text",
)  # fmt: skip


class Cor127kConfig(TrainingReleaseConfig):
    """COR127K."""

    kind: Literal["cor127k"] = "cor127k"
    """Which release this is."""
    splits: list[Literal["Train", "Test_1", "Test_2"]] | None = None
    """The release's sets to read; null reads those whose CSV is there."""


def read(config: Cor127kConfig) -> Release:
    """See the module; images lie in `dataset/`."""
    files = ReleaseFiles(config, "dataset")
    release = Release("cor127k", NOT_STATED, files)
    tables = {name: f"csv_data/{name}.csv" for name in SETS}
    for name in present(files, config.splits, tables):
        _read_set(release, name, tables[name])
    release.hold_out(config.dev_share, config.seed)
    release.protocol = {"name": "cor127k", "reference": "removed", "scored": "masks"}
    release.notes.append("COR127K is scored by masks (Dice, IoU); the ranking of scenes is oacir's own")
    return release


def _read_set(release: Release, name: str, table: str) -> None:
    domain, split = SETS[name]
    files = release.files
    for _, row in files.csv(table, COLUMNS):
        release.records[name] += 1
        query_id = f"{domain}/{name}/{row['Id']}"
        if row["Compose"].strip() != "0":
            release.refuse(query_id, "outside_protocol", f"Compose is {row['Compose']}, the authors read 0")
            continue
        folder, category = row["Dataset"], row.get("query_cat") or domain
        scene, reference = (
            release.image(f"{domain}/{path}", domain, path)
            for path in (relative(f"{folder}/image/{row[key]}") for key in ("Query_img", "Support_img"))
        )
        asked = files.url(relative(f"{folder}/mask/{row['Target']}/{row['Query_mask']}"))
        anchor = files.url(relative(f"{folder}/mask/sup/{row['Support_mask']}"))
        for image_id, mask in ((scene, asked), (reference, anchor)):
            known = {"image_id": image_id, "instance_id": query_id, "category": category}
            release.instances.append({**known, "box": None, "mask_uri": mask})
        if split != "train":
            release.rank_in(f"{domain}/{split}", [scene])
        release.ask(
            query_id,
            domain,
            split,
            reference,
            [scene],
            row["Text"],
            category=category,
            mask_uri=anchor,
            extra={"kind": row["Target"], "id": row["Id"]},
        )
