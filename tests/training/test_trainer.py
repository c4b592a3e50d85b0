"""A whole training on two workers with ZeRO-2: what it leaves, what it repeats, what it refuses."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from small_benchmark import write_benchmark

from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, VersionError
from infra.base.versions import Version, open_version
from pipelines.embed import embed
from training import checkpoints
from training.batches import Sampler
from training.config import ModelSection, TrainRecipe
from training.data import image_sizes, load_queries, read_quadruples
from training.devset import MEASURES, load_dev, measure
from training.export import build_model, build_processor, open_model
from training.features import FeatureStore
from training.optim import rate_factor
from training.trainer import diverged_line, train

EPOCHS, STEPS = 4, 12
SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32,
}  # fmt: skip


def small_recipe(**changes: dict[str, object]) -> TrainRecipe:
    """64 quadruples in 3 steps per epoch."""
    tree: dict[str, dict[str, object]] = {
        "model": {"overrides": SMALL, "crm_layers": 1},
        "embed": {"images_per_shard": 32, "workers": 1},
        "training": {
            "epochs": EPOCHS, "batch_size": 24, "learning_rate": 3e-3, "caam_learning_rate": 3e-3,
            "dev_every_epochs": 1, "select": "best_on_dev",
        },
    }  # fmt: skip
    for section, values in changes.items():
        tree[section] = tree.get(section, {}) | values
    return TrainRecipe.model_validate({"name": "small", "dataset": "small", **tree})


@dataclass(frozen=True)
class Trained:
    """A finished run and what it was made of."""

    root: str
    dataset: Version
    features: str
    outcome: Outcome

    @property
    def run(self) -> Version:
        assert self.outcome.location is not None
        return open_version(self.outcome.location)


@pytest.fixture(scope="module")
def trained(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    root = tmp_path_factory.mktemp("train")
    dataset = write_benchmark(root, identities=12)
    features = embed(small_recipe(), Context(root=str(root))).location
    assert features is not None
    return Trained(str(root), dataset, features, train(small_recipe(), Context(root=str(root))))


def first_loss(trained: Trained) -> float:
    """InfoNCE of the start weights on the first batch, in one process, from the definition."""
    recipe = small_recipe()
    quadruples = read_quadruples(trained.dataset, "train")
    model = build_model(recipe.model, with_tower=False).train()
    processor = build_processor(recipe.model, model.config, quadruples["modification_text"].to_pylist)
    store = FeatureStore.open(trained.features)
    queries = load_queries(quadruples, image_sizes(trained.dataset), store, processor)
    rows = Sampler(np.zeros(len(queries), np.int64), 24, recipe.training.seed).batches(0)[0]
    input_ids, mask = queries.texts(rows)
    with torch.no_grad():
        query = model.encode_query(
            store.tokens(queries.reference_rows[rows]), input_ids, mask, queries.regions(rows)
        )
        targets = model.encode_target(store.tokens(queries.target_rows[rows]))
    logits = torch.einsum("qd,tmd->qtm", query.embedding, targets).amax(-1) / 0.07
    return float((logits.logsumexp(1) - logits.diagonal()).mean())


@pytest.mark.ray
def test_history_has_every_step_once(trained: Trained) -> None:
    history = trained.run.table("history").to_pydict()
    assert history["step"] == list(range(1, STEPS + 1))
    assert history["epoch"] == [step // 3 for step in range(STEPS)]
    section = small_recipe().training
    rates = [3e-3 * rate_factor(step, STEPS, section) for step in range(STEPS)]
    assert history["learning_rate"] == pytest.approx(rates)
    assert history["temperature"][0] == pytest.approx(0.07)
    assert np.min(history["beta_mean"]) > 0
    assert np.min(history["beta_std"]) > 0
    assert history["loss"][0] == pytest.approx(first_loss(trained), abs=1e-4)
    assert np.mean(history["loss"][-3:]) < np.mean(history["loss"][:3]) - 0.03


@pytest.mark.ray
@pytest.mark.long
def test_what_the_recipe_says_of_negatives_is_what_two_workers_learn_by(trained: Trained) -> None:
    """The first loss, from the definition: references are columns, and whoever shows a query's target is none."""
    asked = {"false_negatives": "same_target", "reference_negatives": True, "memory_bank": 30}
    recipe = small_recipe(training={"steps": 2, "dev_every_epochs": None, "select": "last", **asked})
    location = train(recipe, Context(root=trained.root)).location
    assert location is not None
    quadruples = read_quadruples(trained.dataset, "train")
    model = build_model(recipe.model, with_tower=False).train()
    processor = build_processor(recipe.model, model.config, quadruples["modification_text"].to_pylist)
    store = FeatureStore.open(trained.features)
    queries = load_queries(quadruples, image_sizes(trained.dataset), store, processor)
    rows = Sampler(np.zeros(len(queries), np.int64), 24, recipe.training.seed).batches(0)[0]
    input_ids, mask = queries.texts(rows)
    references = store.tokens(queries.reference_rows[rows])
    with torch.no_grad():
        query = model.encode_query(references, input_ids, mask, queries.regions(rows))
        targets = model.encode_target(torch.cat([store.tokens(queries.target_rows[rows]), references]))
    logits = torch.einsum("qd,tmd->qtm", query.embedding, targets).amax(-1) / 0.07
    wanted = [ids[0] for ids in quadruples["target_ids"].take(rows).to_pylist()]
    shown = wanted + quadruples["reference_id"].take(rows).to_pylist()
    losses, left_out = [], 0
    for i, target in enumerate(wanted):
        kept = [c for c, image in enumerate(shown) if c == i or image != target]
        left_out += len(shown) - len(kept)
        losses.append(logits[i, kept].logsumexp(0) - logits[i, i])
    assert left_out > 3
    found = open_version(location).table("history")["loss"].to_pylist()
    assert found[0] == pytest.approx(float(torch.stack(losses).mean()), abs=1e-4)
    assert len(found) == 2


