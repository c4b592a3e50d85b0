"""The rows of a Hugging Face data set: Arrow files addressed where they lie, parquet files unpacked into packs."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from infra.base import storage
from infra.base.accounts import Account
from infra.base.errors import OacirError
from pipelines.records import LISTING, TABLES
from pipelines.sources.scans import LabelOptions, LabelRefused, escaped, inner, labels
from pipelines.sources.tables import SCANNED, divide
from pipelines.stages import Part, Stage, StageResult

PACK_BYTES, ROWS_AT_ONCE = 64 << 20, 32
END_MARK = b"\xff\xff\xff\xff\0\0\0\0"


class HuggingFaceConfig(LabelOptions):
    """A Hugging Face data set on disk; fields are columns, `objects.bbox` is a field inside a column."""

    kind: Literal["hf_datasets"] = "hf_datasets"
    """Which source this is."""
    root: str
    """URL of the folder."""
    splits: list[str] | None = None
    """Splits to read, null for all; of a parquet file what stands before its number, or else its folder."""
    image: str = "image"
    """Column with the image."""
    id: str | None = None
    """Column that names the image; null is its file and row."""


def scan_arrow(item: str, root: str, config: HuggingFaceConfig, licence: str | None) -> pa.Table:
    """What the rows of one Arrow stream are, as `SCANNED`; an image in a file of its own has no size yet.

    Args:
        item: the file's row of `FILES`, as JSON.
        root: of the source.
        config: of the source.
        licence: of images that name none.

    Raises:
        OacirError: the file cannot be read, or is not of the form that the options say.
    """
    file = json.loads(item)
    url = storage.join(root, file["path"])
    rows = Rows(config, root, file["path"], licence)
    try:
        with _opened(url) as stream:
            for batch, body, begin in _messages(stream):
                entries = rows.of(batch)
                column = batch.column(config.image)
                for at, (row, place) in enumerate(
                    zip(entries, _places(column, body, begin, url), strict=True)
                ):
                    if "reason" in row:
                        continue
                    if place:
                        uri = storage.byte_range(file["path"], *place)
                        row |= {"uri": uri, "size_bytes": place[1], "mark": file["mark"]}
                    else:
                        rows.point(row, column[at].as_py())
                rows.found += entries
            stream.seek(max(0, file["size_bytes"] - len(END_MARK)))
            if stream.read() != END_MARK:
                rows.lost("truncated", "it ends without the end mark of an Arrow stream")
    except (pa.ArrowInvalid, OSError) as error:
        rows.damaged(error)
    return pa.Table.from_pylist(rows.found, SCANNED)


class Rows:
    """Turns record batches of one file into rows of `SCANNED`; `found` is for the caller to fill."""

    def __init__(self, config: HuggingFaceConfig, root: str, path: str, licence: str | None) -> None:
        self.config, self.root, self.path, self.licence = config, root, path, licence
        self.found: list[dict[str, Any]] = []
        self.number = 0
        self._classes: dict[str, list[str]] = {}

    def columns(self, schema: pa.Schema) -> list[str]:
        """The columns that are read, the image's first.

        Raises:
            OacirError: one is not there, or the image's holds no images.
        """
        c = self.config
        url = storage.join(self.root, self.path)
        named = [c.image, c.id, c.instance, c.domain_field, c.category, c.box, c.licence, c.attribution]
        columns = list(dict.fromkeys(_column(name, schema) for name in named if name))
        missing = [name for name in columns if name not in schema.names]
        if missing:
            raise OacirError(
                f"{url}: no column {', '.join(missing)}; there are {', '.join(schema.names)}: name them with"
                " source.image, source.instance and the like"
            )
        kind = schema.field(c.image).type
        pixels = kind.field("bytes").type if _is_feature(kind) else kind
        if not (pa.types.is_binary(pixels) or pa.types.is_large_binary(pixels) or _is_text(pixels)):
            raise OacirError(
                f"{url}: column {c.image} is {kind}; allowed are an Image feature, binary, and paths"
            )
        return columns

    def of(self, batch: pa.RecordBatch) -> list[dict[str, Any]]:
        """A row for each row of the batch, without where its pixels are; refused ones have a reason."""
        _, *columns = self.columns(batch.schema)
        if not self.number:
            self._classes = _class_names(batch.schema)
        entries = []
        for values in batch.select(columns).to_pylist():
            entries.append(self._row(values, batch.schema))
            self.number += 1
        return entries

    def point(self, row: dict[str, Any], image: Any) -> None:
        """Point a row without pixels to the file that its image names, relative to the root, if it lies in there."""
        path = image.get("path") if isinstance(image, dict) else image
        if not path or not isinstance(path, str):
            row |= {"reason": "not_a_file", "detail": "neither bytes nor a path"}
            return
        inside = path.removeprefix(f"{self.root}/")
        if inside.startswith("/") or "://" in inside or ".." in inside.split("/"):
            row |= {"reason": "not_a_file", "detail": f"its file {path} lies outside the data set"}
        else:
            row["uri"] = inside

    def damaged(self, error: pa.ArrowInvalid | OSError) -> None:
        """Note what Arrow says of the file's content.

        Raises:
            OacirError: the error speaks of the store, not of the content.
        """
        if isinstance(error, OSError) and error.errno is not None:  # Arrow's own verdicts have no number
            url = storage.join(self.root, self.path)
            raise OacirError(
                f"{url}: cannot be read ({error.strerror}); check the path and access"
            ) from error
        self.lost("truncated" if " only " in str(error) else "corrupt", str(error))

    def lost(self, reason: str, what: str) -> None:
        """Note that the file is damaged after the rows that were read."""
        detail = f"{' '.join(what.split())[:200]}; {self.number:,} rows before it were read"
        self.found.append({"image_id": self.path, "reason": reason, "detail": detail})

    def _row(self, values: dict[str, Any], schema: pa.Schema) -> dict[str, Any]:
        def value(name: str) -> Any:
            column = _column(name, schema)
            inside = inner(values[column], name.split(".")[column.count(".") + 1 :])
            return self._named(column, inside)

        key = f"{self.path.rsplit('.', 1)[0]}/{self.number:08d}"
        try:
            row = labels(self.config, value)
            if self.config.id:
                name = value(self.config.id)
                if not isinstance(name, str | int) or name == "":
                    raise LabelRefused(
                        "bad_label",
                        f"{self.config.id}: {str(name)[:80]}; texts and whole numbers name images",
                    )
                row["image_id"] = f"{row['domain']}/{escaped(str(name))}"
            else:
                row["image_id"] = f"{row['domain']}/{key}"
        except LabelRefused as problem:
            return {"image_id": key, "reason": problem.reason, "detail": problem.detail}
        row["licence"] = row["licence"] or self.licence
        return row

    def _named(self, column: str, value: Any) -> Any:
        """A class by its name; −1 is none."""
        names = self._classes.get(column)
        if names is None or not isinstance(value, int):
            return value
        if value >= len(names):
            raise LabelRefused("bad_label", f"{column}: class {value}; there are {len(names)}")
        return names[value] if value >= 0 else None


def _is_feature(kind: pa.DataType) -> bool:
    """Whether a column is of the `Image` feature: a struct with bytes and a path."""
    return pa.types.is_struct(kind) and {"bytes", "path"} <= {
        kind.field(i).name for i in range(kind.num_fields)
    }


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _column(name: str, schema: pa.Schema) -> str:
    """The column of a field: the field itself, or what stands before its first dot."""
    return name if name in schema.names else name.split(".")[0]


def _class_names(schema: pa.Schema) -> dict[str, list[str]]:
    """Names of the classes of the `ClassLabel` columns, which `datasets` writes into the schema's metadata."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return {
            n: [str(c) for c in f["names"]] for n, f in features.items() if f.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError):
        return {}


