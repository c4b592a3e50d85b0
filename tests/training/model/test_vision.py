from __future__ import annotations

import torch
from transformers import Blip2VisionModel

from tests.training.model.conftest import small_config
from training.model.vision import build_tower, initialise_tower, state_hash, tower_tokens


def tower(seed: int = 0, **overrides: object) -> Blip2VisionModel:
    built = build_tower(small_config(**overrides).vision_config)
    initialise_tower(built, torch.Generator().manual_seed(seed))
    return built


def test_tokens_are_those_before_the_last_norm():
    ours = tower()
    full = Blip2VisionModel(ours.config)
    full.load_state_dict(ours.state_dict(), strict=False)
    norm = torch.nn.LayerNorm(24, eps=1e-6)
    pixels = torch.randn(2, 3, 28, 28)
    tokens = tower_tokens(ours, pixels)
    assert tokens.shape == (2, 17, 24)
    assert not tokens.requires_grad
    torch.testing.assert_close(norm(tokens), full.eval()(pixels).last_hidden_state, atol=1e-5, rtol=1e-5)


def test_random_tokens_keep_the_image():
    """From the frozen random tokens of a patch a linear map restores most of what the projection can carry."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(300, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(colours, scale_factor=7)  # one colour per patch
    tokens = tower_tokens(tower(), (pixels - 0.5) / 0.27)[:, 1:]  # [300, 16, 24]
    truth = colours.flatten(2).transpose(1, 2)  # [300, 16, 3]
    design = torch.cat([tokens, torch.ones(300, 16, 1)], dim=-1)
    train, test = slice(0, 200), slice(200, 300)
    share = []
    for patch in range(16):
        solution = torch.linalg.lstsq(design[train, patch], truth[train, patch]).solution
        error = (design[test, patch] @ solution - truth[test, patch]).square().mean()
        share.append(1 - error / truth[test, patch].var())
    assert min(share) > 0.6
    spread = tokens.std(dim=0).mean() / tokens.std()
    assert spread > 0.5  # images differ, not only positions


def test_deeper_random_towers_stay_in_range():
    tokens = tower_tokens(tower(**{"vision_config.num_hidden_layers": 12}), torch.randn(4, 3, 28, 28))
    assert 0.5 < float(tokens.std()) < 20


def test_hash_depends_on_weights_and_options_only():
    assert state_hash(tower(seed=1)) == state_hash(tower(seed=1))
    assert state_hash(tower(seed=1)) != state_hash(tower(seed=2))
    assert state_hash(tower(seed=1)) != state_hash(tower(seed=1, **{"vision_config.num_attention_heads": 2}))
    assert state_hash(tower(seed=1)) != state_hash(tower(seed=1).to(torch.bfloat16))
    changed = tower(seed=1)
    with torch.no_grad():
        changed.encoder.layers[0].mlp.fc2.weight[3, 5] += 1e-6
    assert state_hash(tower(seed=1)) != state_hash(changed)
