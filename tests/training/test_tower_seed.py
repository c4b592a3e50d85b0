"""Models of several seeds over one random tower: the same tokens, other weights, and runs of their own."""

from __future__ import annotations

import torch

from training.config import ModelSection, TrainRecipe
from training.export import build_model


def test_a_towers_own_seed_lets_other_weights_read_the_same_features() -> None:
    first, second = (build_model(ModelSection(seed=seed, tower_seed=0)) for seed in (0, 1))
    assert first.tower_state_hash() == second.tower_state_hash()
    assert not torch.equal(first.query_tokens, second.query_tokens)
    assert first.tower_state_hash() != build_model(ModelSection(seed=1)).tower_state_hash()
    alone = build_model(ModelSection(seed=0))
    assert all(torch.equal(a, b) for a, b in zip(alone.parameters(), first.parameters(), strict=True))


def test_it_is_part_of_a_runs_key() -> None:
    plain = TrainRecipe()
    keyed = TrainRecipe(model=ModelSection(tower_seed=0))
    assert plain.identity("data", "features") != keyed.identity("data", "features")
