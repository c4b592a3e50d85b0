"""The feature store: rows found, shards mapped, everything partial or stale refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from infra.base import storage, versions
from infra.base.config import Config
from infra.base.errors import OacirError, VersionError
from training.features import FeatureStore, feature_key, processor_fingerprint, shard_path, store_key

TOKENS, WIDTH = 3, 4
KEY = feature_key("tower", "processor", "bfloat16")


class Nothing(Config):
    """A recipe without fields."""


def values(count: int) -> torch.Tensor:
    """Tokens whose every number is exact in bfloat16 and different from its neighbours."""
    return torch.arange(count * TOKENS * WIDTH, dtype=torch.float32).reshape(count, TOKENS, WIDTH) % 200


def write_store(root: str, *, commit: bool = True) -> str:
    """Five contents in two shards; "d/4" and "d/4-copy" have the same bytes, so one row."""
    draft = versions.start("features", "small", "k1", Nothing(), root=root)
    files = []
    for shard, (start, end) in enumerate([(0, 3), (3, 5)]):
        path = shard_path(shard, [f"sha{i}" for i in range(start, end)])
        data = values(5)[start:end].to(torch.bfloat16).view(torch.uint8).numpy().tobytes()
        storage.write_bytes(draft.path(path), data)
        files.append(versions.file_entry(draft.url, path))
    index = {
        "image_id": ["d/0", "d/1", "d/2", "d/3", "d/4", "d/4-copy"],
        "sha256": ["sha0", "sha1", "sha2", "sha3", "sha4", "sha4"],
        "shard": pa.array([0, 0, 0, 1, 1, 1], pa.int32()),
        "row": pa.array([0, 1, 2, 0, 1, 1], pa.int64()),
    }
    storage.write_table(draft.path("index.parquet"), pa.table(index))
    files.append(versions.file_entry(draft.url, "index.parquet"))
    figures = {"feature_key": KEY, "tokens": TOKENS, "width": WIDTH, "dtype": "bfloat16"}
    if commit:
        draft.commit(content_hash="c" * 64, files=files, figures=figures)
    return draft.url


def check(store: FeatureStore) -> None:
    assert store.shape == (TOKENS, WIDTH)
    assert store.key == KEY
    assert len(store) == 5
    rows = store.rows(["d/4", "d/0", "d/3", "d/0"])
    assert rows.tolist() == [4, 0, 3, 0]
    found = store.tokens(rows)
    assert found.dtype == torch.float32
    assert torch.equal(found, values(5)[[4, 0, 3, 0]])


def test_tokens_of_images_in_any_order_and_across_shards(tmp_path: Path) -> None:
    check(FeatureStore.open(write_store(str(tmp_path)), KEY))


def test_equal_content_has_one_row(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(str(tmp_path)))
    assert store.rows(["d/4-copy"]).tolist() == store.rows(["d/4"]).tolist()


def test_no_rows_are_fine(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(str(tmp_path)))
    assert store.tokens(store.rows([])).shape == (0, TOKENS, WIDTH)


def test_an_unknown_image_is_named(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(str(tmp_path)))
    with pytest.raises(
        OacirError, match=r"2 images are not in this feature store, first e/1; run `oacir embed`"
    ):
        store.rows(["d/1", "e/1", "e/2"])


def test_an_image_with_other_bytes_than_the_benchmarks_is_refused(tmp_path: Path) -> None:
    store = FeatureStore.open(write_store(str(tmp_path)))
    ids = pa.chunked_array([["d/3", "d/4-copy"]])
    store.require(ids, pa.chunked_array([["sha3", "sha4"]]))
    with pytest.raises(VersionError, match=r"stale features: 1 images have other bytes.* first d/4-copy"):
        store.require(ids, pa.chunked_array([["sha3", "sha5"]]))


def test_a_partial_store_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VersionError, match="unfinished"):
        FeatureStore.open(write_store(str(tmp_path), commit=False))


def test_a_stale_store_is_refused_with_both_keys(tmp_path: Path) -> None:
    other = feature_key("another tower", "processor", "bfloat16")
    with pytest.raises(VersionError, match=f"stale features: .*{KEY}.*{other}"):
        FeatureStore.open(write_store(str(tmp_path)), other)


@pytest.mark.parametrize("damage", ["missing", "short"])
def test_a_damaged_shard_is_refused(tmp_path: Path, damage: str) -> None:
    url = write_store(str(tmp_path))
    shard = next(Path(url).glob("shards/00001-*.bin"))
    if damage == "missing":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-2])
    with pytest.raises(VersionError, match=r"00001-.*\.bin: missing or not 48 bytes long"):
        FeatureStore.open(url)


def test_a_version_of_another_kind_is_refused(tmp_path: Path) -> None:
    draft = versions.start("datasets", "small", "k1", Nothing(), root=str(tmp_path))
    draft.commit(content_hash="c" * 64, files=[])
    with pytest.raises(VersionError, match="kind datasets, not features"):
        FeatureStore.open(draft.url)


def test_keys_see_everything_that_tokens_depend_on() -> None:
    keys = {
        feature_key(tower, processor, dtype, view)
        for tower in ("t1", "t2")
        for processor in ("p1", "p2")
        for dtype in ("bfloat16", "float32")
        for view in ("full", "crop:1,2,3,4")
    }
    assert len(keys) == 16
    assert store_key(KEY, ["a", "b", "a"]) == store_key(KEY, ["b", "a"]) != store_key(KEY, ["a", "c"])


def test_the_keys_of_the_stores_that_there_are_stay() -> None:
    assert (KEY, store_key(KEY, ["b", "a"])) == ("08b80359cad771e2", "558bcdf8b2518040")


def test_shards_cut_otherwise_have_other_names() -> None:
    assert shard_path(0, ["a", "b"]) != shard_path(0, ["a", "b", "c"])


def test_a_fingerprint_sees_size_and_padding() -> None:
    from training.model.config import preset
    from training.model.processing import AdaFocalProcessor, train_wordpiece

    tokenizer = train_wordpiece(["a red car"], 40)
    found = {
        processor_fingerprint(AdaFocalProcessor.for_model(preset("tiny", **changes), tokenizer))
        for changes in ({}, {"pad_ratio": 1.5}, {"vision_config.image_size": 84})
    }
    assert len(found) == 3


def test_a_store_on_s3_is_fetched_once(
    s3_bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = write_store(f"{s3_bucket}/root")
    check(FeatureStore.open(url, KEY, cache=tmp_path))

    def no_more(path: str) -> bytes:
        if path.endswith(".bin"):
            raise AssertionError(f"{path} was fetched again")
        return real(path)

    real = storage.read_bytes
    monkeypatch.setattr(storage, "read_bytes", no_more)
    check(FeatureStore.open(url, KEY, cache=tmp_path))
    assert np.all([p.suffix == ".bin" for p in tmp_path.rglob("*") if p.is_file()])