def _opened(url: str) -> Any:
    """A file of Arrow's; mapped where it is local, so that pixels are not read while listing."""
    import pyarrow.fs as arrow_fs

    filesystem, path = storage.arrow_filesystem(url)
    local = isinstance(filesystem, arrow_fs.LocalFileSystem)
    return pa.memory_map(path) if local else filesystem.open_input_file(path)


def _messages(stream: Any) -> Iterator[tuple[pa.RecordBatch, pa.Buffer, int]]:
    """The record batches of an Arrow stream, each with its body and where that begins in the file."""
    messages = pa.ipc.MessageReader.open_stream(stream)
    try:
        schema = pa.ipc.read_schema(messages.read_next_message())
        while True:
            message = messages.read_next_message()
            begin = stream.tell() - message.body.size
            yield pa.ipc.read_record_batch(message, schema), message.body, begin
    except StopIteration:
        return


def _places(column: pa.Array, body: pa.Buffer, begin: int, url: str) -> list[tuple[int, int] | None]:
    """Offset in the file and length of each image; None for one without bytes.

    Raises:
        OacirError: the bytes are not stored as they are.
    """
    pixels = column.field("bytes") if pa.types.is_struct(column.type) else column
    if _is_text(pixels.type) or not len(column):
        return [None] * len(column)
    _, edges, data = pixels.buffers()
    width = np.int64 if pa.types.is_large_binary(pixels.type) else np.int32
    ends = np.frombuffer(edges, width)[pixels.offset : pixels.offset + len(pixels) + 1].astype(np.int64)
    first = data.address - body.address if data is not None and data.size else 0
    if first < 0 or first + int(ends[-1]) > body.size:
        raise OacirError(f"{url}: its buffers are compressed; save the data set again without compression")
    there = np.array(column.is_valid()) & np.array(pixels.is_valid())
    runs = zip(there.tolist(), (begin + first + ends[:-1]).tolist(), np.diff(ends).tolist(), strict=True)
    return [(offset, length) if here else None for here, offset, length in runs]


