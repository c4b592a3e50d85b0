"""Recipes of training: every shipped one loads, wrong ones say all that is wrong, a run's key sees what matters."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from infra.base.config import load_recipe
from infra.base.errors import RecipeError
from training.config import TrainRecipe

SHIPPED = sorted(Path(str(resources.files("training"))).glob("recipes/*.yaml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_every_shipped_recipe_loads(path: Path) -> None:
    recipe = load_recipe(TrainRecipe, str(path))
    assert recipe.scaling.workers >= 2 or path.stem == "paper_small_gpu"  # whose point is a single card
    assert recipe.scaling.zero_stage == 2


def test_the_shipped_recipes_are_the_announced_ones() -> None:
    assert {p.stem for p in SHIPPED} >= {"tiny", "tiny_beta0", "paper", "baseline_vit_g"}


def test_vit_g_has_the_papers_values() -> None:
    recipe = load_recipe(TrainRecipe, "paper")
    training = recipe.training
    assert (recipe.model.preset, recipe.model.modulation) == ("vit_g", "scalar")
    assert (training.epochs, training.batch_size) == (20, 128)
    assert (training.caam_learning_rate, training.learning_rate) == (1e-4, 1e-5)
    assert (training.betas, training.weight_decay) == ((0.9, 0.98), 0.05)


def test_a_baseline_differs_from_its_parent_in_name_and_modulation_only() -> None:
    for child, parent in (("tiny_beta0", "tiny"), ("baseline_vit_g", "paper")):
        ours, theirs = (load_recipe(TrainRecipe, name).model_dump() for name in (child, parent))
        assert ours["model"].pop("modulation") == "none"
        assert theirs["model"].pop("modulation") == "scalar"
        assert ours.pop("name") != theirs.pop("name")
        assert ours == theirs


def test_the_recipe_for_a_small_card_is_the_papers_in_pieces() -> None:
    ours, papers = (load_recipe(TrainRecipe, name).model_dump() for name in ("paper_small_gpu", "paper"))
    assert ours["training"].pop("micro_batch_size") == 16
    assert papers["training"].pop("micro_batch_size") is None
    assert ours["training"] == papers["training"]
    assert ours["training"]["negatives"] == "batch"
    assert ours["model"] == papers["model"]


def test_all_problems_of_a_recipe_are_told_together() -> None:
    wrong = [("training.batch_size", "1"), ("model.modulation", "matrix"), ("scaling.zero_stage", "7")]
    with pytest.raises(RecipeError) as caught:
        load_recipe(TrainRecipe, "tiny", wrong)
    assert len(caught.value.problems) == 3
    for key, _ in wrong:
        assert any(key in problem for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([("model.fixed_beta", "2")], "fixed_beta"),
        ([("training.select", "best_on_dev"), ("training.dev_every_epochs", "null")], "dev_every_epochs"),
        (
            [("training.negatives", "micro_batch")],
            "contrasts within micro-batches; set micro_batch_size to 2 or",
        ),
        (
            [("training.negatives", "micro_batch"), ("training.micro_batch_size", "1")],
            "contrasts within micro-batches; set micro_batch_size to 2 or more",
        ),
        ([("training.micro_batch_size", "128")], "micro_batch_size 128 never cuts a batch of 128"),
        ([("model.reference_view", "crop")], "no region to modulate; set modulation to none"),
        ([("model.text_entity", "drawn")], "speaks of a red box; set reference_view to drawn"),
        (
            [("model.text_entity", "drawn"), ("model.reference_view", "crop"), ("model.modulation", "none")],
            "speaks of a red box",
        ),
        ([("model.region", "mask"), ("model.modulation", "none")], "region 'mask' has an effect only with"),
        (
            [("model.modulation", "none"), ("model.crm", "mlp"), ("model.probe_tokens", "4")],
            "crm, probe_tokens: no effect with no β; set modulation to scalar or vector",
        ),
        (
            [("model.modulation", "fixed"), ("model.fixed_beta", "2"), ("model.trainable_probes", "false")],
            "trainable_probes: no effect with a fixed β",
        ),
        ([("model.modulation", "none"), ("model.bias_scale", "paper")], "bias_scale has an effect only with"),
        (
            [("model.crm", "average"), ("model.crm_layers", "3")],
            "crm_layers has an effect only with crm transf",
        ),
        (
            [
                ("model.overrides", '{"num_probe_tokens": 3, "modulation": "none"}'),
                ("model.probe_tokens", "4"),
            ],
            "modulation, probe_tokens: a field of its own, set it there and not in overrides",
        ),
    ],
)
def test_settings_without_effect_are_refused(overrides: list[tuple[str, str]], told: str) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(TrainRecipe, "tiny", overrides)


@pytest.mark.parametrize(
    ("key", "value", "same"),
    [
        ("name", "other", True),
        ("dataset", "/elsewhere/world", True),
        ("training.checkpoint_every_steps", "7", True),
        ("scaling.cpus_per_worker", "2", True),
        ("embed.images_per_shard", "64", True),
        ("training.learning_rate", "0.5", False),
        ("training.seed", "1", False),
        ("training.precision", "float16", False),
        ("training.micro_batch_size", "8", False),
        ("training.compile", "true", False),
        ("training.false_negatives", "keep", True),
        ("training.false_negatives", "same_target", False),
        ("training.false_negatives", "equivalent", False),
        ("training.reference_negatives", "true", False),
        ("training.memory_bank", "0", True),
        ("training.memory_bank", "64", False),
        ("training.activation_checkpointing", "true", True),
        ("model.modulation", "vector", False),
        ("scaling.workers", "4", True),
        ("scaling.zero_stage", "3", True),
    ],
)
def test_a_runs_key_depends_on_what_decides_over_its_result(key: str, value: str, same: bool) -> None:
    plain, changed = (load_recipe(TrainRecipe, "tiny", o) for o in ([], [(key, value)]))
    assert (plain.identity("data", "features") == changed.identity("data", "features")) is same


def test_settings_at_what_was_before_they_were_there_keep_the_keys_of_those_runs() -> None:
    recipe = load_recipe(TrainRecipe, "tiny")
    told = recipe.training.model_dump()
    keys = []
    for names in ((), ("false_negatives", "reference_negatives", "memory_bank")):
        kept = {name: value for name, value in told.items() if name not in names}
        tree = {"training": kept, "model": recipe.model.model_dump(mode="json")}
        keys.append(TrainRecipe.model_validate(tree).identity("data", "features"))
    assert keys[0] == keys[1]


def test_a_random_tower_of_real_size_is_warned_of() -> None:
    warning = load_recipe(TrainRecipe, "paper").model.warning()
    assert warning is not None
    assert "the image tower of vit_g is random and stays so" in warning
    assert "set model.weights" in warning
    assert load_recipe(TrainRecipe, "paper", [("model.weights", "there")]).model.warning() is None
    assert load_recipe(TrainRecipe, "tiny").model.warning() is None


def test_a_runs_key_depends_on_data_and_features() -> None:
    recipe = load_recipe(TrainRecipe, "tiny")
    keys = {recipe.identity(data, features) for data in "ab" for features in "cd"}
    assert len(keys) == 4


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([("tower.crop", "0.5")], "crop: no effect with mode 'stored'"),
        ([("tower.mode", "frozen"), ("tower.lora_rank", "4")], "lora_rank has an effect only with mode lora"),
        ([("tower.mode", "lora"), ("tower.layers", "3")], "layers has an effect only with mode last"),
        ([("tower.mode", "frozen"), ("tower.learning_rate", "1e-3")], "only with mode last or lora or full"),
        ([("tower.mode", "full"), ("features", "there")], "features has no effect with tower.mode 'full'"),
        (
            [
                ("tower.mode", "frozen"), ("tower.crop", "0.5"), ("model.modulation", "none"),
                ("model.reference_view", "crop"),
            ],
            "leave tower.crop away",
        ),
    ],
)  # fmt: skip
def test_settings_of_the_tower_without_effect_are_refused(
    overrides: list[tuple[str, str]], told: str
) -> None:
    with pytest.raises(RecipeError, match=told):
        load_recipe(TrainRecipe, "tiny", overrides)


def test_a_runs_key_sees_the_tower_but_not_how_it_is_read() -> None:
    def key(*overrides: tuple[str, str]) -> str:
        return load_recipe(TrainRecipe, "tiny", overrides).identity("data", "features")

    lora = ("tower.mode", "lora")
    assert key() == key(("tower.mode", "stored"))
    assert len({key(), key(lora), key(lora, ("tower.lora_rank", "4")), key(lora, ("tower.crop", "0.5"))}) == 4
    assert key(lora, ("tower.readers", "3")) == key(lora)


def test_how_a_run_is_watched_is_no_part_of_its_key() -> None:
    watched = {"mlflow_uri": "http://there:5000", "every_steps": 3, "profile_steps": 2, "peak_tflops": 1.0}
    keys = {TrainRecipe.model_validate({"tracking": t}).identity("data", "features") for t in ({}, watched)}
    assert len(keys) == 1


def test_a_password_in_a_recipe_is_refused() -> None:
    with pytest.raises(ValueError, match="MLFLOW_TRACKING_PASSWORD"):
        TrainRecipe.model_validate({"tracking": {"mlflow_uri": "https://me:secret@there"}})
