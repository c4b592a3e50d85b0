"""A feature store of five contents in two shards, written by hand."""

from __future__ import annotations

import pyarrow as pa
import torch

from infra.base import storage, versions
from infra.base.config import Config
from training.features import FeatureStore, feature_key, shard_path
from training.stored import Dtype, pack

TOKENS, WIDTH = 3, 4
KEY = feature_key("tower", "processor", "bfloat16")


class Nothing(Config):
    """A recipe without fields."""


def values(count: int) -> torch.Tensor:
    """Tokens whose every number is exact in bfloat16 and different from its neighbours."""
    return torch.arange(count * TOKENS * WIDTH, dtype=torch.float32).reshape(count, TOKENS, WIDTH) % 200


def write_store(
    root: str, *, commit: bool = True, dtype: Dtype = "bfloat16", index: dict[str, object] | None = None
) -> str:
    """Five contents in two shards; "d/4" and "d/4-copy" have the same bytes, so one row. `index` replaces columns."""
    draft = versions.start("features", "small", "k1", Nothing(), root=root)
    files = []
    for shard, (start, end) in enumerate([(0, 3), (3, 5)]):
        path = shard_path(shard, [f"sha{i}" for i in range(start, end)])
        storage.write_bytes(draft.path(path), pack(values(5)[start:end], dtype).numpy().tobytes())
        files.append(versions.file_entry(draft.url, path))
    columns: dict[str, object] = {
        "image_id": ["d/0", "d/1", "d/2", "d/3", "d/4", "d/4-copy"],
        "sha256": ["sha0", "sha1", "sha2", "sha3", "sha4", "sha4"],
        "shard": pa.array([0, 0, 0, 1, 1, 1], pa.int32()),
        "row": pa.array([0, 1, 2, 0, 1, 1], pa.int64()),
    }
    storage.write_table(draft.path("index.parquet"), pa.table(columns | (index or {})))
    files.append(versions.file_entry(draft.url, "index.parquet"))
    figures = {"feature_key": KEY, "tokens": TOKENS, "width": WIDTH, "dtype": dtype}
    if commit:
        draft.commit(content_hash="c" * 64, files=files, figures=figures)
    return draft.url


def check(store: FeatureStore) -> None:
    """Whether a store of bfloat16 is that one."""
    assert store.shape == (TOKENS, WIDTH)
    assert store.key == KEY
    assert len(store) == 5
    rows = store.rows(["d/4", "d/0", "d/3", "d/0"])
    assert rows.tolist() == [4, 0, 3, 0]
    found = store.tokens(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, values(5)[[4, 0, 3, 0]])