@dataclass
class PackStage(Stage):
    """Parquet files → packs of raw images, and what their rows say. Part i is file i; it holds a few rows at once."""

    config: HuggingFaceConfig
    root: str
    paths: tuple[str, ...]
    licence: str | None
    version_url: str
    name = "pack"
    inputs = ()
    outputs = ("listing", "rejects/pack", "files")

    def __call__(self, part: Part) -> StageResult:
        """Unpack the file of the part; the listing's `uri` is relative to the version."""
        path = self.paths[part.number]
        url = storage.join(self.root, path)
        rows = Rows(self.config, self.root, path, self.licence)
        pack = _Pack(self.version_url, part.number)
        try:
            with storage.open_parquet(url) as file:
                columns = rows.columns(file.schema_arrow)
                threads = storage.arrow_threads(url)
                for batch in file.iter_batches(ROWS_AT_ONCE, columns=columns, use_threads=threads):
                    entries = rows.of(batch)
                    for row, image in zip(entries, batch.column(self.config.image), strict=True):
                        if "reason" not in row:
                            self._pack(rows, row, image.as_py(), pack)
                    rows.found += entries
        except OSError as error:
            if error.errno is not None:  # the store failed; Arrow's verdicts on content have no number
                raise OacirError(
                    f"{path}: cannot be read ({error.strerror or error}); check access"
                ) from error
            rows.lost("corrupt", str(error))
        except pa.ArrowInvalid as error:
            rows.lost("corrupt", str(error))
        listing, refused = divide(pa.Table.from_pylist(rows.found, SCANNED))
        rejects = [{"stage": "collect", "entity": "images", **r} for r in refused.to_pylist()]
        why = dict(Counter(r["reason"] for r in rejects))
        tables = {
            "listing": pa.Table.from_pylist(listing.to_pylist(), LISTING),
            "rejects/pack": pa.Table.from_pylist(rejects, TABLES["rejects"]),
            "files": pa.Table.from_pylist(pack.close(), TABLES["files"]),
        }
        account = Account(entity="images", taken_in=len(rows.found), kept=len(listing), rejected=why)
        return StageResult(tables, [account])

    def _pack(self, rows: Rows, row: dict[str, Any], image: Any, pack: _Pack) -> None:
        data = image.get("bytes") if isinstance(image, dict) else image
        if not isinstance(data, bytes):
            rows.point(row, image)
            if "reason" in row:
                return
            try:
                data = storage.read_bytes(storage.join(self.root, row["uri"]))
            except OacirError as error:
                if not isinstance(error.__cause__, FileNotFoundError | IsADirectoryError):
                    raise
                row |= {"reason": "not_a_file", "detail": f"its file {row['uri']} is not there"}
                return
        row |= {"uri": pack.add(data), "size_bytes": len(data), "mark": hashlib.sha256(data).hexdigest()}


class _Pack:
    """Writes images one after the other into files of some PACK_BYTES."""

    def __init__(self, version_url: str, part: int) -> None:
        self.version_url, self.part = version_url, part
        self.held = bytearray()
        self.files: list[dict[str, Any]] = []

    @property
    def path(self) -> str:
        """The file that is being filled, relative to the version."""
        return f"packs/part-{self.part:05d}-{len(self.files):05d}.bin"

    def add(self, data: bytes) -> str:
        """Keep an image; where it will lie."""
        if self.held and len(self.held) + len(data) > PACK_BYTES:
            self._write()
        place = storage.byte_range(self.path, len(self.held), len(data))
        self.held += data
        return place

    def close(self) -> list[dict[str, Any]]:
        """Write what is left; rows of `records.FILES`."""
        if self.held:
            self._write()
        return self.files

    def _write(self) -> None:
        data = bytes(self.held)
        storage.write_bytes(storage.join(self.version_url, self.path), data)
        digest = hashlib.sha256(data).hexdigest()
        self.files.append({"path": self.path, "size_bytes": len(data), "sha256": digest})
        self.held.clear()
