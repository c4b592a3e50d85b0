"""The feature store: tokens of the frozen tower, written once per image content, read instead of pixels.

A store is a version of kind `features`: `shards/00000-….bin`, … hold the tokens of an image in each row (`stored.py`),
`index.parquet` says which image lies where. It is addressed by everything the tokens depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, get_args

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.base.config import recipe_hash
from infra.base.errors import OacirError, VersionError
from infra.base.versions import FileEntry, Version, open_version
from training.shards import local_shards
from training.stored import Dtype, Precision, row_bytes, unpack

if TYPE_CHECKING:
    import pyarrow as pa

    from training.model.processing import AdaFocalProcessor
    from training.placement import Place

INDEX = "index"
DEFAULT_CACHE = Path.home() / ".cache" / "oacir" / "features"
"""Where shards of a store on S3 are kept on this machine, one folder per content hash; safe to delete."""


def feature_key(
    tower_hash: str,
    processor_fingerprint: str,
    dtype: Dtype,
    view: str = "full",
    precision: Precision = "float32",
) -> str:
    """What tokens depend on beside the image: equal keys mean equal tokens for equal image bytes.

    Args:
        tower_hash: `AdaFocalModel.tower_state_hash()`.
        processor_fingerprint: of the way from an image to pixels.
        dtype: type of the stored tokens.
        view: what of the image is encoded: "full" is all of it, else `views.view_key`.
        precision: arithmetic of the tower.
    """
    parts = {"tower": tower_hash, "processor": processor_fingerprint, "dtype": dtype, "view": view}
    if precision != "float32":  # left out there, so that stores from before it was a choice keep their keys
        parts["precision"] = precision
    return recipe_hash(parts)


def processor_fingerprint(processor: AdaFocalProcessor) -> str:
    """What the way from an upright image to pixels depends on."""
    from training.model import processing

    return recipe_hash(
        {
            "image_size": processor.image_size,
            "pad_ratio": processor.pad_ratio,
            "mean": processing.CLIP_MEAN,
            "std": processing.CLIP_STD,
            "way": "pad, short side bicubic, centre crop",
        }
    )


def store_key(key: str, contents: Iterable[str]) -> str:
    """The key of a store's version: what its tokens depend on and what it holds.

    Args:
        key: the feature key.
        contents: SHA-256 of the images; of a store of views see `stores.Contents.hashes`.
    """
    return recipe_hash({"feature_key": key, "images": sorted(set(contents))})


def shard_path(shard: int, contents: Sequence[str]) -> str:
    """The path of a shard inside its store; named by its members, so that shards cut otherwise never mix."""
    members = hashlib.sha256("".join(contents).encode()).hexdigest()[:8]
    return f"shards/{shard:05d}-{members}.bin"


@dataclass(frozen=True)
class FeatureStore:
    """A finished store, its shards mapped into memory. Safe to open in many processes: pages are shared."""

    version: Version
    key: str
    """The feature key."""
    shape: tuple[int, int]
    """(N, D) of every image's tokens."""
    _ids: pa.Array
    _row_of_id: npt.NDArray[np.int64]
    _starts: npt.NDArray[np.int64]
    _shards: tuple[Tensor, ...]

    @classmethod
    def open(cls, url: str, expected_key: str | None = None, cache: Path = DEFAULT_CACHE) -> FeatureStore:
        """Open a store; one on S3 is fetched to `cache` first.

        Args:
            url: the features version.
            expected_key: feature key of the model and processor in use.
            cache: local folder for shards of a store on S3.

        Raises:
            VersionError: no finished store lies there, a shard is missing or short, or it holds other tokens than
                `expected_key` asks for.
        """
        version = open_version(url)
        manifest = version.manifest
        if manifest.kind != "features":
            raise VersionError(
                f"{version.url}: is a version of kind {manifest.kind}, not features; give the store that"
                " `oacir embed` wrote"
            )
        key = str(manifest.figures["feature_key"])
        if expected_key is not None and key != expected_key:
            raise VersionError(
                f"{version.url}: stale features: they were made with key {key}, this tower, processor and dtype"
                f" need {expected_key}; run `oacir embed` with this recipe"
            )
        shape = (int(manifest.figures["tokens"]), int(manifest.figures["width"]))
        entries = [f for f in manifest.files if f.path.startswith("shards/")]
        counts = _row_counts(version, entries, row_bytes(*shape, _dtype(version)))
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        index = version.table(INDEX)
        shard, row = index["shard"].to_numpy(), index["row"].to_numpy()
        _check_index(version, shard, row, counts)
        paths = local_shards(version, entries, cache)
        shards = tuple(_map(path, count) for path, count in zip(paths, counts, strict=True))
        return cls(
            version, key, shape, index["image_id"].combine_chunks(), starts[shard] + row, starts, shards
        )

    def __len__(self) -> int:
        """Distinct images."""
        return int(self._starts[-1])

    @property
    def size_bytes(self) -> int:
        """Bytes of all tokens."""
        return sum(shard.nbytes for shard in self._shards)

    @property
    def dtype(self) -> Dtype:
        """Type of the stored tokens."""
        return _dtype(self.version)

    @property
    def precision(self) -> Precision:
        """Arithmetic of the tower that made them."""
        found: Precision = self.version.manifest.figures.get("precision", "float32")
        return found

    def placed(self, device: torch.device, place: Place) -> FeatureStore:
        """This store with its tokens on the device, in pinned memory of the host, or as they are."""
        if place == "mapped":
            return self
        # one piece: a row is then found by its number, and the host's allocator rounds up to a power of two only once
        starts = np.cumsum([0, *(len(shard) for shard in self._shards)]).astype(np.int64)
        some, rows = self._shards[0], int(starts[-1])
        where, pin = (device, False) if place == "device" else (some.device, True)
        whole = torch.empty(rows, some.shape[1], dtype=some.dtype, device=where, pin_memory=pin)
        for start, shard in zip(starts, self._shards, strict=False):
            whole[start : start + len(shard)].copy_(shard)
        return replace(self, _starts=starts[[0, -1]], _shards=(whole,))

    def joined(self, views: FeatureStore) -> FeatureStore:
        """This store with the rows of a store of views behind its own, so that one number names any of them.

        Raises:
            VersionError: the two do not hold tokens of one shape and type, or a name occurs in both.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

        if views.dtype != self.dtype:
            raise VersionError(
                f"{views.version.url}: holds tokens of type {views.dtype}, {self.version.url} of type {self.dtype};"
                " run `oacir embed` for both with one recipe"
            )
        if views.shape != self.shape or pc.any(pc.is_in(views._ids, value_set=self._ids)).as_py():
            raise VersionError(
                f"{views.version.url}: its views are none of the images in {self.version.url}; run `oacir embed` again"
            )
        return FeatureStore(
            self.version,
            self.key,
            self.shape,
            pa.concat_arrays([self._ids, views._ids]),
            np.concatenate([self._row_of_id, views._row_of_id + len(self)]),
            np.concatenate([self._starts, views._starts[1:] + len(self)]),
            (*self._shards, *views._shards),
        )

    def rows(self, image_ids: Sequence[str]) -> npt.NDArray[np.int64]:
        """The row of each image (of each view, by its `view_id`).

        Raises:
            OacirError: an image is not in the store.
        """
        import pyarrow as pa

        return self._row_of_id[self._positions(pa.array(image_ids, pa.string()))]

    def _positions(self, wanted: pa.Array) -> npt.NDArray[np.int64]:
        import pyarrow.compute as pc

        positions = pc.index_in(wanted, value_set=self._ids)
        if positions.null_count:
            missing = wanted.filter(pc.is_null(positions))
            raise OacirError(
                f"{self.version.url}: {len(missing)} images are not in this feature store, first"
                f" {missing[0].as_py()}; run `oacir embed` for this dataset"
            )
        found: npt.NDArray[np.int64] = positions.to_numpy(zero_copy_only=False).astype(np.int64)
        return found

    def require(self, image_ids: pa.ChunkedArray, sha256s: pa.ChunkedArray) -> None:
        """Make sure that the store holds these images with these contents.

        Raises:
            OacirError: an image is missing.
            VersionError: an image's tokens are those of other bytes.
        """
        stored = self.version.table(INDEX, ["sha256"])["sha256"].to_numpy()
        positions = self._positions(image_ids.combine_chunks())
        stale = np.flatnonzero(stored[positions] != sha256s.to_numpy())
        if len(stale):
            raise VersionError(
                f"{self.version.url}: stale features: {len(stale)} images have other bytes than the benchmark's, first"
                f" {image_ids[int(stale[0])].as_py()}; run `oacir embed` for this dataset"
            )

    def tokens(self, rows: npt.NDArray[np.int64], dtype: torch.dtype = torch.float32) -> Tensor:
        """The tokens of those rows, [n, N, D] on the CPU, in the order of `rows`."""
        return self.gather(rows).to("cpu", dtype)

    def gather(self, rows: npt.NDArray[np.int64], device: torch.device | None = None) -> Tensor:
        """The tokens of those rows, [n, N, D] in the order of `rows`, as they are stored; int8 as float32.

        Args:
            rows: of this store.
            device: where they are wanted; null leaves them where they lie. What is copied are the stored bytes: int8
                becomes float32 there.
        """
        raw = self._raw(rows, to_gpu=device is not None and device.type == "cuda")
        return unpack(raw if device is None else moved(raw, device), self.shape, self.dtype)

    def _raw(self, rows: npt.NDArray[np.int64], to_gpu: bool) -> Tensor:
        """The stored bytes of those rows, where they lie; in pinned memory if they go to a GPU from the host."""
        some = self._shards[0]
        pin = to_gpu and some.device.type == "cpu"
        out = torch.empty(len(rows), some.shape[1], dtype=some.dtype, device=some.device, pin_memory=pin)
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        for shard in np.unique(shard_of_row):
            places = np.flatnonzero(shard_of_row == shard)
            inside = moved(torch.from_numpy(rows[places] - self._starts[shard]), some.device)
            if len(places) == len(rows):
                torch.index_select(self._shards[shard], 0, inside, out=out)
            else:
                out[moved(torch.from_numpy(places), some.device)] = self._shards[shard][inside]
        return out


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device; to a GPU from pinned memory, without waiting for the copy."""
    if device.type != "cuda" or tensor.device.type == "cuda":
        return tensor.to(device)
    return (tensor if tensor.is_pinned() else tensor.pin_memory()).to(device, non_blocking=True)


