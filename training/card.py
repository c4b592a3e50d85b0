"""The model card that lies beside an exported model (Hugging Face's README.md with its metadata)."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from training.config import TrainRecipe

if TYPE_CHECKING:
    from infra.base.versions import Manifest
    from training.model.adafocal import AdaFocalModel

FILE = "README.md"
TOWERS = {
    "stored": "frozen",
    "frozen": "frozen",
    "last": "its last {section.layers} blocks trained",
    "lora": "trained by adapters of rank {section.lora_rank} beside its attention, which are added to its weights",
    "full": "trained",
}
"""What became of the image tower, by `tower.mode`."""
METHOD_NAMES = {"adafocal": "AdaFocal", "sprc": "SPRC"}


def model_card(
    recipe: TrainRecipe, model: AdaFocalModel, dataset: Manifest, figures: Mapping[str, Any]
) -> str:
    """What the model is, how to use it, what it was trained on and how well it did.

    Args:
        recipe: that trained it.
        model: complete, with its tower.
        dataset: manifest of the benchmark.
        figures: of the run: steps, exported_step, quadruples, dev (measure → percent, may be empty).
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    section = recipe.model
    template = Environment(
        loader=PackageLoader("training"), undefined=StrictUndefined, keep_trailing_newline=True
    ).get_template("model_card.md.jinja")
    return template.render(
        name=recipe.name,
        version=version("oacir"),
        method=METHOD_NAMES[section.method]
        + ("†" if section.method == "sprc" and section.modulation != "none" else ""),
        config=model.config,
        parameters=sum(p.numel() for p in model.parameters()),
        trained=sum(p.numel() for p in model.parameters() if p.requires_grad),
        tower=TOWERS[recipe.tower.mode].format(section=recipe.tower),
        start=f"random weights, seed {section.seed}" if section.weights is None else _public(section.weights),
        dataset={"name": dataset.name, "hash": dataset.content_hash},
        figures=figures,
        training=recipe.training,
        selected="best on dev" if recipe.training.select == "best_on_dev" else "the last",
    )


def _public(weights: str) -> str:
    """A Hub id as it is; of a path or URL its last part, since a card is made to be published."""
    return (
        weights.rstrip("/").rsplit("/", 1)[-1] if "://" in weights or Path(weights).is_absolute() else weights
    )
