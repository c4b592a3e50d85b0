"""How work is cut and resumed: stages turn part i of some tables into part i of others, and a part is done or not.

A part is a run of whole instances, so no stage needs a shuffle. Ray Data streams part numbers through a fixed pool of
warm workers; each worker reads its part from storage, calls the stages and writes their outputs, the part's record
last. A kill loses at most the parts in flight; a second writer of the same part writes the same bytes. A part whose
worker dies is given to another one, which takes over what is done of it and skips records that hung (see `watch`).
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, ClassVar

import pyarrow as pa
from pydantic import Field

from infra.base import logs, storage, versions
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import Progress
from infra.base.ray_session import attempt
from pipelines.counters import count, version_label
from pipelines.records import TABLES, conform
from pipelines.watch import NONE_HUNG, UNWATCHED, Guard, Hung, Watch, hung_in, hung_records

log = logging.getLogger(__name__)

WORK, RECORDS = "_work", "_accounts"
MACHINE_COLUMNS = frozenset(
    {"uri", "mask_uri", "reference_mask_uri", "mark", "detail", "descriptor", "object"}
)
READERS = 16
AHEAD, AHEAD_BYTES = 8, 64 << 20
"""Parts of a table that are read at a time from a store that answers late, and how much of them may wait in memory."""
DEATHS_OF_A_PART = 10
"""So many workers may die over one part before the run stops."""


@dataclass(frozen=True)
class StageResult:
    """What a stage makes of one part."""

    tables: Mapping[str, pa.Table]
    """One table per declared output."""
    accounts: Sequence[Account] = ()
    counts: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Domain → name of a count → number; summed over the parts."""


@dataclass(frozen=True)
class Part:
    """What a stage works on."""

    number: int
    tables: Mapping[str, pa.Table]
    """One per declared input."""
    watch: Watch = UNWATCHED
    """What bounds the time of a record; of a stage with `seconds_per_record`."""


class Stage:
    """One step over parts. A subclass is a dataclass whose fields are its options; they travel to the workers.

    Tables are named by where they lie in the version: `pairs`, `rejects/filter`, `_work/images/collected` (below
    `_work` nothing is published). The schema is that of the first component after `_work/`.
    """

    name: ClassVar[str]
    inputs: ClassVar[tuple[str, ...]] = ()
    """Tables of which a part is read for each part."""
    shared: ClassVar[tuple[str, ...]] = ()
    """Tables of one file that every worker reads whole, once, into `common`."""
    outputs: ClassVar[tuple[str, ...]]
    gpus: float = 0.0
    """GPUs that a worker holds."""
    seconds_per_record: float | None = None
    """Longest time of a record, where the stage watches it; none = no limit."""
    common: Mapping[str, pa.Table]
    """The shared tables; there when `setup` is called."""

    def setup(self) -> None:
        """Make heavy state, once per worker."""

    def __call__(self, part: Part) -> StageResult:
        """Part i of the inputs → part i of the outputs."""
        raise NotImplementedError


class PartRecord(Config):
    """Proof that a part of a stage is done: written after all its outputs."""

    stage: str
    part: int
    seconds: float
    accounts: list[Account]
    files: list[versions.FileEntry]
    hashes: dict[str, str]
    """Output → hash of its rows as a multiset, 64 hex digits."""
    counts: dict[str, dict[str, int]] = Field(default_factory=dict)


def part_path(table: str, part: int) -> str:
    """Where a part of a table lies in a version."""
    return f"{table}/part-{part:05d}.parquet"


def schema_name(table: str) -> str:
    """The name in `records.TABLES` of a table named by its place."""
    return table.removeprefix(f"{WORK}/").split("/")[0]


def table_hash(table: pa.Table, name: str) -> int:
    """The hash of a table's rows as a multiset, over the columns that say what was built.

    Left out are columns that name machine paths or change marks and float measurements (descriptors, cosines,
    brightness): what they decide is in the other columns, and their last bits differ between processors.
    """
    columns = [
        f.name
        for f in TABLES[name]
        if f.name in table.column_names  # a version of earlier code may lack a nullable column of today's
        and f.name not in MACHINE_COLUMNS
        and not pa.types.is_floating(f.type)
    ]
    return versions.rows_hash(table.select(columns).to_pylist())


def write_part(version_url: str, path: str, table: pa.Table) -> versions.FileEntry:
    """Write a parquet file whole or not at all, and say what was written."""
    import pyarrow.parquet as pq

    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="zstd")
    data = sink.getvalue().to_pybytes()
    storage.write_bytes(storage.join(version_url, path), data)
    digest = hashlib.sha256(data).hexdigest()
    return versions.FileEntry(path=path, size_bytes=len(data), sha256=digest, rows=len(table))


