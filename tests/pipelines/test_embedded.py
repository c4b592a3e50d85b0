"""What earlier stores hold is copied; only new contents go through the tower."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from small_benchmark import write_benchmark

from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.embed import embed
from pipelines.embedded import Place, places, read
from training.config import TrainRecipe
from training.features import FeatureStore

ROW = 4


def recipe(benchmark: Version, **changes: object) -> TrainRecipe:
    sections = {"embed": {"images_per_shard": 10, "batch_size": 4, "workers": 1}, **changes}
    return TrainRecipe.model_validate({"dataset": benchmark.url, **sections})


def photos(benchmark: Version) -> dict[str, str]:
    """SHA-256 → URI."""
    return {r["sha256"]: r["uri"] for r in benchmark.table("images", ["sha256", "uri"]).to_pylist()}


@pytest.mark.parametrize("view", ["full", "crop"])
@pytest.mark.ray
def test_an_update_embeds_only_new_images(ray_session: None, tmp_path: Path, view: str) -> None:
    root = Context(root=str(tmp_path))
    model = {"modulation": "none", "reference_view": view}
    before = write_benchmark(tmp_path, identities=6, domains=("a",))
    after = write_benchmark(tmp_path, identities=9, domains=("a",))
    old, new = photos(before), photos(after)
    assert set(old) < set(new)
    first = embed(recipe(before, model=model), root)
    # were one of these opened again, the work would stop: they are no images any more
    for sha256 in old:
        Path(new[sha256]).write_bytes(b"gone")

    plan = embed(recipe(after, model=model), Context(root=str(tmp_path), dry_run=True))
    assert (
        "36 distinct contents = 12 forwards of the tower and 24 copied from earlier stores" in plan.details[0]
    )
    outcome = embed(recipe(after, model=model), root)
    assert (outcome.figures["forwards"], outcome.figures["copied"]) == (12, 24)
    assert "(24 of them copied from earlier stores)" in outcome.message
    stores = [(first.location, outcome.location)]
    if view == "crop":
        stores.append((first.figures["views"]["location"], outcome.figures["views"]["location"]))
        assert (outcome.figures["views"]["forwards"], outcome.figures["views"]["copied"]) == (12, 24)
    for was, now in stores:
        earlier, later = FeatureStore.open(was), FeatureStore.open(now)
        assert (len(earlier), len(later)) == (24, 36)
        ids = earlier.version.table("index", ["image_id"])["image_id"].to_pylist()
        assert torch.equal(earlier.tokens(earlier.rows(ids)), later.tokens(later.rows(ids)))
    # what stands for a finished store is what it says of itself, not what another command would do now
    assert embed(recipe(after, model=model), root).figures["forwards"] == 12


@pytest.mark.ray
def test_tokens_of_another_tower_are_none_of_ours(ray_session: None, tmp_path: Path) -> None:
    benchmark = write_benchmark(tmp_path, identities=6, domains=("a",))
    store = FeatureStore.open(str(embed(recipe(benchmark), Context(root=str(tmp_path))).location))
    row_bytes = store.shape[0] * store.shape[1] * 2
    assert len(places(str(tmp_path), store.key, photos(benchmark), row_bytes)) == 24
    assert places(str(tmp_path), "another", photos(benchmark), row_bytes) == {}
    cut = next(Path(store.version.url).glob("shards/00000-*.bin"))
    cut.write_bytes(cut.read_bytes()[:-1])
    assert (
        len(places(str(tmp_path), store.key, photos(benchmark), row_bytes)) == 14
    )  # its ten are not trusted


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    shards = [str(tmp_path / name) for name in ("a", "b")]
    for number, shard in enumerate(shards):
        Path(shard).write_bytes(b"".join(bytes([16 * number + row] * ROW) for row in range(8)))
    asked = [
        Place(shards[1], 2),
        Place(shards[0], 7),
        Place(shards[1], 1),
        Place(shards[0], 0),
        Place(shards[1], 3),
    ]
    assert read(asked, ROW) == [bytes([n] * ROW) for n in (18, 7, 17, 0, 19)]
    assert read([], ROW) == []


def test_a_shard_that_shrank_is_told(tmp_path: Path) -> None:
    shard = tmp_path / "a"
    shard.write_bytes(bytes(6))
    with pytest.raises(
        OacirError, match=r"are there: the file was cut or replaced.*remove that feature store"
    ):
        read([Place(str(shard), 1)], ROW)
