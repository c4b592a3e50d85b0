"""What a run holds beside numbers, on its way to MLflow: files where they lie, and the data it was made of."""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from infra.base import storage
from infra.base.errors import OacirError

DIGEST_LENGTH, NAME_LENGTH, SOURCE_LENGTH = 36, 500, 65_535
"""Limits of MLflow's servers for the digest, the name and the source of a dataset."""
UP = "../"
"""Begins the URL of a file of the run's own folder, so that the folder may be moved."""
Record = dict[str, Any]


def file_record(folder: str, path: str, url: str, sha256: str) -> Record:
    """A file that is to be among a run's artifacts. It is read when it is sent, and refused if it changed until then.

    Args:
        folder: of the spool, which lies directly in the folder of the run.
        path: among the artifacts.
        url, sha256: where it lies, and its hash.
    """
    run = folder.rstrip("/").rpartition("/")[0]
    kept = UP + url[len(run) + 1 :] if url.startswith(f"{run}/") else url
    return {"kind": "file", "path": path, "url": kept, "sha256": sha256}


def input_record(
    name: str, url: str, content_hash: str, context: str, profile: Mapping[str, Any] | None = None
) -> Record:
    """Data that a run is made of: a dataset or a feature store.

    Args:
        name, url, content_hash: of the version.
        context: what it is to the run: training, features, evaluation.
        profile: what else is said of it.
    """
    return {
        "kind": "input",
        "name": name,
        "url": url,
        "content_hash": content_hash,
        "context": context,
        "profile": dict(profile or {}),
    }


def upload(client: Any, run_id: str, folder: str, record: Mapping[str, Any]) -> str | None:
    """Bring the file of a record to the run's artifacts; twice is as once.

    Returns:
        Why it can never be sent, in a line: it is no longer there, or is another one. None where it was sent.
    """
    url = _url(folder, record["url"])
    target = PurePosixPath(record["path"])
    if not storage.exists(url):
        return f"{target}: no longer lies at {url}"
    with tempfile.TemporaryDirectory(prefix="oacir-artifact-") as name:
        copy = Path(name) / target.name
        if storage.is_s3(url):
            storage.fetch(url, copy)
        else:
            shutil.copyfile(url, copy)  # what is sent is what was checked
        if _sha256(copy) != record["sha256"]:
            return f"{target}: {url} was changed after it was noted"
        above = str(target.parent)
        client.log_artifact(run_id, str(copy), None if above == "." else above)
    return None


def log_input(client: Any, run_id: str, record: Mapping[str, Any]) -> None:
    """Note on a run what data it was made of. MLflow keeps an input of a run once, by name and digest."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    url, content_hash = record["url"], record["content_hash"]
    dataset = Dataset(
        name=record["name"][:NAME_LENGTH],
        digest=content_hash[:DIGEST_LENGTH],
        source_type="s3" if storage.is_s3(url) else "local",
        source=json.dumps({"uri": url})[:SOURCE_LENGTH],
        profile=json.dumps(record["profile"] | {"content_hash": content_hash}),
    )
    tags = [InputTag("mlflow.data.context", record["context"])]
    client.log_inputs(run_id, [DatasetInput(dataset, tags)])


def _url(folder: str, kept: str) -> str:
    if not kept.startswith(UP):
        return kept
    run, slash, _ = folder.rstrip("/").rpartition("/")
    if not slash:
        raise OacirError(f"{folder}: lies in no run's folder")
    return storage.join(run, kept.removeprefix(UP))


def _sha256(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