def _dtype(version: Version) -> Dtype:
    said = version.manifest.figures.get("dtype")
    for known in get_args(Dtype):
        if said == known:
            return known  # type: ignore[no-any-return]  # get_args knows no types
    raise VersionError(
        f"{version.url}: holds tokens of type {said}; this version of oacir reads {', '.join(get_args(Dtype))}"
    )


def _row_counts(version: Version, entries: Sequence[FileEntry], size: int) -> list[int]:
    for entry in entries:
        if entry.size_bytes % size:
            raise VersionError(
                f"{version.path(entry.path)}: {entry.size_bytes} bytes are no whole rows of {size}; delete the store"
                " and run `oacir embed`"
            )
    return [entry.size_bytes // size for entry in entries]


def _check_index(
    version: Version, shard: npt.NDArray[np.int32], row: npt.NDArray[np.int64], counts: Sequence[int]
) -> None:
    """Whether every row that the index names is there."""
    # a shard that is not there has no rows
    room = np.array([*counts, 0])[np.where((shard >= 0) & (shard < len(counts)), shard, len(counts))]
    wrong = np.flatnonzero((row < 0) | (row >= room))
    if len(wrong):
        first = int(wrong[0])
        raise VersionError(
            f"{version.path(INDEX)}.parquet: names row {row[first]} of shard {shard[first]}, which has {room[first]};"
            " delete the store and run `oacir embed`"
        )


def _map(path: Path, rows: int) -> Tensor:
    """A shard as [rows, …] of the widest whole numbers that its rows divide into: a gather copies so much at once."""
    size = path.stat().st_size // rows
    kind = next(k for k in (torch.int64, torch.int32, torch.int16, torch.uint8) if size % k.itemsize == 0)
    width = size // kind.itemsize
    return torch.from_file(str(path), shared=False, size=rows * width, dtype=kind).view(rows, width)
