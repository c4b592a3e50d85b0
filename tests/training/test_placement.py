"""Where the tokens go, and a store of OACIRR's size."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import numpy as np
import psutil
import pyarrow as pa
import pytest
import torch

from infra.base import storage, versions
from infra.base.config import Config
from infra.base.errors import OacirError
from training.features import FeatureStore, shard_path
from training.placement import choose, place

GIB = 2**30
OACIRR, TOKENS, WIDTH = 39_495, 257, 1408
CPU = torch.device("cpu")


class Nothing(Config):
    """A recipe without fields."""


@pytest.mark.parametrize(
    ("size", "device", "host", "workers", "expected"),
    [
        (28, 0, 100, 1, "mapped"),  # no GPU
        (28, 80, 100, 1, "device"),
        (28, 40, 100, 1, "pinned"),
        (28, 40, 100, 4, "mapped"),  # each worker would pin its own copy
        (28, 40, 50, 1, "mapped"),
    ],
)
def test_auto_takes_the_fastest_place_with_room(
    size: int, device: int, host: int, workers: int, expected: str
) -> None:
    assert choose(size * GIB, device * GIB, host * GIB, workers) == expected


def oacirr_store(root: Path) -> tuple[str, torch.Tensor]:
    """As many rows as OACIRR has images in sparse files; only rows 0, 700 and the last are there, [3, N, D]."""
    draft = versions.start("features", "oacirr", "k", Nothing(), root=str(root))
    row_bytes, per_shard = TOKENS * WIDTH * 2, 512
    told = torch.arange(3 * TOKENS * WIDTH).reshape(3, TOKENS, WIDTH).remainder(251).to(torch.bfloat16)
    places = dict(zip((0, 700, OACIRR - 1), told, strict=True))
    files = []
    for shard, first in enumerate(range(0, OACIRR, per_shard)):
        count = min(per_shard, OACIRR - first)
        path = Path(draft.path(shard_path(shard, [str(first)])))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as stream:
            stream.truncate(count * row_bytes)
            for row in range(first, first + count):
                if row in places:
                    stream.seek((row - first) * row_bytes)
                    stream.write(places[row].view(torch.uint8).numpy().tobytes())
        relative = path.relative_to(draft.url).as_posix()
        files.append(
            versions.FileEntry(path=relative, size_bytes=count * row_bytes, sha256="0" * 64, rows=count)
        )
    numbers = np.arange(OACIRR)
    index = pa.table(
        {
            "image_id": pa.array([f"d/{n:05d}" for n in numbers]),
            "sha256": pa.array([f"{n:064x}" for n in numbers]),
            "shard": pa.array(numbers // per_shard, pa.int32()),
            "row": pa.array(numbers % per_shard, pa.int64()),
        }
    )
    storage.write_table(draft.path("index.parquet"), index)
    files.append(versions.file_entry(draft.url, "index.parquet", len(index)))
    figures = {"feature_key": "key", "tokens": TOKENS, "width": WIDTH, "dtype": "bfloat16"}
    draft.commit(content_hash="c" * 64, files=files, figures=figures)
    return draft.url, told


def test_a_store_of_oacirrs_size_is_read_where_it_lies(tmp_path: Path) -> None:
    url, told = oacirr_store(tmp_path)
    before = psutil.Process().memory_info().rss
    store = FeatureStore.open(url, "key")
    assert (len(store), store.shape) == (OACIRR, (TOKENS, WIDTH))
    assert store.size_bytes == pytest.approx(28.6e9, rel=2e-3)
    found = store.gather(store.rows([f"d/{OACIRR - 1:05d}", "d/00000", "d/00700"]))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, told[[2, 0, 1]])
    # a batch from all over it: 256 rows of 0.7 MB, not the 28.6 GB
    rows = np.random.default_rng(0).integers(0, OACIRR, 256)
    assert store.gather(rows).shape == (256, TOKENS, WIDTH)
    assert psutil.Process().memory_info().rss - before < 1.5e9
    assert place(store, CPU, "auto", 2) is store


@pytest.mark.parametrize("wanted", ["device", "pinned"])
def test_a_place_that_is_not_there_is_refused_in_one_line(wanted: str) -> None:
    class Small:
        size_bytes = 3 * GIB

    with pytest.raises(
        OacirError,
        match=rf"features_in = {wanted}: the tokens take 3\.0 GiB, {wanted} needs a GPU; set scaling\.use_gpu",
    ):
        place(cast(FeatureStore, Small()), CPU, wanted, 1)  # type: ignore[arg-type]  # one of the places


def test_tokens_in_memory_are_the_mapped_ones(tmp_path: Path) -> None:
    url, told = oacirr_store(tmp_path)
    store = FeatureStore.open(url, "key")
    first = FeatureStore(
        store.version, store.key, store.shape, store._ids, store._row_of_id, store._starts, store._shards[:2]
    )
    moved = first.placed(torch.device("cpu"), "device")
    assert torch.equal(moved.gather(np.array([700, 0])), told[[1, 0]])