@pytest.mark.ray
def test_the_export_is_the_trained_model_with_its_tower(trained: Trained) -> None:
    model, processor = open_model(trained.run.url)
    start = build_model(small_recipe().model)
    assert model.tower_state_hash() == start.tower_state_hash()
    moved = {
        name
        for name, parameter in model.named_parameters()
        if not torch.equal(parameter, start.get_parameter(name))
    }
    assert moved >= {"temp", "query_tokens", "caam.probe_tokens", "vision_norm.weight"}
    assert not any(name.startswith("vision_model.") for name in moved)
    ids, _ = processor.texts(["put it on a red background"])
    assert processor.tokenizer.unk_token_id not in ids


@pytest.mark.ray
def test_dev_measures_are_those_of_the_export(trained: Trained) -> None:
    """Two workers measured while training; one process measures the exported model."""
    dev = trained.run.table("dev").to_pylist()
    assert [(row["step"], row["domain"]) for row in dev] == [(s, d) for s in (3, 6, 9, 12) for d in "ab"]
    means = {
        s: np.mean([[row[m] for m in MEASURES] for row in dev if row["step"] == s]) for s in (3, 6, 9, 12)
    }
    exported = trained.outcome.figures["exported_step"]
    assert means[exported] == max(means.values())
    assert exported < STEPS, "the last step is the best one here: choose another seed to tell the two apart"
    model, processor = open_model(trained.run.url, with_tower=False)
    store = FeatureStore.open(trained.features)
    galleries = load_dev(trained.dataset, store, processor)
    found = measure(model, store, galleries, torch.device("cpu"), batch_size=5)
    told = [[row[name] for name in ("queries", *MEASURES)] for row in dev if row["step"] == exported]
    assert np.array(told) == pytest.approx(np.array(found))
    averages = {name: np.mean([row[name] for row in dev if row["step"] == exported]) for name in MEASURES}
    assert trained.outcome.figures["dev"] == pytest.approx(averages)


@pytest.mark.ray
def test_a_finished_run_holds_what_its_manifest_says_and_nothing_else(trained: Trained) -> None:
    folder = Path(trained.run.url)
    lying = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert lying == {f.path for f in trained.run.manifest.files} | {"manifest.json", "started.json"}
    assert trained.run.manifest.parents == {
        "dataset": trained.dataset.manifest.content_hash,
        "features": open_version(trained.features).manifest.content_hash,
    }
    held = trained.outcome.figures["bytes_of_worker"]
    assert len(held) == 2
    assert all(
        kinds["optimizer"] * 2 > kinds["weights"] * 0.9 > 0 for kinds in held
    )  # two moments of a half each
    assert any("worker 1 held" in line for line in trained.outcome.details)
    assert set(trained.outcome.figures["ms_per_step"]) >= {"data", "forward", "backward", "optimizer"}


@pytest.mark.ray
def test_the_same_recipe_and_data_is_a_no_op(trained: Trained) -> None:
    again = train(small_recipe(), Context(root=trained.root))
    assert again.message.startswith("nothing to do")
    assert again.location == trained.outcome.location


