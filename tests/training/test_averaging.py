"""On two workers with ZeRO-2: the exported average of the weights, and the stop when dev no longer gets better."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from small_benchmark import write_benchmark
from worker_killer import Killer

from infra.base import versions
from infra.base.command import Context
from pipelines.embed import embed
from training.config import TrainRecipe
from training.export import build_model
from training.trainer import train

DECAY = 0.6
COLUMNS = ["step", "loss", "temperature", "beta_mean", "gradient_norm"]
SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32,
}  # fmt: skip


def recipe(**training: Any) -> TrainRecipe:
    return TrainRecipe.model_validate(
        {
            "name": "averaged",
            "dataset": "small",
            "model": {"overrides": SMALL, "crm_layers": 1},
            "embed": {"images_per_shard": 64, "workers": 1},
            "training": {
                "batch_size": 24, "learning_rate": 3e-3, "caam_learning_rate": 3e-3, "schedule": "constant",
                "warmup_fraction": 0.0, "dev_every_epochs": None, **training,
            },
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def root(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("averaged")
    write_benchmark(folder, identities=12)
    embed(recipe(), Context(root=str(folder)))
    return str(folder)


def run(root: str, **training: Any) -> versions.Version:
    return versions.open_version(str(train(recipe(**training), Context(root=root)).location))


def weights(trained: versions.Version) -> dict[str, torch.Tensor]:
    """What a run exports."""
    return load_file(trained.path("export/model.safetensors"))


@pytest.mark.ray
@pytest.mark.long
def test_the_export_is_the_average_of_the_weights_after_every_step(root: str) -> None:
    start = build_model(recipe().model).state_dict()
    plain, average = run(root, steps=2), run(root, steps=2, ema_decay=DECAY)
    assert average.table("history", COLUMNS).equals(
        plain.table("history", COLUMNS)
    )  # training knows nothing of it
    after, averaged = [start, weights(run(root, steps=1)), weights(plain)], weights(average)
    assert averaged.keys() == after[2].keys()
    moved = 0
    for name, found in averaged.items():
        first, second, third = (w[name].double().reshape(found.shape) for w in after)
        expected = DECAY**2 * first + DECAY * (1 - DECAY) * second + (1 - DECAY) * third
        assert torch.allclose(found.double(), expected, rtol=1e-5, atol=1e-6), name
        moved += int(not torch.allclose(found.double(), third, rtol=1e-5, atol=1e-6))
    assert moved > 20


@pytest.mark.ray
@pytest.mark.long
def test_an_average_survives_a_kill(root: str) -> None:
    steps = 40
    asked = {"steps": steps, "epochs": 40}
    whole = run(root, **asked, ema_decay=DECAY)
    folder = Path(root) / "again"
    killer = Killer(folder, steps // 2)
    killer.start()
    outcome = train(recipe(**asked, ema_decay=DECAY), Context(root=root, out=str(folder)))
    killer.over.set()
    killer.join()
    assert len(killer.killed) == 2, "the workers were to be killed in the middle"
    again = versions.open_version(str(outcome.location))
    assert again.table("history", COLUMNS).equals(whole.table("history", COLUMNS))
    assert again.manifest.content_hash == whole.manifest.content_hash


@pytest.mark.ray
def test_patience_ends_a_training_that_no_longer_gets_better(root: str) -> None:
    asked = recipe(
        epochs=9,
        dev_every_epochs=1,
        select="best_on_dev",
        patience=2,
        learning_rate=1e-12,
        caam_learning_rate=1e-12,
    )
    outcome = train(asked, Context(root=root))
    stopped = versions.open_version(str(outcome.location))
    dev = stopped.table("dev").to_pydict()
    assert sorted(set(dev["step"])) == [3, 6, 9]  # the first is the best, two more are not better
    assert stopped.table("history")["step"].to_pylist() == list(range(1, 10))
    assert (outcome.figures["steps"], outcome.figures["exported_step"]) == (9, 3)
    assert outcome.message.startswith("trained 9 steps in")
    # told of itself, not of the 27 steps that the recipe allows
    assert train(asked, Context(root=root)).message.startswith("nothing to do")
