"""The feature store: tokens of the frozen tower, written once per image content, read instead of pixels.

A store is a version of kind `features`: `shards/00000-….bin`, … hold raw tokens [n, N, D] in row order, `index.parquet`
says which image lies where. It is addressed by everything the tokens depend on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from infra.base import storage
from infra.base.config import recipe_hash
from infra.base.errors import OacirError, VersionError
from infra.base.versions import FileEntry, Version, open_version

if TYPE_CHECKING:
    import pyarrow as pa

    from training.model.processing import AdaFocalProcessor
    from training.placement import Place

Dtype = Literal["bfloat16", "float32"]
DTYPES: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}
INDEX = "index"
FETCH_THREADS = 8
DEFAULT_CACHE = Path.home() / ".cache" / "oacir" / "features"
"""Where shards of a store on S3 are kept on this machine, one folder per content hash; safe to delete."""


def feature_key(tower_hash: str, processor_fingerprint: str, dtype: Dtype, view: str = "full") -> str:
    """What tokens depend on beside the image: equal keys mean equal tokens for equal image bytes.

    Args:
        tower_hash: `AdaFocalModel.tower_state_hash()`.
        processor_fingerprint: of the way from an image to pixels.
        dtype: type of the stored tokens.
        view: what of the image is encoded: "full" is all of it, else `views.view_key`.
    """
    return recipe_hash(
        {"tower": tower_hash, "processor": processor_fingerprint, "dtype": dtype, "view": view}
    )


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
        dtype = DTYPES[str(manifest.figures["dtype"])]
        entries = [f for f in manifest.files if f.path.startswith("shards/")]
        row_bytes = shape[0] * shape[1] * dtype.itemsize
        counts = [entry.size_bytes // row_bytes for entry in entries]
        starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        index = version.table(INDEX)
        rows = starts[index["shard"].to_numpy()] + index["row"].to_numpy()
        paths = _local_shards(version, entries, cache)
        shards = tuple(
            torch.from_file(str(path), shared=False, size=count * shape[0] * shape[1], dtype=dtype).view(
                count, *shape
            )
            for path, count in zip(paths, counts, strict=True)
        )
        return cls(version, key, shape, index["image_id"].combine_chunks(), rows, starts, shards)

    def __len__(self) -> int:
        """Distinct images."""
        return int(self._starts[-1])

    @property
    def size_bytes(self) -> int:
        """Bytes of all tokens."""
        return sum(shard.nbytes for shard in self._shards)

    def placed(self, device: torch.device, place: Place) -> FeatureStore:
        """This store with its tokens on the device, in pinned memory of the host, or as they are."""
        if place == "mapped":
            return self
        shards = (shard.to(device) if place == "device" else shard.pin_memory() for shard in self._shards)
        return replace(self, _shards=tuple(shards))

    def joined(self, views: FeatureStore) -> FeatureStore:
        """This store with the rows of a store of views behind its own, so that one number names any of them.

        Raises:
            VersionError: the two do not hold tokens of one shape, or a name occurs in both.
        """
        import pyarrow as pa
        import pyarrow.compute as pc

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

    def gather(self, rows: npt.NDArray[np.int64]) -> Tensor:
        """The tokens of those rows, [n, N, D] in the order of `rows`, as they are stored and where they lie."""
        shard_of_row = np.searchsorted(self._starts, rows, side="right") - 1
        some = self._shards[0]
        out = torch.empty(len(rows), *self.shape, dtype=some.dtype, device=some.device)
        for shard in np.unique(shard_of_row):
            places = np.flatnonzero(shard_of_row == shard)
            inside = torch.from_numpy(rows[places] - self._starts[shard])
            out[torch.from_numpy(places).to(some.device)] = self._shards[shard][inside.to(some.device)]
        return out


def _local_shards(version: Version, entries: Sequence[FileEntry], cache: Path) -> list[Path]:
    if not storage.is_s3(version.url):
        paths = [Path(version.path(entry.path)) for entry in entries]
        for path, entry in zip(paths, entries, strict=True):
            if not path.is_file() or path.stat().st_size != entry.size_bytes:
                raise VersionError(
                    f"{path}: missing or not {entry.size_bytes} bytes long; delete the store and run `oacir embed`"
                )
        return paths
    folder = cache / version.manifest.content_hash
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        return list(pool.map(lambda entry: _fetch(version, entry, folder), entries))


def _fetch(version: Version, entry: FileEntry, folder: Path) -> Path:
    path = folder / entry.path
    if path.is_file() and path.stat().st_size == entry.size_bytes:
        return path
    data = storage.read_bytes(version.path(entry.path))
    if hashlib.sha256(data).hexdigest() != entry.sha256:
        raise VersionError(
            f"{version.path(entry.path)}: its bytes are not those of the manifest; delete the store and run"
            " `oacir embed`"
        )
    storage.write_bytes(str(path), data)
    return path
