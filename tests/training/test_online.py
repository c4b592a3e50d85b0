"""Training from pixels on two workers: equal to training on stored tokens; what it leaves where the tower learns."""

from __future__ import annotations

import dataclasses
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import ray
import torch
from small_benchmark import write_benchmark
from small_plan import plan_of
from worker_killer import Killer

from infra.base.command import Context
from infra.base.errors import OacirError, VersionError
from infra.base.versions import Version, open_version
from pipelines.embed import embed
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate
from training.answers import with_negatives
from training.batches import Sampler
from training.config import TrainingSection, TrainRecipe
from training.data import read_quadruples
from training.devset import MEASURES, load_dev, measure
from training.export import build_model, open_model
from training.feed import Fed, Feed
from training.online import STEPS_OPENED_BEFORE, STEPS_PLANNED, OnlineFeed, StepShards, StepStream
from training.pixels import image_set
from training.reader import Plan, Reader
from training.tower_config import TowerSection
from training.trainer import train

SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32, "vision_config.num_hidden_layers": 2,
}  # fmt: skip
STEPS = 6
COLUMNS = ["step", "epoch", "loss", "temperature", "gradient_norm"]


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
@pytest.mark.slow
def test_a_frozen_tower_from_pixels_learns_as_from_stored_tokens(scene: Scene) -> None:
    embed(online_recipe(), Context(root=scene.root))
    stored = scene.train(online_recipe())
    online = scene.train(online_recipe(tower={"mode": "frozen"}))
    assert stored.url != online.url
    assert column(online, "step").tolist() == list(range(1, STEPS + 1))
    assert column(online, "loss") == pytest.approx(column(stored, "loss"), rel=1e-4)
    assert column(online, "loss")[-1] < column(online, "loss")[0]
    for name in MEASURES:
        assert online.table("dev")[name].to_pylist() == stored.table("dev")[name].to_pylist()
    assert online.manifest.parents == {"dataset": scene.dataset.manifest.content_hash}


class Shard:
    """A worker's shard whose blocks end where they like."""

    def __init__(
        self, plan: Plan, steps: range, rank: int = 0, world_size: int = 1, rows_of_block: int = 7
    ) -> None:
        reader = Reader(plan, rank, world_size)
        read = [reader.read(step) for step in steps]
        whole = {name: np.concatenate([part[name] for part in read]) for name in read[0]}
        starts = range(0, len(whole["step"]), rows_of_block)
        self.blocks = [{n: v[i : i + rows_of_block] for n, v in whole.items()} for i in starts]

    def iter_batches(self, **_: object) -> list[dict[str, np.ndarray]]:
        return self.blocks


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return plan_of(write_benchmark(tmp_path_factory.mktemp("plan"), identities=6), {"mode": "frozen"})


def fed(plan: Plan, shard: object, start: int, total: int, rank: int = 0, world_size: int = 1) -> list[Fed]:
    with OnlineFeed(shard, plan, rank, world_size, torch.device("cpu"), start, total) as feed:
        return list(feed)


@pytest.mark.parametrize("negatives", [{}, {"reference_negatives": True, "false_negatives": "equivalent"}])
def test_batches_are_those_of_stored_tokens_with_pixels_in_their_place(
    plan: Plan, negatives: dict[str, object]
) -> None:
    """Blocks of the stream that end within a step change nothing."""
    section = TrainingSection.model_validate(negatives)
    dataset = plan.images.version
    quadruples = read_quadruples(dataset, "train")
    queries = with_negatives(plan.queries, section, quadruples, dataset, plan.images)
    plan = dataclasses.replace(plan, queries=queries)
    per_epoch, rows = plan.sampler.steps_per_epoch, np.arange(len(plan.images))
    pixels = plan.processor.pixels([plan.images.image(int(row)) for row in rows])
    store = SimpleNamespace(gather=lambda wanted, _: pixels[torch.from_numpy(wanted)])
    steps = (2, per_epoch + 1)
    found = fed(plan, Shard(plan, range(*steps), 1, 2), *steps, 1, 2)
    with Feed(store, plan.queries, plan.sampler, 1, 2, torch.device("cpu"), *steps) as feed:  # type: ignore[arg-type]
        expected = list(feed)
    assert (
        (expected[0].batch.reference_index is None)
        == (expected[0].batch.right_images is None)
        == (not negatives)
    )
    assert [one.epoch for one in found] == [one.epoch for one in expected]
    for one, other in zip(found, expected, strict=True):
        assert np.array_equal(one.rows, other.rows)
        for ours, theirs in zip(one.batch, other.batch, strict=True):
            same = torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs
            assert same