def read_parts(
    version_url: str, table: str, parts: int, columns: Sequence[str] | None = None
) -> Iterator[pa.Table]:
    """The parts of a table in order, one in memory at a time; of S3 a few ahead, up to AHEAD_BYTES.

    Raises:
        OacirError: a part cannot be read.
    """
    urls = [storage.join(version_url, part_path(table, part)) for part in range(parts)]
    wanted = list(columns) if columns else None
    if not storage.is_s3(version_url):
        for url in urls:
            yield storage.read_table(url, wanted)
        return
    coming: deque[Future[pa.Table]] = deque()
    ahead = 1  # how large a part is shows the first one
    with ThreadPoolExecutor(AHEAD) as pool:
        try:
            for part in range(parts):
                for url in urls[part + len(coming) : part + ahead]:
                    coming.append(pool.submit(storage.read_table, url, wanted))
                found = coming.popleft().result()
                ahead = max(1, min(AHEAD, AHEAD_BYTES // max(1, found.nbytes)))
                yield found
        finally:
            for waiting in coming:
                waiting.cancel()


def prepare(stage: Stage, version_url: str) -> None:
    """Make a stage ready for `run_part` in this process."""
    stage.common = {
        name: storage.read_table(storage.join(version_url, f"{name}.parquet")) for name in stage.shared
    }
    stage.setup()


def run_part(stage: Stage, version_url: str, part: int, watch: Watch = UNWATCHED) -> PartRecord:
    """Do one part of a prepared stage: read, call, conform, write, and the record last."""
    began = time.monotonic()
    tables = {
        name: storage.read_table(storage.join(version_url, part_path(name, part))) for name in stage.inputs
    }
    result = stage(Part(part, tables, watch))
    if set(result.tables) != set(stage.outputs):
        raise ValueError(f"stage {stage.name} declares {stage.outputs} but made {sorted(result.tables)}")
    made = {name: conform(result.tables[name], schema_name(name)) for name in stage.outputs}
    with ThreadPoolExecutor(
        len(made)
    ) as pool:  # each waits for the disk or the store much longer than it works
        written = [pool.submit(write_part, version_url, part_path(n, part), t) for n, t in made.items()]
        hashes = {name: f"{table_hash(table, schema_name(name)):064x}" for name, table in made.items()}
    files = [each.result() for each in written]
    record = PartRecord(
        stage=stage.name,
        part=part,
        seconds=time.monotonic() - began,
        accounts=[a.check() for a in result.accounts],
        files=files,
        hashes=hashes,
        counts={domain: dict(counts) for domain, counts in result.counts.items()},
    )
    storage.write_bytes(_record_url(version_url, stage.name, part), record.model_dump_json().encode())
    return record


def run_stages(
    stages: Sequence[Stage], version_url: str, parts: int, *, workers: int | None, label: str
) -> dict[str, list[PartRecord]]:
    """Run the parts of a chain of stages that are not done yet, and give the records of all, by stage, in part order.

    Args:
        stages: run one after the other on each part, in the same worker.
        version_url: where the tables and records lie.
        parts: how many parts there are.
        workers: parallel workers; none = as many as the session has CPUs.
        label: what the progress line says.

    Raises:
        OacirError: a part failed; what is done stays done.
    """
    records = {stage.name: _read_records(version_url, stage.name) for stage in stages}
    # the last parts of a listing are the largest: small ones at the end let the workers end together
    pending = [p for p in reversed(range(parts)) if any(p not in done for done in records.values())]
    named = "+".join(stage.name for stage in stages)
    with logs.about(stage=named), Progress(label, parts, "parts", done=parts - len(pending)) as progress:
        for row in _stream(stages, version_url, pending, records, workers, label):
            if row["deaths"]:
                log.warning(
                    "%s, part %d: lost %d times with its worker or node", label, row["part"], row["deaths"]
                )
            if row["error"]:
                raise OacirError(f"{label}, part {row['part']}: {row['error']}") from _trace(row["trace"])
            for text in row["records"]:
                record = PartRecord.model_validate_json(text)
                records[record.stage][record.part] = record
                count(version_url, record.stage, record.accounts)
            progress.update()
    return {name: [done[p] for p in range(parts)] for name, done in records.items()}


def publish(
    draft: versions.Draft,
    records: Mapping[str, Sequence[PartRecord]],
    *,
    parents: Mapping[str, str] | None = None,
    files: Iterable[versions.FileEntry] = (),
    hashes: Mapping[str, int] | None = None,
    seconds: Mapping[str, float] | None = None,
    accounts: Mapping[str, list[Account]] | None = None,
    figures: Mapping[str, Any] | None = None,
) -> versions.Version:
    """Commit a version from the records of its stages; tables under `_work` stay behind, unpublished.

    Args:
        draft: the version.
        records: stage → records of all its parts.
        parents: role → content hash of the versions it was made from.
        files: of tables that no stage wrote.
        hashes: table → hash of its rows, of the same.
        seconds: of the same; a stage's are those of its workers, summed.
        accounts: of the same.
        figures: kind-specific numbers.
    """
    everything = [r for parts in records.values() for r in parts]
    outputs = sorted({name for r in everything for name in r.hashes if not name.startswith(WORK)})
    content: dict[str, int | str] = {
        name: versions.combine(int(r.hashes[name], 16) for r in everything if name in r.hashes)
        for name in outputs
    }
    made = [f for r in everything for f in r.files if not f.path.startswith(WORK)]
    return draft.commit(
        content_hash=versions.content_hash(content | dict(hashes or {})),
        files=[*made, *files],
        parents=parents,
        seconds={n: sum(r.seconds for r in parts) for n, parts in records.items()} | dict(seconds or {}),
        accounts=dict(accounts or {}) | {n: sum_accounts(parts) for n, parts in records.items()},
        figures=figures,
    )


def sum_accounts(records: Iterable[PartRecord]) -> list[Account]:
    """The accounts of a stage over all parts, one per entity."""
    from infra.base.accounts import add

    by_entity: dict[str, list[Account]] = {}
    for record in records:
        for account in record.accounts:
            by_entity.setdefault(account.entity, []).append(account)
    return [add(items).check() for items in by_entity.values()]


def sum_counts(records: Iterable[PartRecord]) -> dict[str, dict[str, int]]:
    """Domain → name → number over all parts, sorted."""
    total: dict[str, dict[str, int]] = {}
    for record in records:
        for domain, counts in record.counts.items():
            into = total.setdefault(domain, {})
            for name, number in counts.items():
                into[name] = into.get(name, 0) + number
    return {domain: dict(sorted(total[domain].items())) for domain in sorted(total)}


class _Runner:
    """What a Ray Data worker runs on each block of part numbers; set up once per worker process and run."""

    def __init__(
        self,
        run: str,
        stages: Sequence[Stage],
        version_url: str,
        done: Mapping[str, frozenset[int]],
        hung: Mapping[str, Mapping[int, Hung]],
        most_deaths: int,
    ) -> None:
        self.run, self.stages, self.version_url, self.done = run, stages, version_url, done
        self.hung, self.most_deaths = hung, most_deaths

    def __call__(self, batch: pa.Table) -> pa.Table:
        rows = [self._part(part) for part in batch["part"].to_pylist()]
        return pa.Table.from_pylist(rows, schema=_ROWS)

    def _part(self, part: int) -> dict[str, Any]:
        made: list[str] = []
        deaths = attempt()
        logs.start_worker(run=version_label(self.version_url), part=part)
        try:
            if deaths > self.most_deaths:  # Ray Data tries for ever
                raise OacirError(self._given_up(part, deaths))
            ready = _ready(self)
            for stage in ready.stages:
                if part in self.done[stage.name]:
                    continue
                if deaths and (done := _record_text(self.version_url, stage.name, part)):
                    made.append(done)
                    continue
                watch = ready.watch(stage, part, deaths > 0)
                logs.now(stage=stage.name)
                made.append(run_part(stage, self.version_url, part, watch).model_dump_json())
        except Exception as error:  # carried to the driver, which stops the run with one line
            text = str(error) if isinstance(error, OacirError) else f"{type(error).__name__}: {error}"
            trace = traceback.format_exc()
            return {"part": part, "records": made, "deaths": deaths, "error": text, "trace": trace}
        return {"part": part, "records": made, "deaths": deaths, "error": "", "trace": ""}

    def _given_up(self, part: int, deaths: int) -> str:
        watched = [stage.name for stage in self.stages if stage.seconds_per_record]
        hung = sum(len(hung_in(self.version_url, name, part).alone) for name in watched)
        why = f" ({hung} of them over a record that hung: is what these lie on still there?)" if hung else ""
        return (
            f"it was lost {deaths} times with its worker or node{why}; what is done stays done, run the command"
            " again; if memory ran out, set --workers lower"
        )


_ROWS = pa.schema(
    [
        ("part", pa.int64()),
        ("records", pa.list_(pa.string())),
        ("deaths", pa.int64()),
        ("error", pa.string()),
        ("trace", pa.string()),
    ]
)


class _Ready:
    """The stages of a run, set up in this process, and their watchdog."""

    def __init__(self, runner: _Runner) -> None:
        self.runner, self.stages = runner, runner.stages
        for stage in self.stages:
            prepare(stage, runner.version_url)
        self.limits = {s.name: s.seconds_per_record for s in self.stages if s.seconds_per_record}
        self.guard = Guard(runner.version_url, self.limits) if self.limits else None

    def watch(self, stage: Stage, part: int, again: bool) -> Watch:
        """The watch over a part; what hung is asked of the store where the part is not done for the first time."""
        if self.guard is None or stage.name not in self.limits:
            return UNWATCHED
        if not self.guard.alive:
            self.close()
            self.guard = Guard(self.runner.version_url, self.limits)
        known = self.runner.hung[stage.name].get(part, NONE_HUNG)
        hung = hung_in(self.runner.version_url, stage.name, part) if again else known
        return self.guard.watch(stage.name, part, hung)

    def close(self) -> None:
        if self.guard is not None:
            self.guard.close()


_READY: dict[str, _Ready] = {}


def _ready(runner: _Runner) -> _Ready:
    """The runner's stages, set up once per process: Ray Data unpickles a task's function anew for each block."""
    if runner.run not in _READY:
        while _READY:
            _READY.popitem()[1].close()
        _READY[runner.run] = _Ready(runner)
    return _READY[runner.run]


def _stream(
    stages: Sequence[Stage],
    version_url: str,
    pending: Sequence[int],
    records: Mapping[str, Mapping[int, PartRecord]],
    workers: int | None,
    label: str,
) -> Iterable[dict[str, Any]]:
    if not pending:
        return
    import uuid

    import ray.data
    from ray.exceptions import RayError

    from infra.base.ray_session import connect, data_workers

    connect()
    size = min(workers or data_workers(), len(pending))
    done = {name: frozenset(found) for name, found in records.items()}
    watched = [stage.name for stage in stages if stage.seconds_per_record]
    hung = hung_records(version_url, watched)
    runner = _Runner(uuid.uuid4().hex, stages, version_url, done, hung, DEATHS_OF_A_PART)
    gpus = max(stage.gpus for stage in stages)
    # Tasks reuse warm processes from stage to stage (0.8 s an execution; a pool of actors takes 2.5 s). A GPU needs
    # the pool: a process keeps its device, tasks would move between devices under it.
    dataset = ray.data.from_items([{"part": p} for p in pending], override_num_blocks=len(pending))
    options: dict[str, Any] = {"batch_size": 1, "batch_format": "pyarrow", "num_cpus": 1}
    if gpus:
        mapped = dataset.map_batches(
            _Runner,
            fn_constructor_args=(runner.run, stages, version_url, done, hung, DEATHS_OF_A_PART),
            compute=ray.data.ActorPoolStrategy(size=size),
            num_gpus=gpus,
            **options,
        )
    else:
        mapped = dataset.map_batches(runner.__call__, compute=ray.data.TaskPoolStrategy(size=size), **options)
    try:
        yield from mapped.iter_rows()
    except RayError as error:
        raise OacirError(
            f"{label}: Ray lost a worker or node for good ({type(error).__name__}); what is done stays done, run the"
            " command again; if memory ran out, set --workers lower"
        ) from error


def _read_records(version_url: str, stage: str) -> dict[int, PartRecord]:
    folder = storage.join(version_url, RECORDS, stage)
    names = [f.path for f in storage.list_files(folder)]
    with ThreadPoolExecutor(READERS) as pool:
        texts = list(pool.map(lambda name: storage.read_bytes(storage.join(folder, name)), names))
    found = [PartRecord.model_validate(json.loads(text)) for text in texts]
    return {record.part: record for record in found}


def _record_text(version_url: str, stage: str, part: int) -> str | None:
    place = _record_url(version_url, stage, part)
    return storage.read_bytes(place).decode() if storage.exists(place) else None


def _record_url(version_url: str, stage: str, part: int) -> str:
    return storage.join(version_url, RECORDS, stage, f"part-{part:05d}.json")


def _trace(text: str) -> RuntimeError:
    return RuntimeError(f"in a worker:\n{text}")