@pytest.mark.ray
def test_a_dry_run_states_the_plan_and_writes_nothing(trained: Trained) -> None:
    before = sorted(Path(trained.root).rglob("*"))
    plan = train(small_recipe(training={"epochs": 40}), Context(root=trained.root, dry_run=True)).figures
    assert sorted(Path(trained.root).rglob("*")) == before
    assert (plan["steps"], plan["batch_size_per_worker"], plan["quadruples"]) == (120, 12, 64)
    assert plan["checkpoint_bytes"] == 12 * plan["trained_parameters"]
    assert plan["quadruples_seen"] == 40 * 64  # not 120 × 24: the batches of an epoch are of 21 and 22
    averaged = train(
        small_recipe(training={"ema_decay": 0.9}), Context(root=trained.root, dry_run=True)
    ).figures
    assert averaged["checkpoint_bytes"] == 16 * plan["trained_parameters"]
    assert averaged["state_bytes_per_worker"] == plan["state_bytes_per_worker"] + averaged["bytes_of_average"]
    assert averaged["bytes_of_average"] == 4 * -(-plan["trained_parameters"] // 2)
    banked = train(
        small_recipe(training={"memory_bank": 16}), Context(root=trained.root, dry_run=True)
    ).figures
    assert banked["state_bytes_per_worker"] == plan["state_bytes_per_worker"] + banked["bytes_of_bank"]


@pytest.mark.ray
def test_a_trace_behind_the_last_step_is_refused(trained: Trained) -> None:
    late = small_recipe(training={"epochs": 1}, tracking={"profile_steps": 1, "profile_from": 4})
    with pytest.raises(OacirError, match=r"tracking\.profile_from 4: the training ends after step 3,"):
        train(late, Context(root=trained.root, dry_run=True))


@pytest.mark.ray
def test_a_plan_on_a_random_tower_of_real_size_says_so(
    trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ModelSection, "warning", lambda self: "the tower is random")
    plan = train(small_recipe(), Context(root=trained.root, dry_run=True))
    assert plan.details[-1] == "warning: the tower is random"


@pytest.mark.ray
def test_a_loss_that_is_no_number_stops_the_run_at_once(trained: Trained) -> None:
    recipe = small_recipe(training={"learning_rate": 1e30}, scaling={"workers": 1})
    with pytest.raises(
        OacirError,
        match=r"the loss is nan at step \d+, in the batch of queries .* lower training\.learning_rate",
    ) as caught:
        train(recipe, Context(root=trained.root))
    assert "\n" not in str(caught.value)


@pytest.mark.ray
def test_two_workers_stop_together_at_a_poisoned_image_and_keep_the_checkpoint_before(tmp_path: Path) -> None:
    dataset = write_benchmark(tmp_path, identities=12)
    recipe = small_recipe(
        embed={"images_per_shard": 512},
        training={"batch_size": 4, "dev_every_epochs": None, "select": "last"},
    )
    stored = embed(recipe, Context(root=str(tmp_path))).location
    assert stored is not None
    store, queries = FeatureStore.open(stored), read_quadruples(dataset, "train")
    batches = Sampler(np.zeros(len(queries), np.int64), 4, recipe.training.seed).batches(0)
    rows = queries.select(["query_id", "reference_id", "target_ids"]).to_pylist()
    images = [
        {i for r in batch for i in (rows[r]["reference_id"], *rows[r]["target_ids"])} for batch in batches
    ]
    first_use = {image: n for n, batch in reversed(list(enumerate(images))) for image in batch}
    image, batch = max(first_use.items(), key=lambda use: use[1])
    shard = np.memmap(next(Path(stored).glob("shards/*.bin")), np.uint16, "r+")
    row, size = int(store.rows([image])[0]), store.shape[0] * store.shape[1]
    shard[row * size] = 0x7FC0  # a NaN of bfloat16
    shard.flush()

    asked = [rows[r]["query_id"] for r in batches[batch]]
    with pytest.raises(OacirError) as caught:
        train(recipe, Context(root=str(tmp_path)))
    assert str(caught.value).startswith(
        f"the loss is nan at step {batch + 1}, in the batch of queries {', '.join(asked)};"
    )
    assert f"the checkpoint of step {batch} is good" in str(caught.value)
    run = str(caught.value).rsplit("(run ", 1)[1].rstrip(")")
    assert checkpoints.complete_steps(run)[-1] == batch
    noted = json.loads((Path(run) / "diverged.json").read_text())
    assert (noted["query_ids"], noted["checkpoint"]) == (asked, batch)
    for rank in (0, 1):
        state = checkpoints.load(run, batch, rank, 2)
        assert all(torch.isfinite(v).all() for name, v in state.items() if name.startswith("group"))


def test_training_without_features_says_how_to_get_them(tmp_path: Path) -> None:
    write_benchmark(tmp_path, identities=6, domains=("a",))
    with pytest.raises(OacirError, match=r"no features of .* run `oacir embed`"):
        train(small_recipe(), Context(root=str(tmp_path)))


@pytest.mark.ray
def test_features_of_another_tower_are_refused(trained: Trained) -> None:
    recipe = small_recipe(model={"seed": 5}).model_copy(update={"features": trained.features})
    with pytest.raises(VersionError, match="stale features"):
        train(recipe, Context(root=trained.root))


def test_a_benchmark_too_small_for_the_workers_is_refused(tmp_path: Path) -> None:
    write_benchmark(tmp_path, identities=1, domains=("a",))
    with pytest.raises(OacirError, match=r"4 training quadruples for 8 workers"):
        train(small_recipe(scaling={"workers": 8}), Context(root=str(tmp_path)))


def test_a_diverged_training_names_some_queries_and_says_what_is_left() -> None:
    line = diverged_line("the loss is nan at step 41", [f"q{i}" for i in range(10)], 40, "there")
    assert (
        "in the batch of queries q0, q1, q2, q3, q4, q5, q6, q7 and 2 more (all in diverged.json of the run); lower"
        in line
    )
    assert line.endswith("the checkpoint of step 40 is good (run there)")
    assert diverged_line("x", ["q0"], 0, "there").endswith("no checkpoint was written (run there)")