def test_a_stream_that_is_elsewhere_is_refused(plan: Plan) -> None:
    with pytest.raises(OacirError, match="the stream of images is at step 4, training at step 3"):
        fed(plan, Shard(plan, range(3, 6)), 2, 5)
    with pytest.raises(OacirError, match="ended before step 4"):
        fed(plan, Shard(plan, range(2, 3)), 2, 5)


def test_a_stream_goes_on_where_an_execution_ends() -> None:
    begun = []

    def dataset(start: int, end: int, *worker: object) -> object:
        assert worker == (1, 2, "node")
        begun.append(start)
        return SimpleNamespace(iter_batches=lambda **_: ({"step": np.array([n])} for n in range(start, end)))

    total = 2 * STEPS_PLANNED + 7
    shards = SimpleNamespace(total_steps=total, dataset=dataset)
    stream = StepStream(shards, 3, 1, 2, "node").iter_batches()  # type: ignore[arg-type]
    steps = [int(next(stream)["step"][0]) for _ in range(STEPS_PLANNED - STEPS_OPENED_BEFORE - 3)]
    assert begun == [3]  # not earlier than needed
    steps += [int(batch["step"][0]) for batch in stream]
    assert steps == list(range(3, total))
    assert begun == [3, 3 + STEPS_PLANNED, 3 + 2 * STEPS_PLANNED]


def test_a_stream_begins_the_next_execution_before_the_present_one_ends() -> None:
    opened = threading.Event()

    def dataset(start: int, end: int, *_: object) -> object:
        if start:
            opened.set()
        return SimpleNamespace(iter_batches=lambda **_: ({"step": np.array([n])} for n in range(start, end)))

    shards = SimpleNamespace(total_steps=2 * STEPS_PLANNED, dataset=dataset)
    stream = StepStream(shards, 0, 0, 1, None).iter_batches()  # type: ignore[arg-type]
    for _ in range(STEPS_PLANNED - STEPS_OPENED_BEFORE + 2):
        next(stream)
    assert opened.wait(timeout=30)


@pytest.mark.ray
def test_a_stream_takes_a_few_processes_however_many_steps_it_has(
    plan: Plan, ray_session: None, tmp_path: Path
) -> None:
    steps, readers = 48, 1
    section = TowerSection(mode="frozen", readers=readers)
    sampler = Sampler(np.zeros(len(plan.queries), np.int64), 2, 0)
    small = ray.put(dataclasses.replace(plan, sampler=sampler))
    shards = StepShards(str(tmp_path), steps, small, section, 10**6)
    ((shard,),) = (each.values() for each in shards.configure({}, 1, None, None))
    (raylet,) = ray._private.worker._global_node.all_processes["raylet"]
    workers = psutil.Process(raylet.process.pid)
    before, most, ended = len(workers.children()), [0], threading.Event()

    def count() -> None:
        while not ended.wait(0.2):
            most.append(len(workers.children()))

    counting = threading.Thread(target=count)
    counting.start()
    seen = [
        step
        for batch in shard.iter_batches(batch_size=None, prefetch_batches=1)
        for step in sorted(set(batch["step"].tolist()))
    ]
    ended.set()
    counting.join()
    assert seen == list(range(steps))
    assert max(most) < before + 10


def test_a_photo_that_cannot_be_read_ends_the_stream_in_one_line(plan: Plan) -> None:
    shard = Shard(plan, range(2))
    shard.blocks[3]["error"] = np.array(["there.jpg: changed", *[""] * 6])
    with pytest.raises(OacirError, match=r"^there\.jpg: changed$"):
        fed(plan, shard, 0, 2)


