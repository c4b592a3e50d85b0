"""What sources of records share: shards scanned in parallel by Ray Data, and options that name a record's fields."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import pyarrow as pa
from pydantic import Field

from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.progress import Progress

DONE_HERE = 8
"""So few items are worked off in this process: starting Ray takes longer."""
FAR = 2**31
"""No coordinate is as far out; comparing also finds what is not finite."""


class LabelOptions(Config):
    """Which field of a record says what; a field inside another is named with dots (`json.product.id`)."""

    instance: str
    """Field that names the instance which the image shows."""
    domain: str = Field("photos", pattern=r"^[A-Za-z0-9][^/\x00-\x1f]*$")
    """Domain of records that name none."""
    domain_field: str | None = None
    """Field that names the domain; null where none does."""
    category: str | None = None
    """Field that names the category; null, or an empty field, is the domain."""
    box: str | None = None
    """Field with the four numbers of the instance's box, in pixels of the stored image; null where
    there are none."""
    box_format: Literal["xyxy", "xywh"] = "xyxy"
    """What the four numbers are: two corners, or a corner, width and height."""
    licence: str | None = None
    """Field with the licence of the image; null where there is none."""
    attribution: str | None = None
    """Field that says whom to name; null where none does."""


class LabelRefused(Exception):  # noqa: N818 - a verdict on one record of many, not an error of the program
    """A record that is not taken: `reason` is one of `records.REASONS`, `detail` is for people."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


def labels(options: LabelOptions, field: Callable[[str], Any]) -> dict[str, Any]:
    """What a record says of its image: domain, instance_id, category, box, licence and attribution.

    Args:
        options: which field says what.
        field: the value of a field of the record by its name; None where it has none.

    Raises:
        LabelRefused: no instance is named, or a value is not of its kind.
    """

    def text(name: str | None) -> str | None:
        return _text(name, field(name)) if name else None

    domain = text(options.domain_field) or options.domain
    if "/" in domain:
        raise LabelRefused("bad_label", f"{options.domain_field}: domain {domain!r}; a domain holds no /")
    instance = text(options.instance)
    if instance is None:
        raise LabelRefused("no_identity", f"no {options.instance}")
    return {
        "domain": domain,
        "instance_id": f"{domain}/{escaped(instance)}",
        "category": text(options.category) or domain,
        "box": _box(options, field(options.box)) if options.box else None,
        "licence": text(options.licence),
        "attribution": text(options.attribution),
    }


def inner(value: Any, path: Sequence[str]) -> Any:
    """What lies at a path of keys in nested mappings; None where nothing does."""
    for key in path:
        value = value.get(key) if isinstance(value, dict) else None
    return value


def escaped(name: str) -> str:
    """A name as one component of a path; see `tables.component`."""
    return name.replace("%", "%25").replace("/", "%2F")


def _text(name: str, value: Any) -> str | None:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, str):
        if any("\ud800" <= c <= "\udfff" for c in value):
            raise LabelRefused("bad_label", f"{name}: half a surrogate pair, which is no text")
        return value.strip() or None
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float) and value.is_integer():  # integers with gaps arrive as such
        return str(int(value))
    raise LabelRefused("bad_label", f"{name}: a {type(value).__name__}; allowed are texts and whole numbers")


def _box(options: LabelOptions, value: Any) -> list[float] | None:
    if value is None or value == []:
        return None
    wanted = "two corners" if options.box_format == "xyxy" else "a corner, width and height"
    problem = (
        f"{options.box}: {str(value)[:80]}; allowed are four finite numbers ({wanted}) that enclose an area"
    )
    numbers = value if isinstance(value, list) else []
    if len(numbers) != 4 or not all(isinstance(n, int | float) and -FAR < n < FAR for n in numbers):
        raise LabelRefused("bad_label", problem)
    x1, y1, x2, y2 = map(float, numbers)
    if options.box_format == "xywh":
        x2, y2 = x1 + x2, y1 + y2
    if not (x1 < x2 and y1 < y2):
        raise LabelRefused("bad_label", problem)
    return [x1, y1, x2, y2]


def in_parallel(
    work: Callable[[str], pa.Table], items: Sequence[str], label: str, unit: str
) -> Iterator[pa.Table]:
    """`work` of every item, streamed through Ray Data; in the order in which they are done.

    Args:
        work: a picklable function; what it needs of a shard is read there, never on the driver.
        items: what it is called with.
        label: what the progress line says.
        unit: what an item is.

    Raises:
        OacirError: `work` failed for an item.
    """
    with Progress(label, len(items), unit) as progress:
        for table in map(work, items) if len(items) <= DONE_HERE else _on_ray(work, items, label):
            yield table
            progress.update()


class _Worker:
    """Carries tables and failures alike as rows, so that a failure stops the run with one line and not a page."""

    def __init__(self, work: Callable[[str], pa.Table]) -> None:
        self.work = work

    def __call__(self, batch: pa.Table) -> pa.Table:
        made, errors = [], []
        for item in batch["item"].to_pylist():
            sink, error = pa.BufferOutputStream(), ""
            try:
                table = self.work(item)
                with pa.ipc.new_stream(sink, table.schema) as writer:
                    writer.write_table(table)
            except Exception as problem:
                error = (
                    str(problem)
                    if isinstance(problem, OacirError)
                    else f"{type(problem).__name__}: {problem}"
                )
            made.append(sink.getvalue().to_pybytes())
            errors.append(error)
        return pa.table({"made": pa.array(made, pa.binary()), "error": pa.array(errors, pa.string())})


def _on_ray(work: Callable[[str], pa.Table], items: Sequence[str], label: str) -> Iterator[pa.Table]:
    import ray.data
    from ray.exceptions import RayError

    from infra.base.ray_session import connect, data_workers

    connect()
    dataset = ray.data.from_items([{"item": i} for i in items], override_num_blocks=len(items))
    pool = ray.data.TaskPoolStrategy(size=min(data_workers(), len(items)))
    scanned = dataset.map_batches(
        _Worker(work).__call__, batch_size=1, batch_format="pyarrow", num_cpus=1, compute=pool
    )
    try:
        for row in scanned.iter_rows():
            if row["error"]:
                raise OacirError(f"{label}: {row['error']}")
            yield pa.ipc.open_stream(row["made"]).read_all()
    except RayError as error:
        raise OacirError(
            f"{label}: Ray lost a worker or node for good ({type(error).__name__}); run the command again"
        ) from error
