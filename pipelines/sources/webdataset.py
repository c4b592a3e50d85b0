"""WebDataset shards: tar files, local or on S3, whose members are addressed where they lie and never unpacked.

A sample is a run of members that share their path up to the first dot of the name (the convention of
https://github.com/webdataset/webdataset): `0001.jpg`, `0001.json`, `0001.cls`. What an image shows is said by fields of
its sample: `cls` or `txt` is the text of that member, `json.product.id` a value inside `0001.json`. An image's `uri`
is its run of bytes in the shard: collecting reads each image once, by one read of that range, and nothing is ever
written under a name that stands in a tar.

Only the headers, and the small members that a field needs, are read while listing, one shard per task of Ray Data.
Shards are plain tars: in a compressed one a member has no range of its own, and JPEGs do not shrink, so `*.tar.gz` and
its like are refused with a line that says to unpack them. Members that are cut off, damaged headers and what follows
them are accounted for; the members before are kept.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any, Literal

import pyarrow as pa
import pyarrow.compute as pc

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources.image_folder import IMAGE_SUFFIXES
from pipelines.sources.scans import LabelOptions, LabelRefused, in_parallel, inner, labels
from pipelines.sources.tables import SCANNED, TabledSource, divide, files_below

COMPRESSED = r"(?i)[.](tar[.](gz|bz2|xz|zst|lz4)|tgz|tbz2?|txz)$"
LARGEST_LABEL_BYTES = 16 << 20
BLOCK = tarfile.BLOCKSIZE


class WebDatasetConfig(LabelOptions):
    """Tar shards in the WebDataset convention."""

    kind: Literal["webdataset"] = "webdataset"
    """Which source this is."""
    root: str
    """URL of the folder that holds the shards."""
    shards: str = "*.tar"
    """Which shards are read: a pattern for their paths below the root; * also matches /."""
    images: list[str] | None = None
    """Extensions that are images, without the first dot; null is every single one of a known image format."""


class WebDataset(TabledSource):
    """The source over such shards."""

    name = "webdataset"
    layout = "<root>/<shard>.tar with members <sample>.jpg and <sample>.json, .cls or .txt"

    def __init__(self, config: WebDatasetConfig) -> None:
        super().__init__(config.root)
        self.config = config

    def look(self) -> pa.Table:
        """See `TabledSource`."""
        files = files_below(self.root)
        packed = files["path"].filter(pc.match_substring_regex(files["path"], COMPRESSED))
        if len(packed):
            raise OacirError(
                f"source.root {self.root}: {len(packed)} compressed shards, the first: {packed[0]}; members of"
                " a compressed tar cannot be read by themselves: unpack the shards to plain .tar (gunzip)"
            )
        wanted = [fnmatch.fnmatchcase(p, self.config.shards) for p in files["path"].to_pylist()]
        shards = files.filter(pa.array(wanted, pa.bool_()))
        if not len(shards):
            raise self.wrong(f"no shard {self.config.shards}")
        return shards

    def read(self, files: pa.Table) -> tuple[pa.Table, pa.Table]:
        """See `TabledSource`."""
        items = [json.dumps(row) for row in files.to_pylist()]
        scan = functools.partial(scan_shard, root=self.root, config=self.config)
        scanned = in_parallel(scan, items, "list the shards", "shards")
        return divide(pa.concat_tables(scanned))


def scan_shard(item: str, root: str, config: WebDatasetConfig) -> pa.Table:
    """What the members of one shard are, as `SCANNED`.

    Args:
        item: the shard's row of `FILES`, as JSON.
        root: of the source.
        config: of the source.

    Raises:
        OacirError: the shard cannot be read.
    """
    file = json.loads(item)
    url = storage.join(root, file["path"])
    sheet = _Sheet(file["path"], file["mark"], config)
    filesystem, path = storage.filesystem(url)
    try:
        # a block is read ahead: many small members are one request, large ones are stepped over
        with filesystem.open(path, "rb", block_size=storage.CHUNK_BYTES) as stream:
            sheet.walk(stream, file["size_bytes"])
    except OSError as error:
        raise OacirError(
            f"{url}: cannot be read ({error.strerror or error}); check the path and access"
        ) from error
    return sheet.table()


@dataclass
class _Sample:
    key: str
    images: list[tarfile.TarInfo] = field(default_factory=list)
    texts: dict[str, bytes | LabelRefused] = field(default_factory=dict)
    """Extension → content, of members that a field needs."""
    extensions: list[str] = field(default_factory=list)

    def value(self, name: str) -> Any:
        """A field: the text of a member, or what a JSON member holds at a dotted path."""
        extension = next((e for e in sorted(self.texts, key=len, reverse=True) if _within(name, e)), None)
        if extension is None:
            return None
        text = self.texts[extension]
        if isinstance(text, LabelRefused):
            raise text
        try:
            said = text.decode()
            if extension.rsplit(".", 1)[-1] != "json":
                return said
            path = name[len(extension) + 1 :]
            return inner(json.loads(said), path.split(".") if path else [])
        except (ValueError, RecursionError) as error:
            raise LabelRefused(
                "bad_label", f"{self.key}.{extension}: {' '.join(str(error).split())}"
            ) from error


class _Sheet:
    """Collects what the members of one shard are."""

    def __init__(self, shard: str, mark: str, config: WebDatasetConfig) -> None:
        self.shard, self.mark, self.config = shard, mark, config
        named = (config.instance, config.domain_field, config.category, config.box)
        self.fields = [n for n in (*named, config.licence, config.attribution) if n]
        self.rows: list[dict[str, Any]] = []
        self.names: set[str] = set()
        self.damaged = False

    def walk(self, stream: IO[bytes], size: int) -> None:
        """Step through the headers, to the end or to where the shard is damaged."""
        sample = _Sample("")
        for member in self._members(stream, size):
            kind = _kind(member)
            if kind == "folder":
                continue
            folder, _, name = member.name.rpartition("/")
            stem, dot, extension = name.partition(".")
            if kind:
                self.refuse(member.name, "not_a_file", f"{kind} in the tar")
                continue
            if _as_text(member.name) != member.name:
                self.refuse(member.name, "unreadable", "the name is not valid UTF-8")
                continue
            if not (stem and dot and extension):
                self.refuse(
                    member.name, "unsupported_format", "no <sample>.<extension>: it belongs to no sample"
                )
                continue
            key = f"{folder}/{stem}" if folder else stem
            if key != sample.key:
                self._close(sample)
                sample = _Sample(key)
            sample.extensions.append(extension)
            if self._is_image(extension):
                sample.images.append(member)
            elif any(_within(name, extension) for name in self.fields):
                sample.texts[extension] = _content(stream, member)
        if sample.images or not self.damaged:  # the image of the last sample lies where the damage is
            self._close(sample)

    def _members(self, stream: IO[bytes], size: int) -> Iterator[tarfile.TarInfo]:
        """The members that are whole; then, if the shard does not end as a tar ends, its refusal."""
        offset = -1
        try:
            tar = tarfile.open(fileobj=stream, mode="r:")  # noqa: SIM115 - the stream is the caller's
            while (member := tar.next()) is not None:
                if member.offset <= offset or member.size < 0:
                    raise tarfile.ReadError("a header that points backwards")
                offset = member.offset
                if member.isreg() and member.offset_data + member.size > size:
                    self.damaged = True
                    self.refuse(member.name, "truncated", f"the shard ends inside it, at byte {size:,}")
                    return
                yield member
                tar.members.clear()  # type: ignore[attr-defined]  # tarfile remembers every member
            problem = _after(stream, tar.offset, size)
        except (tarfile.TarError, ValueError, OverflowError, RecursionError) as error:
            cut = "truncated" in str(error) or "end of data" in str(error)
            problem = ("truncated" if cut else "corrupt", str(error))
            stream.seek(0)
            if stream.read(2) == b"\x1f\x8b":
                problem = ("unsupported_format", "compressed content: unpack it to a plain .tar (gunzip)")
            elif not size:
                problem = ("empty_file", "the shard has no bytes")
        if problem:
            self.damaged = True
            before = f"; the {len(self.rows):,} entries before it were read" if offset >= 0 else ""
            self.refuse("", problem[0], f"{problem[1]}{before}")

    def _close(self, sample: _Sample) -> None:
        if not sample.key:
            return
        if not sample.images:
            what = f"no image among .{', .'.join(sample.extensions)}"
            self.refuse(sample.key, "unsupported_format", what)
            return
        said: dict[str, Any] | LabelRefused
        try:
            said = labels(self.config, sample.value)
        except LabelRefused as problem:
            said = problem
        for member in sample.images:
            if isinstance(said, LabelRefused):
                self.refuse(member.name, said.reason, said.detail)
            elif member.name in self.names:
                self.refuse(
                    member.name, "duplicate_name", f"a second member of this name, at byte {member.offset:,}"
                )
            else:
                self.names.add(member.name)
                self.rows.append(said | self._place(said["domain"], member))

    def _place(self, domain: str, member: tarfile.TarInfo) -> dict[str, Any]:
        return {
            "image_id": f"{domain}/{self._named(member.name)}",
            "uri": storage.byte_range(self.shard, member.offset_data, member.size),
            "size_bytes": member.size,
            "mark": self.mark,
        }

    def refuse(self, name: str, reason: str, detail: str) -> None:
        """Note an entry that is no image; no name is the shard itself."""
        key = self._named(name) if name else self.shard
        self.rows.append({"image_id": _as_text(key), "reason": reason, "detail": _as_text(detail)})

    def table(self) -> pa.Table:
        """All that was found."""
        return pa.Table.from_pylist(self.rows, SCANNED)

    def _named(self, name: str) -> str:
        return f"{self.shard.removesuffix('.tar')}/{name.removeprefix('./')}"

    def _is_image(self, extension: str) -> bool:
        if self.config.images is not None:
            return extension in self.config.images
        return f".{extension.lower()}" in IMAGE_SUFFIXES


def _within(name: str, extension: str) -> bool:
    """Whether a field lies in the member of an extension."""
    return name == extension or name.startswith(f"{extension}.")


def _kind(member: tarfile.TarInfo) -> str:
    """What a member is if it is no plain file."""
    if member.isdir():
        return "folder"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname}"
    if member.issparse():
        return "a sparse file"
    return "" if member.isreg() else "a special file"


def _content(stream: IO[bytes], member: tarfile.TarInfo) -> bytes | LabelRefused:
    if member.size > LARGEST_LABEL_BYTES:
        return LabelRefused(
            "bad_label", f"{member.name}: {member.size:,} bytes, at most {LARGEST_LABEL_BYTES:,}"
        )
    stream.seek(member.offset_data)
    return stream.read(member.size)


def _after(stream: IO[bytes], offset: int, size: int) -> tuple[str, str] | None:
    """What is wrong where tarfile saw the end: it also stops, silently, at a damaged or cut header."""
    stream.seek(offset)
    header = stream.read(BLOCK)
    if not header:
        return None if offset == size else ("truncated", f"it ends at byte {size:,}, inside a member")
    if len(header) < BLOCK:
        return "truncated", f"it ends at byte {size:,}, inside a header"
    if header.strip(b"\0"):
        return "corrupt", f"a damaged header at byte {offset:,}"
    while piece := stream.read(storage.CHUNK_BYTES):
        if piece.strip(b"\0"):
            return "corrupt", f"more data after the end mark at byte {offset:,} (joined tars?)"
    return None


def _as_text(name: str) -> str:
    """A name with bytes that are no UTF-8 written out: one that fits in a table."""
    return name.encode("utf-8", "backslashreplace").decode()
