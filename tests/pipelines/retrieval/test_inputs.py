"""What evaluation and queries read: models and benchmarks by name or place, galleries as the manifest states them."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from infra.base import storage, versions
from infra.base.command import Context
from infra.base.errors import OacirError, VersionError
from pipelines.encoding import tower_in
from pipelines.retrieval.inputs import (
    ImageTokens,
    StoreTokens,
    find_dataset,
    find_model,
    load_tasks,
    read_image,
    require_features,
)
from training.stored import rounded


def test_a_model_is_a_run_its_export_or_any_folder_of_one(context: Context, tmp_path: Path) -> None:
    by_name = find_model(context.root, "adafocal")
    assert by_name.run is not None
    assert find_model(context.root, by_name.run.url) == find_model(context.root, by_name.url) == by_name
    folder = tmp_path / "mine"
    shutil.copytree(by_name.url, folder)
    loose = find_model(context.root, str(folder))
    assert (loose.name, loose.run) == ("mine", None)
    (folder / "README.md").write_text("changed")
    assert find_model(context.root, str(folder)).content_hash != loose.content_hash
    with pytest.raises(VersionError, match="no finished runs 'nobody'"):
        find_model(context.root, "nobody")
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    with pytest.raises(VersionError, match="is a version of kind datasets; --model needs a run"):
        find_model(context.root, dataset.url)


def test_a_version_without_queries_is_no_benchmark(context: Context) -> None:
    assert find_dataset(context.root, "benchmark").manifest.name == "benchmark"
    features = versions.resolve(context.root, "features", "benchmark")
    with pytest.raises(VersionError, match="holds no quadruples, so there is nothing to ask"):
        find_dataset(context.root, features.url)


def test_tasks_are_the_queries_and_the_gallery_of_each_domain(context: Context) -> None:
    dataset = find_dataset(context.root, "benchmark")
    tasks = load_tasks(dataset, "test")
    assert [t.domain for t in tasks] == ["car", "product"]
    asked = {q["query_id"]: q for q in dataset.table("quadruples").to_pylist()}
    for task in tasks:
        assert task.queries.query_ids == sorted(task.queries.query_ids)
        assert len(task.queries) == 24  # 6 test instances of 4 scenes
        assert task.gallery.image_ids == sorted(task.gallery.image_ids)
        assert (len(task.gallery), task.distractors) == (24, 0)
        for n, query_id in enumerate(task.queries.query_ids):
            row = asked[query_id]
            assert task.queries.target_ids[n] == row["target_ids"][0]
            assert task.queries.texts[n] == row["modification_text"]
            assert task.queries.anchors[n].box == tuple(row["reference_box"])
            assert task.queries.anchors[n].size == (64, 64)
    assert load_tasks(dataset, "dev") == []


def test_a_gallery_that_was_changed_is_refused(make_root: Callable[..., Context], tmp_path: Path) -> None:
    def shorten(quadruples: list[Any], gallery: list[Any]) -> None:
        del gallery[-1]

    changed = find_dataset(make_root(tmp_path, shorten).root, "benchmark")
    with pytest.raises(VersionError, match=r"gallery product/test has hash .* changed after it was made"):
        load_tasks(changed, "test")


def test_tokens_of_the_images_are_those_of_the_store(context: Context) -> None:
    dataset, place = find_dataset(context.root, "benchmark"), find_model(context.root, "adafocal")
    model, processor = place.load()
    (store,) = require_features(context.root, None, place, dataset, processor)
    uri_of = {row["image_id"]: row["uri"] for row in dataset.table("images").to_pylist()}
    some = sorted(uri_of)[::9][::-1]
    stored = StoreTokens(store).tokens(some)
    fresh = ImageTokens(model, processor, uri_of, "bfloat16").tokens(some)
    assert stored.shape == fresh.shape
    assert torch.allclose(stored, fresh, rtol=2e-2, atol=1e-2)


def test_tokens_of_an_image_are_computed_as_those_of_the_run_were(context: Context) -> None:
    dataset, place = find_dataset(context.root, "benchmark"), find_model(context.root, "adafocal")
    model, processor = place.load()
    (store,) = require_features(context.root, None, place, dataset, processor)
    assert place.token_types(store) == ("bfloat16", "float32") == place.token_types(None)
    uri_of = {row["image_id"]: row["uri"] for row in dataset.table("images").to_pylist()}
    some = sorted(uri_of)[:4]
    pixels = processor.pixels([read_image(uri_of[image_id]) for image_id in some])
    halved = ImageTokens(place.load()[0], processor, uri_of, "bfloat16", "bfloat16")
    with torch.inference_mode():
        expected = tower_in(place.load()[0], "bfloat16", torch.device("cpu"))(pixels)
        assert torch.equal(halved.tokens(some), rounded(expected, "bfloat16"))
        whole = ImageTokens(model, processor, uri_of, "bfloat16").tokens(some)
    assert not torch.equal(halved.tokens(some), whole)


def test_features_of_another_tower_are_refused(context: Context, tmp_path: Path) -> None:
    dataset, place = find_dataset(context.root, "benchmark"), find_model(context.root, "adafocal")
    _, processor = place.load(with_tower=False)
    with pytest.raises(VersionError, match=r"no features of .* run `oacir embed --dataset"):
        require_features(str(tmp_path), None, place, dataset, processor)


def test_an_image_may_come_smaller_and_what_is_none_is_refused(context: Context, tmp_path: Path) -> None:
    uri = find_dataset(context.root, "benchmark").table("images")["uri"].to_pylist()[0]
    assert read_image(uri).size == (64, 64)
    assert min(read_image(uri, 20).size) >= 20
    assert read_image(uri, 20).width < 64
    text = storage.join(str(tmp_path), "a.jpg")
    storage.write_bytes(text, b"no image")
    with pytest.raises(OacirError, match=r"a\.jpg: not_an_image .* give an image that can be read"):
        read_image(text)
