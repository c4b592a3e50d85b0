from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

from huggingface_hub import ModelCard

from infra.base.versions import Manifest
from training.card import model_card
from training.config import TrainRecipe
from training.export import build_model

DATASET = cast(Manifest, SimpleNamespace(name="world", content_hash="c0ffee"))
FIGURES: dict[str, Any] = {
    "quadruples": 1234, "steps": 640, "exported_step": 600, "dev": {"R_ID@1": 21.04, "R@1": 20.0},
}  # fmt: skip


def card(**model: Any) -> str:
    recipe = TrainRecipe.model_validate({"name": "mine", "model": model})
    return model_card(recipe, build_model(recipe.model), DATASET, FIGURES)


def test_the_card_says_what_the_model_is_and_what_it_learned_from() -> None:
    found = ModelCard(card())
    assert found.data.to_dict()["tags"] == ["composed-image-retrieval", "object-anchored", "adafocal"]
    assert found.data.license == "apache-2.0"
    for told in (
        "# mine",
        "AdaFocal for",
        "`c0ffee`",
        "1,234 training",
        "step\n600",
        "R_ID@1 21.0, R@1 20.0",
        "seed 0",
    ):
        assert told in found.text, told


def test_a_card_says_what_became_of_the_image_tower() -> None:
    recipe = TrainRecipe.model_validate({"name": "mine", "tower": {"mode": "last", "layers": 3}})
    found = model_card(recipe, build_model(recipe.model), DATASET, FIGURES)
    assert "patches of 4 px; its last 3 blocks trained |" in found
    assert "patches of 4 px; frozen |" in card()


def test_a_card_names_its_own_method() -> None:
    plain, both = card(method="sprc", modulation="none"), card(method="sprc")
    assert "SPRC for" in plain
    assert "SPRC† for" in both
    assert [word in plain for word in ("Bai et al.", "Yang et al.")] == [True, False]
    assert [word in both for word in ("Bai et al.", "Yang et al.")] == [True, True]
    assert "AdaFocal is of Yang et al." in card()
    assert "fixed (β = 2.0)" in card(modulation="fixed", fixed_beta=2.0)


def test_a_card_without_dev_figures_says_so() -> None:
    recipe = TrainRecipe()
    text = model_card(recipe, build_model(recipe.model), DATASET, {**FIGURES, "dev": {}})
    assert "Nothing was measured while training" in text