LORA = {"mode": "lora", "lora_rank": 4, "learning_rate": 3e-3, "crop": 0.5}


@pytest.fixture(scope="module")
def adapted(scene: Scene) -> Version:
    """Trained with adapters, on random cuts."""
    return scene.train(online_recipe(tower=LORA))


@pytest.mark.ray
def test_a_trained_tower_is_in_the_export_with_its_adapters_merged(scene: Scene, adapted: Version) -> None:
    model, _ = open_model(adapted.url)
    start = build_model(online_recipe().model)
    assert set(model.state_dict()) == set(start.state_dict())
    moved = {
        name.removeprefix("vision_model.encoder.layers.")
        for name, weight in model.state_dict().items()
        if name.startswith("vision_model.") and not torch.equal(weight, start.state_dict()[name])
    }
    assert moved == {f"{n}.self_attn.{part}.weight" for n in (0, 1) for part in ("qkv", "projection")}
    assert (adapted.manifest.figures["tower"], "feature_key" in adapted.manifest.figures) == ("lora", False)


@pytest.mark.ray
def test_dev_is_measured_with_the_tower_of_that_moment(scene: Scene, adapted: Version) -> None:
    """Two workers measured from pixels with adapters; one process measures the export on tokens of its merged tower."""
    model, processor = open_model(adapted.url)
    config = model.config
    images = image_set(scene.dataset, processor, (config.num_image_tokens, config.vision_config.hidden_size))
    galleries = load_dev(scene.dataset, images, processor)
    with torch.no_grad():
        tokens = torch.cat(
            [model.encode_pixels(processor.pixels([images.image(row)])) for row in range(len(images))]
        )
    held = SimpleNamespace(tokens=lambda rows: tokens[torch.from_numpy(rows)])
    found = measure(model, held, galleries, torch.device("cpu"), batch_size=7)
    told = [[row[name] for name in ("queries", *MEASURES)] for row in adapted.table("dev").to_pylist()]
    assert np.array(told) == pytest.approx(np.array(found))


@pytest.mark.ray
def test_evaluation_of_a_trained_tower_asks_for_its_own_features_and_then_works(
    scene: Scene, adapted: Version
) -> None:
    asked = EvaluateRecipe(model=adapted.url, dataset=scene.dataset.url)
    with pytest.raises(VersionError, match=f"--model.weights {adapted.url}` with the recipe"):
        evaluate(asked, Context(root=scene.root))
    recipe = online_recipe(model={"overrides": {}, "crm_layers": None, "weights": adapted.url}, tower=LORA)
    embed(recipe, Context(root=scene.root))
    figures = evaluate(asked, Context(root=scene.root)).figures
    assert figures["overall"]["metrics"]


@pytest.mark.ray
@pytest.mark.long
@pytest.mark.timeout(900)
def test_killed_workers_go_on_in_mid_epoch_with_the_same_losses(scene: Scene, tmp_path: Path) -> None:
    """A block of the tower learns on random cuts, beside references and a memory bank: weights, optimizer, bank and
    every draw are those of an unbroken run."""
    steps = 16
    recipe = online_recipe(
        training={
            "epochs": 9,
            "batch_size": 10,
            "steps": steps,
            "dev_every_epochs": None,
            "false_negatives": "equivalent",
            "reference_negatives": True,
            "memory_bank": 24,
        },
        tower={"mode": "last", "layers": 1, "learning_rate": 3e-3, "crop": 0.5, "flip": True, "readers": 2},
    )
    whole = scene.train(recipe)
    killer = Killer(tmp_path / "again", steps // 2 - 1)
    killer.start()
    outcome = train(recipe, Context(root=scene.root, out=str(tmp_path / "again")))
    killer.over.set()
    killer.join()
    assert len(killer.killed) == 2, "the workers were to be killed in the middle"
    again = open_version(str(outcome.location))
    assert again.table("history", COLUMNS).equals(whole.table("history", COLUMNS))
    assert again.manifest.content_hash == whole.manifest.content_hash
