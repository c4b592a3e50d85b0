"""Training from pixels on two workers: equal to training on stored tokens; what it leaves where the tower learns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from small_benchmark import write_benchmark

from infra.base.command import Context
from infra.base.versions import Version, open_version
from pipelines.embed import embed
from training.config import TrainRecipe
from training.trainer import train

SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32, "vision_config.num_hidden_layers": 2,
}  # fmt: skip
STEPS = 6


def online_recipe(**changes: dict[str, object]) -> TrainRecipe:
    """32 quadruples in two batches of an epoch."""
    tree: dict[str, dict[str, object]] = {
        "model": {"overrides": SMALL, "crm_layers": 1},
        "embed": {"images_per_shard": 512, "workers": 1, "dtype": "float32"},
        "training": {
            "epochs": 3, "batch_size": 16, "learning_rate": 3e-3, "caam_learning_rate": 3e-3, "dev_every_epochs": 3,
        },
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return TrainRecipe.model_validate({"name": "online", "dataset": "small", **tree})


@dataclass(frozen=True)
class Scene:
    root: str
    dataset: Version

    def train(self, recipe: TrainRecipe) -> Version:
        location = train(recipe, Context(root=self.root)).location
        assert location is not None
        return open_version(location)


@pytest.fixture(scope="module")
def scene(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root = tmp_path_factory.mktemp("online")
    return Scene(str(root), write_benchmark(root, identities=6))


def column(run: Version, name: str) -> np.ndarray:
    return np.array(run.table("history")[name].to_pylist())


@pytest.mark.ray
def test_a_frozen_tower_from_pixels_learns_as_from_stored_tokens(scene: Scene) -> None:
    embed(online_recipe(), Context(root=scene.root))
    stored = scene.train(online_recipe())
    online = scene.train(online_recipe(tower={"mode": "frozen"}))
    assert stored.url != online.url
    assert column(online, "step").tolist() == list(range(1, STEPS + 1))
    assert column(online, "loss") == pytest.approx(column(stored, "loss"), rel=1e-4)
    assert column(online, "loss")[-1] < column(online, "loss")[0]
    for measure in ("R_ID@1", "R@1", "R@5"):
        assert online.table("dev")[measure].to_pylist() == stored.table("dev")[measure].to_pylist()
    assert online.manifest.parents == {"dataset": scene.dataset.manifest.content_hash}
