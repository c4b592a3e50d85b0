"""What the OACIRR layout has no place for, written beside a release by `oacir export` and read back by `oacir import`.

`oacir.json` says which dataset was exported; `oacir/` holds, as parquet files,
- `images`: the release's name of each image → our id, domain, licence, attribution, and the instance of its folder;
- `queries`: the place of each quadruple (file and row) → our id, split (dev lies in train), targets, provenance;
- `instances`, `gallery`: as the dataset has them (several instances of an image, distractors of dev);
- `tables/`: how the dataset was made (listing, pairs, rejects, …), untouched;
- `masks/`: the masks that the two above name, relative to `oacir/`.

The texts, categories, boxes and pairs are the release's own files': who edits those imports what they wrote.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from infra.base import storage
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.records import QUADRUPLES

if TYPE_CHECKING:
    from pipelines.sources.released.base import ReleaseFiles

FILE, FOLDER = "oacir.json", "oacir"
SCHEMA_VERSION = 1
IMAGES = pa.schema(
    [
        pa.field("name", pa.string(), nullable=False),
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("domain", pa.string(), nullable=False),
        pa.field("instance_id", pa.string(), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("attribution", pa.string()),
    ]
)
IN_RELEASE = ("modification_text", "category", "reference_box")
"""Columns of a quadruple that its record in the release says."""
QUERIES = pa.schema(
    [
        pa.field("file", pa.string(), nullable=False),  # train | val, of the query's domain
        pa.field("row", pa.int64(), nullable=False),
        *(field for field in QUADRUPLES if field.name not in IN_RELEASE),
    ]
)


class Sidecar(Config):
    """The content of `oacir.json`."""

    schema_version: int = SCHEMA_VERSION
    name: str
    """Name of the exported dataset."""
    content_hash: str
    """Of the exported dataset; an import of the whole, unchanged release has the same."""
    domains: list[str]
    """Domains in the order in which Union and the leave-one-out sets hold their records."""
    sets: list[str]
    """Which of the release's sets were written."""
    tables: list[str]
    """Paths in the dataset of the files below `oacir/tables/`."""
    accounts: dict[str, list[Account]]
    """Of the exported dataset: what its tables of rejects say is stated there."""


def open_sidecar(files: ReleaseFiles) -> Sidecar | None:
    """The sidecar of a release, if it has one.

    Raises:
        OacirError: of a form this code does not know.
    """
    if not files.has(FILE):
        return None
    data = files.json(FILE)
    if not isinstance(data, dict) or data.get("schema_version") != SCHEMA_VERSION:
        raise OacirError(
            f"{storage.join(files.source, FILE)}: not a sidecar of version {SCHEMA_VERSION}; export again with this"
            " release of oacir, or delete it to import the files as any other release"
        )
    return Sidecar.model_validate(data)


def table_url(source: str, name: str) -> str:
    """Where a table of the sidecar lies."""
    return storage.join(source, FOLDER, f"{name}.parquet")


def read_rows(files: ReleaseFiles, name: str) -> list[dict[str, Any]]:
    """The rows of a table of the sidecar; its masks as URLs."""
    rows: list[dict[str, Any]] = storage.read_table(table_url(files.source, name)).to_pylist()
    for row in rows:
        for column in ("mask_uri", "reference_mask_uri"):
            if row.get(column) is not None:
                row[column] = storage.join(files.source, FOLDER, row[column])
    return rows


def dump(sidecar: Sidecar) -> bytes:
    """The bytes of `oacir.json`."""
    return json.dumps(sidecar.model_dump(mode="json"), indent=1, ensure_ascii=False).encode()
