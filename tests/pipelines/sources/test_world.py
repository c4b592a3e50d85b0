from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image

from infra.base.command import Context
from infra.base.config import load_recipe
from infra.base.versions import list_versions, open_version
from pipelines import world
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.sources.world import WorldSource, code_hash, instances
from pipelines.world.config import WorldConfig
from pipelines.world.scenes import scenes_of

TINY = WorldConfig(
    image_size_px=48, instances_per_domain=5, scenes_per_instance=4, domains=("product", "car")
)


def source(root: Path, per_part: int = 8, workers: int = 1, config: WorldConfig = TINY) -> WorldSource:
    return WorldSource(config, str(root), images_per_part=per_part, workers=workers)


def test_instances_come_in_the_order_of_the_listing() -> None:
    assert instances(TINY) == [("car", n) for n in range(5)] + [("product", n) for n in range(5)]


def test_expected_images_are_counted_without_rendering(tmp_path: Path) -> None:
    expected = {d: sum(len(list(scenes_of(TINY, d, n))) for n in range(5)) for d in ("car", "product")}
    assert source(tmp_path).expected_images() == expected
    assert not any(tmp_path.iterdir())


def test_the_fingerprint_tells_options_and_code_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    same = source(tmp_path).fingerprint()
    assert source(tmp_path / "elsewhere", per_part=3, workers=2).fingerprint() == same
    assert source(tmp_path, config=TINY.model_copy(update={"jpeg_quality": 80})).fingerprint() != same
    package = tmp_path / "world"
    package.mkdir()
    (package / "__init__.py").write_text("a = 1")
    monkeypatch.setattr(world, "__file__", str(package / "__init__.py"))
    hashes = set()
    for text in ("a = 1", "a = 2"):
        (package / "looks.py").write_text(text)
        code_hash.cache_clear()
        hashes.add(code_hash())
    code_hash.cache_clear()
    assert len(hashes) == 2


@pytest.mark.ray
def test_a_rendered_world_is_a_version_of_images_and_their_truth(tmp_path: Path, ray_session: None) -> None:
    made = source(tmp_path)
    rows = [row for table in made.listing() for row in table.to_pylist()]
    assert [r["image_id"] for r in rows] == sorted(r["image_id"] for r in rows)
    assert len(rows) == sum(made.expected_images().values())
    for row in rows:
        data = Path(row["uri"]).read_bytes()
        assert (hashlib.sha256(data).hexdigest(), len(data)) == (row["mark"], row["size_bytes"])
        assert json.loads(row["context_json"])["place"]
        x1, y1, x2, y2 = row["box"]
        assert 0 <= x1 < x2 <= 48
        assert 0 <= y1 < y2 <= 48
    with Image.open(rows[0]["uri"]) as image:
        assert image.size == (48, 48)
    assert list(made.rejects()) == []


@pytest.mark.ray
def test_same_options_same_content_on_any_number_of_workers_and_parts(
    tmp_path: Path, ray_session: None
) -> None:
    first = source(tmp_path / "a", per_part=8, workers=1).version.manifest
    second = source(tmp_path / "b", per_part=4, workers=2).version.manifest
    assert len(second.files) > len(first.files)
    assert second.content_hash == first.content_hash
    assert second.key == first.key
    other = source(tmp_path / "c", config=TINY.model_copy(update={"seed": 1})).version.manifest
    assert other.content_hash != first.content_hash


@pytest.mark.ray
def test_a_half_rendered_world_goes_on_with_the_parts_it_was_begun_with(
    tmp_path: Path, ray_session: None
) -> None:
    whole = source(tmp_path / "whole", per_part=4).version
    half = source(tmp_path / "half", per_part=4).version
    for gone in (half.path("manifest.json"), half.path("_accounts/render/part-00002.json")):
        Path(gone).unlink()
    kept = Path(half.path("listing/part-00001.parquet")).stat().st_mtime_ns
    again = source(tmp_path / "half", per_part=100).version
    assert again.manifest.content_hash == whole.manifest.content_hash
    assert Path(again.path("listing/part-00001.parquet")).stat().st_mtime_ns == kept


@pytest.mark.ray
def test_the_shipped_world_recipe_builds_a_benchmark(tmp_path: Path, ray_session: None) -> None:
    options = {
        "source.world.instances_per_domain": "10",
        "source.world.scenes_per_instance": "5",
        "source.world.image_size_px": "48",
    }
    outcome = build(load_recipe(BuildRecipe, "world", list(options.items())), Context(root=str(tmp_path)))
    assert outcome.location is not None
    version = open_version(outcome.location)
    named = {v.manifest.name: v for v in list_versions(str(tmp_path), "datasets")}
    assert named["world"].url == version.url
    assert set(named) == {"world", "world-images"}  # the rendered images do not go by the benchmark's name
    figures = version.manifest.figures
    assert figures["annotator"] == "world"
    assert all(sum(f["queries"].values()) > 0 for f in figures["domains"].values())
    assert len(version.manifest.parents["world"]) == 64
    texts = version.table("quadruples").to_pylist()
    limits = {"car": 25}
    assert all(10 <= len(q["modification_text"].split()) <= limits.get(q["domain"], 30) for q in texts)
