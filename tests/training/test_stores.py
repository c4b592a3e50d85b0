"""Which stores a benchmark needs, and how they are found, joined or refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from small_benchmark import write_benchmark

from infra.base import storage, versions
from infra.base.config import Config
from infra.base.errors import OacirError, VersionError
from training.data import all_quadruples, read_quadruples, used_images
from training.features import FeatureStore, shard_path, store_key
from training.model.processing import AdaFocalProcessor, train_wordpiece
from training.stores import Contents, joined, needed


class Nothing(Config):
    """A recipe without fields."""


def processor(**settings: Any) -> AdaFocalProcessor:
    return AdaFocalProcessor(train_wordpiece(["a"], 30), 56, 14, 1.25, 8, **settings)


@pytest.fixture(scope="module")
def benchmark(tmp_path_factory: pytest.TempPathFactory) -> versions.Version:
    return write_benchmark(tmp_path_factory.mktemp("stores"), 6, domains=("a",), masked=("red",))


def write_store(
    root: Path, contents: Contents, key: str, value: float, shape: tuple[int, int] = (2, 3)
) -> str:
    """A store of one shard; every token of row i is `value` + i."""
    hashes = contents.hashes
    distinct = list(dict.fromkeys(hashes))
    draft = versions.start("features", "small", store_key(key, hashes), Nothing(), root=str(root))
    tokens = (value + torch.arange(len(distinct)).float())[:, None, None].expand(-1, *shape).contiguous()
    shard = shard_path(0, distinct)
    storage.write_bytes(draft.path(shard), tokens.view(torch.uint8).numpy().tobytes())
    index = {
        "image_id": contents.images["image_id"],
        "sha256": contents.images["sha256"],
        "shard": pa.array([0] * len(hashes), pa.int32()),
        "row": pa.array([distinct.index(h) for h in hashes], pa.int64()),
    }
    storage.write_table(draft.path("index.parquet"), pa.table(index))
    files = [versions.file_entry(draft.url, path) for path in (shard, "index.parquet")]
    figures = {
        "feature_key": key,
        "tokens": shape[0],
        "width": shape[1],
        "dtype": "float32",
        "view": contents.view,
    }
    return draft.commit(content_hash=key, files=files, figures=figures).url


def test_whole_references_need_the_images_alone(benchmark: versions.Version) -> None:
    (images,) = needed(benchmark, processor())
    assert images.view == "full"
    assert images.images.equals(used_images(benchmark))
    assert images.hashes == used_images(benchmark)["sha256"].to_pylist()


@pytest.mark.parametrize("view", ["crop", "drawn"])
def test_a_view_needs_every_reference_with_its_box_too(benchmark: versions.Version, view: str) -> None:
    images, views = needed(benchmark, processor(reference_view=view))
    assert images.hashes == used_images(benchmark)["sha256"].to_pylist()
    sha256 = dict(zip(*(used_images(benchmark)[n].to_pylist() for n in ("image_id", "sha256")), strict=True))
    rows = all_quadruples(benchmark).to_pylist()
    expected = {}
    for row in rows:
        box = ",".join(str(int(v)) for v in row["reference_box"])
        expected[f"{row['reference_id']}#{box}"] = f"{sha256[row['reference_id']]}#{box}"
    assert views.images["image_id"].to_pylist() == sorted(expected)
    assert views.hashes == [expected[key] for key in sorted(expected)]
    keys = {
        contents.feature_key("tower", processor(reference_view=view), "float32")
        for contents in (images, views, Contents("crop" if view == "drawn" else "drawn", views.images))
    }
    assert len(keys) == 3


def test_a_mask_changes_the_view_of_its_reference(benchmark: versions.Version) -> None:
    """The discs on red are smaller than their boxes; the other three references of each identity have no mask."""
    _, boxes = needed(benchmark, processor(reference_view="crop"))
    _, masks = needed(benchmark, processor(reference_view="crop", region="mask"))
    assert len(masks.hashes) == len(boxes.hashes) == 24
    changed = set(masks.images["image_id"].to_pylist()) - set(boxes.images["image_id"].to_pylist())
    assert len(changed) == 6
    assert all("/red.png#" in name for name in changed)


def test_a_store_is_found_by_what_it_holds_and_joined(benchmark: versions.Version, tmp_path: Path) -> None:
    images, views = needed(benchmark, processor(reference_view="crop"))
    assert images.find(str(tmp_path), ["k0", "k1"], "small") is None
    write_store(tmp_path, images, "k1", 0.0)
    write_store(tmp_path, views, "k2", 100.0)
    stores = [images.find(str(tmp_path), ["k0", "k1"]), views.find(str(tmp_path), ["k2"], "small")]
    assert [store.key for store in stores if store] == ["k1", "k2"]
    both = joined([store for store in stores if store])
    assert (len(both), both.shape, both.key) == (24 + 24, (2, 3), "k1")
    some = [views.images["image_id"][5].as_py(), images.images["image_id"][7].as_py()]
    assert both.tokens(both.rows(some))[:, 0, 0].tolist() == [105.0, 7.0]
    with pytest.raises(OacirError, match="not in this feature store"):
        both.rows(["a/none.png#1,2,3,4"])


def test_stores_that_do_not_fit_are_not_joined(benchmark: versions.Version, tmp_path: Path) -> None:
    images, views = needed(benchmark, processor(reference_view="crop"))
    whole = FeatureStore.open(write_store(tmp_path, images, "k1", 0.0))
    with pytest.raises(VersionError, match="none of the images"):
        joined([whole, whole])
    wide = FeatureStore.open(write_store(tmp_path, views, "k2", 0.0, shape=(2, 4)))
    with pytest.raises(VersionError, match="none of the images"):
        joined([whole, wide])


def test_a_stale_store_is_named_with_the_reason(benchmark: versions.Version, tmp_path: Path) -> None:
    images, views = needed(benchmark, processor(reference_view="drawn"))
    root = str(tmp_path)
    assert views.missing(root, ["k"], benchmark).endswith(f"can read under {root}")
    write_store(tmp_path, images, "k", 0.0)  # of the images: nothing about the views
    assert "is stale" not in views.missing(root, ["k"], benchmark)
    write_store(tmp_path, views, "older", 0.0)
    assert "stale, made with key older" in views.missing(root, ["k"], benchmark)
    assert "references' views (drawn)" in views.missing(root, ["k"], benchmark)
    fewer = Contents(views.view, views.images.slice(3))
    assert fewer.find(root, ["older"], "small") is None
    assert "stale, of other images or boxes" in fewer.missing(root, ["older"], benchmark)


def test_a_benchmark_from_before_masks_is_read(benchmark: versions.Version, tmp_path: Path) -> None:
    old = write_benchmark(tmp_path, identities=6, domains=("a",))
    place = old.path("quadruples.parquet")
    masks = ["reference_mask_uri", "reference_mask_sha256"]
    storage.write_table(place, storage.read_table(place).drop_columns(masks))
    rows = read_quadruples(old, "train")
    assert len(rows) == 16
    assert rows.select(masks).to_pylist() == [dict.fromkeys(masks)] * 16
    (images,) = needed(old, processor(region="mask"))
    assert len(images.images) == 24
