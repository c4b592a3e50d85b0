"""What readers of the small benchmark read by, for the tiny model."""

from __future__ import annotations

from typing import Any

import numpy as np

from infra.base.versions import Version
from training.batches import Sampler
from training.config import TrainRecipe
from training.data import image_sizes, load_queries, read_quadruples
from training.export import build_processor
from training.model.config import preset
from training.pixels import image_set
from training.reader import Plan, make_plan

BATCH, SEED = 10, 7


def plan_of(dataset: Version, tower: dict[str, Any], **model: Any) -> Plan:
    recipe = TrainRecipe.model_validate({"model": model, "tower": tower, "training": {"seed": SEED}})
    config = preset("tiny")
    quadruples = read_quadruples(dataset, "train")
    processor = build_processor(recipe.model, config, quadruples["modification_text"].to_pylist)
    images = image_set(dataset, processor, (config.num_image_tokens, config.vision_config.hidden_size))
    queries = load_queries(quadruples, image_sizes(dataset), images, processor)
    sampler = Sampler(np.zeros(len(queries), np.int64), BATCH, SEED)
    return make_plan(recipe, dataset, quadruples, images, queries, sampler, processor)
