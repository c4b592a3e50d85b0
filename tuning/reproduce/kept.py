"""What a finished trial leaves: its ranks and a record, the record last, so that one without it is done again."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from infra.base import storage
from infra.base.errors import OacirError

if TYPE_CHECKING:
    import pyarrow as pa

FOLDER = "trials"


class TrialKept(BaseModel):
    """A finished trial."""

    model_config = ConfigDict(frozen=True)

    name: str
    key: str
    """Hash of its training recipe, its data and what is measured: of another key it is another trial."""
    run: str
    """URL of the run."""
    run_hash: str
    train_s: float
    """Seconds of the training; of a run that was found, those of finding it."""
    measure_s: float


def keep(place: str, kept: TrialKept, ranks: pa.Table) -> None:
    """Write both.

    Args:
        place: URL of the reproduction.
        kept: the trial.
        ranks: rows of `measure.SCHEMA`.
    """
    storage.write_table(storage.join(place, FOLDER, f"{kept.name}.parquet"), ranks)
    text = json.dumps(kept.model_dump(mode="json"), indent=1)
    storage.write_bytes(storage.join(place, FOLDER, f"{kept.name}.json"), text.encode())


def find(place: str, name: str, key: str) -> TrialKept | None:
    """The finished trial of that name, if it is the same trial.

    Raises:
        OacirError: its record is damaged.
    """
    url = storage.join(place, FOLDER, f"{name}.json")
    if not storage.exists(url):
        return None
    try:
        kept = TrialKept.model_validate_json(storage.read_bytes(url))
    except ValueError as error:
        raise OacirError(f"{url}: damaged record; delete it, its trial is then done again") from error
    return kept if kept.key == key else None


def ranks_of(place: str, name: str) -> pa.Table:
    """The ranks that a finished trial left."""
    return storage.read_table(storage.join(place, FOLDER, f"{name}.parquet"))
