"""The feature store: rows found, shards mapped, everything partial or stale refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import get_args

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_store import KEY, TOKENS, WIDTH, Nothing, check, values, write_store

from infra.base import versions
from infra.base.errors import OacirError, VersionError
from training.features import FeatureStore, feature_key, processor_fingerprint, shard_path, store_key
from training.stored import Dtype, Precision, rounded, row_bytes


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
        feature_key(tower, processor, dtype, view, precision)
        for tower in ("t1", "t2")
        for processor in ("p1", "p2")
        for dtype in get_args(Dtype)
        for view in ("full", "crop:1,2,3,4")
        for precision in get_args(Precision)
    }
    assert len(keys) == 48
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


@pytest.mark.parametrize(
    ("column", "wrong", "told"),
    [
        ("row", pa.array([0, 1, 2, 0, 2, 1], pa.int64()), "names row 2 of shard 1, which has 2"),
        ("row", pa.array([0, -1, 2, 0, 1, 1], pa.int64()), "names row -1 of shard 0, which has 3"),
        ("shard", pa.array([0, 0, 0, 1, 1, 2], pa.int32()), "names row 1 of shard 2, which has 0"),
    ],
)
def test_an_index_that_names_a_row_that_is_not_there_is_refused(
    tmp_path: Path, column: str, wrong: pa.Array, told: str
) -> None:
    with pytest.raises(
        VersionError, match=rf"index\.parquet: {told}; delete the store and run `oacir embed`"
    ):
        FeatureStore.open(write_store(str(tmp_path), index={column: wrong}))


@pytest.mark.parametrize(
    ("figure", "value", "told"),
    [
        ("width", 5, r"00000-.*\.bin: 72 bytes are no whole rows of 30"),
        (
            "dtype",
            "float8",
            "holds tokens of type float8; this version of oacir reads bfloat16, float32, int8",
        ),
    ],
)
def test_a_store_whose_figures_do_not_fit_its_shards_is_refused(
    tmp_path: Path, figure: str, value: object, told: str
) -> None:
    manifest = Path(write_store(str(tmp_path))) / "manifest.json"
    said = json.loads(manifest.read_text())
    said["figures"][figure] = value
    manifest.write_text(json.dumps(said))
    with pytest.raises(VersionError, match=told):
        FeatureStore.open(str(manifest.parent))


@pytest.mark.parametrize("dtype", ["bfloat16", "float32", "int8"])
def test_a_gather_gives_what_was_stored_wherever_it_lies(tmp_path: Path, dtype: Dtype) -> None:
    store = FeatureStore.open(write_store(str(tmp_path), dtype=dtype))
    assert store.dtype == dtype
    expected = rounded(values(5), dtype)
    one_piece = store.placed(torch.device("cpu"), "device")
    assert len(one_piece._shards) == 1
    for rows in ([3, 0, 4, 0], [2, 1], [4], []):
        for some in (store, one_piece):
            assert torch.equal(some.gather(np.array(rows, np.int64)).float(), expected[rows])
            assert torch.equal(some.tokens(np.array(rows, np.int64)), expected[rows])
    assert store.size_bytes == one_piece.size_bytes == 5 * row_bytes(TOKENS, WIDTH, dtype)


def test_what_is_copied_to_a_device_are_the_stored_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copied = []

    def watched(tensor: torch.Tensor, device: torch.device) -> torch.Tensor:
        copied.append(tensor.nbytes)
        return tensor.to(device)

    store = FeatureStore.open(write_store(str(tmp_path), dtype="int8"))
    monkeypatch.setattr("training.features.moved", watched)
    found = store.gather(np.array([4, 0]), torch.device("cpu"))
    assert copied[-1] == 2 * TOKENS * (WIDTH + 4)
    assert found.nbytes == 2 * TOKENS * WIDTH * 4


def test_stores_of_other_types_are_not_joined(tmp_path: Path) -> None:
    stores = [
        FeatureStore.open(write_store(str(tmp_path / dtype), dtype=dtype)) for dtype in get_args(Dtype)[1:]
    ]
    with pytest.raises(
        VersionError, match=r"holds tokens of type int8, .* of type float32; run `oacir embed`"
    ):
        stores[0].joined(stores[1])
