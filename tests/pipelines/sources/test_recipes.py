from __future__ import annotations

import pytest

from infra.base.config import load_recipe
from pipelines.build import make_source
from pipelines.config import BuildRecipe

DOMAINS = {
    "deepfashion2": ("fashion",),
    "stanford_cars": ("car",),
    "products10k": ("product",),
    "landmarks": ("landmark",),
    "webdataset": ("fashion", "car", "product", "landmark"),
    "hf_datasets": ("fashion", "car", "product", "landmark"),
}


@pytest.mark.parametrize("name", sorted(DOMAINS))
def test_each_source_has_a_recipe_with_the_papers_thresholds(name: str) -> None:
    recipe, paper = load_recipe(BuildRecipe, name), load_recipe(BuildRecipe, "oacirr")
    assert recipe.source.kind == name == recipe.name
    assert make_source(recipe, "root").name == name
    assert recipe.encoder == paper.encoder
    for domain in DOMAINS[name]:
        assert recipe.thresholds.of(domain) == paper.thresholds.of(domain)
