"""From a configuration to its model: the one place that knows which methods there are."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModel, AutoProcessor

from infra.base.errors import OacirError
from training.model.adafocal import AdaFocalModel, initialise
from training.model.config import METHODS, AdaFocalConfig
from training.model.processing import AdaFocalProcessor
from training.model.sprc import SprcModel

MODELS: dict[str, type[AdaFocalModel]] = {m.config_class.model_type: m for m in (AdaFocalModel, SprcModel)}
"""Method → its model class."""


def register() -> None:
    """Let AutoConfig, AutoModel and AutoProcessor know the methods; done on import of `training.model`."""
    for method, config_class in METHODS.items():
        AutoConfig.register(method, config_class, exist_ok=True)
        AutoModel.register(config_class, MODELS[method], exist_ok=True)
        AutoProcessor.register(config_class, AdaFocalProcessor, exist_ok=True)


def config_of(tree: Mapping[str, Any]) -> AdaFocalConfig:
    """The configuration whose `to_dict` is given; one without `model_type` is AdaFocal's.

    Raises:
        OacirError: a method that is not built here.
    """
    method = tree.get("model_type", AdaFocalConfig.model_type)
    if method not in METHODS:
        raise OacirError(f"model_type {method!r} is none of {sorted(METHODS)}; is this a model of oacir?")
    return METHODS[method](**tree)


def new_model(config: AdaFocalConfig, with_tower: bool = True) -> AdaFocalModel:
    """The model of a configuration, its weights unset."""
    return MODELS[config.model_type](config, with_tower=with_tower)


def random_model(
    config: AdaFocalConfig, seed: int, with_tower: bool = True, tower_seed: int | None = None
) -> AdaFocalModel:
    """A model with random weights in eval mode; the same configuration and seeds give the same weights.

    Tower, Q-Former and the method's own parts draw from generators of their own: towers agree across modulations and
    methods (one feature store serves them all), and so do the Q-Formers. A tower's seed of its own lets them agree
    across seeds too.
    """
    model = new_model(config, with_tower)
    initialise(model, seed, tower_seed)
    return model.eval()


def load_model(directory: str | Path, with_tower: bool = True) -> AdaFocalModel:
    """What `save_pretrained` wrote (or a Hub id), in eval mode, as the class that its config.json names.

    Raises:
        OacirError: a method that is not built here, or weights that are missing.
    """
    tree, _ = AdaFocalConfig.get_config_dict(directory)
    return MODELS[config_of(tree).model_type].from_pretrained(directory, with_tower=with_tower)
