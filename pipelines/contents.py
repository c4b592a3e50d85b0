"""The content hash of a version, computed anew from the rows and files that lie there: what `data verify` holds against
the manifest. One function for each kind; the verbs that commit such versions say the same at the time of writing."""

from __future__ import annotations

from collections.abc import Callable

from infra.base import storage, versions
from infra.base.catalogue import table_name
from infra.base.versions import Kind, Version
from pipelines.records import TABLES
from pipelines.stages import schema_name, table_hash


def recompute(version: Version) -> str | None:
    """The content hash as the version's tables and files give it; None for a kind that has no such rule.

    Raises:
        OacirError, OSError, ValueError: a file is missing or is no table.
    """
    rule = RULES.get(version.manifest.kind)
    return None if rule is None else rule(version)


def _dataset(version: Version) -> str:
    """Every table as a multiset of rows (`stages.publish`); one part of it in memory at a time."""
    parts: dict[str, list[int]] = {}
    for file in version.manifest.files:
        name = table_name(file.path)
        if file.path.endswith(".parquet") and schema_name(name) in TABLES:
            table = storage.read_table(version.path(file.path))
            parts.setdefault(name, []).append(table_hash(table, schema_name(name)))
    return versions.content_hash({name: versions.combine(hashes) for name, hashes in parts.items()})


def _features(version: Version) -> str:
    """The bytes of every shard, and the key of tower, preprocessing and images (`embed`)."""
    shards = {f.path: f.sha256 for f in version.manifest.files if not f.path.endswith(".parquet")}
    return versions.content_hash(shards | {"key": version.manifest.key})


def _run(version: Version) -> str:
    """The bytes of the weights and the history without its times (`train`)."""
    from training.trainer import UNTIMED

    weights = {f.path: f.sha256 for f in version.manifest.files if f.path.endswith(".safetensors")}
    history = version.table("history", list(UNTIMED)).to_pylist()
    return versions.content_hash({**weights, "history": versions.rows_hash(history)})


def _evaluation(version: Version) -> str:
    """Every ranking (`evaluate`)."""
    paths = [f.path for f in version.manifest.files if f.path.startswith("rankings/")]
    rows = (versions.rows_hash(storage.read_table(version.path(p)).to_pylist()) for p in paths)
    return versions.content_hash({"rankings": versions.combine(rows)})


SWEEP_COLUMNS = ["number", "state", "values", "run_hash", "dev"]
"""Of a sweep's table of trials: what makes up its content, without times and places."""


def _sweep(version: Version) -> str:
    """What was tried and what came out of it (`tune`)."""
    rows = version.table("trials", SWEEP_COLUMNS).to_pylist()
    return versions.content_hash({"trials": versions.rows_hash(rows)})


RULES: dict[Kind, Callable[[Version], str]] = {
    "datasets": _dataset,
    "features": _features,
    "runs": _run,
    "evaluations": _evaluation,
    "sweeps": _sweep,
}
