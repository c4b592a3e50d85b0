from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from transformers import Blip2VisionModel, CLIPVisionModel

from tests.training.model.conftest import small_config, small_model
from tests.training.model.convert.conftest import DEPTH, PATCH, WIDTH, random_state, tower_shapes
from training.model.adafocal import AdaFocalModel
from training.model.convert import from_release
from training.model.vision import Tower, build_tower, initialise_tower, state_hash, tower_tokens

CLIP = {"vision_config.model_type": "clip_vision_model"}
KINDS = pytest.mark.parametrize("kind", [{}, CLIP], ids=["blip2", "clip"])


def tower(seed: int = 0, **overrides: object) -> Tower:
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


def slow_clip(state: dict[str, Tensor], image: Tensor, heads: int) -> Tensor:
    """CLIP's image tower as LAVIS has it, of one image [3, H, W], patch by patch and head by head."""

    def weight(name: str) -> Tensor:
        return state[f"visual_encoder.{name}"].double()

    def norm(rows: Tensor, name: str) -> Tensor:
        centred = rows - rows.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        return scaled * weight(f"{name}.weight") + weight(f"{name}.bias")

    patches = [
        (weight("conv1.weight") * image[:, y : y + PATCH, x : x + PATCH].double()).sum((1, 2, 3))
        for y in range(0, image.shape[1], PATCH)
        for x in range(0, image.shape[2], PATCH)
    ]
    rows = torch.stack([weight("class_embedding"), *patches]) + weight("positional_embedding")
    rows = norm(rows, "ln_pre")
    head = WIDTH // heads
    for i in range(DEPTH):
        block = f"transformer.resblocks.{i}"
        joint = norm(rows, f"{block}.ln_1") @ weight(f"{block}.attn.in_proj_weight").T
        query, key, value = (joint + weight(f"{block}.attn.in_proj_bias")).split(WIDTH, dim=1)
        mixed = []
        for h in range(heads):
            part = slice(h * head, (h + 1) * head)
            logits = query[:, part] @ key[:, part].T / math.sqrt(head)
            mixed.append(logits.softmax(dim=1) @ value[:, part])
        out = torch.cat(mixed, dim=1) @ weight(f"{block}.attn.out_proj.weight").T
        rows = rows + out + weight(f"{block}.attn.out_proj.bias")
        wide = norm(rows, f"{block}.ln_2") @ weight(f"{block}.mlp.c_fc.weight").T
        wide = wide + weight(f"{block}.mlp.c_fc.bias")
        wide = wide / (1 + torch.exp(-1.702 * wide))
        rows = rows + wide @ weight(f"{block}.mlp.c_proj.weight").T + weight(f"{block}.mlp.c_proj.bias")
    return rows


def clip_from_lavis(state: dict[str, Tensor]) -> Tower:
    config = small_config(
        **CLIP, **{"vision_config.num_hidden_layers": DEPTH, "vision_config.intermediate_size": 52}
    )
    built = build_tower(config.vision_config)
    ours = from_release(state, config)
    built.load_state_dict({name.removeprefix("vision_model."): weight for name, weight in ours.items()})
    return built


WRITES_INTO_THE_STREAM = ("embedding", "conv1", "ln_pre", "out_proj", "c_proj")


@pytest.mark.parametrize("size", [1.0, 0.003])
def test_clip_tower_equals_lavis(size):
    """Weights under LAVIS' names, through our key map, against an independent computation in float64.

    Also with rows so small that the eps of their LayerNorms decides over them.
    """
    state = {
        name: weight * size if any(part in name for part in WRITES_INTO_THE_STREAM) else weight
        for name, weight in random_state(tower_shapes("clip")).items()
    }
    pixels = torch.randn(2, 3, 28, 28, generator=torch.Generator().manual_seed(1))
    tokens = tower_tokens(clip_from_lavis(state), pixels)
    expected = torch.stack([slow_clip(state, image, heads=4) for image in pixels])
    assert 0.5 < float(expected.std()) / size < 5
    torch.testing.assert_close(tokens.double(), expected, atol=2e-5 * size, rtol=0)


def test_clip_tower_is_transformers_clip_before_its_last_norm():
    ours = tower(**CLIP)
    full = CLIPVisionModel(ours.config)
    names = {
        "pre_layernorm": "pre_layrnorm",
        "embeddings.position_embedding": "embeddings.position_embedding.weight",
    }
    renamed = {}
    for name, weight in ours.state_dict().items():
        for old, new in names.items():
            name = name.replace(old, new)
        renamed[name] = weight
    left = getattr(full, "vision_model", full).load_state_dict(renamed, strict=False)
    assert set(left.missing_keys) == {"post_layernorm.weight", "post_layernorm.bias"}
    assert not left.unexpected_keys
    pixels = torch.randn(2, 3, 28, 28)
    expected = full.eval()(pixels).last_hidden_state
    torch.testing.assert_close(tower_tokens(ours, pixels), expected, atol=1e-5, rtol=1e-5)


@KINDS
def test_a_saved_model_has_the_same_tower(kind, tmp_path):
    model = small_model(**kind)
    model.save_pretrained(tmp_path)
    loaded = AdaFocalModel.from_pretrained(tmp_path)
    assert loaded.config.vision_config.to_dict() == model.config.vision_config.to_dict()
    assert loaded.tower_state_hash() == model.tower_state_hash()
    pixels = torch.randn(2, 3, 28, 28)
    assert torch.equal(loaded.encode_pixels(pixels), model.encode_pixels(pixels))


@KINDS
def test_random_tokens_keep_the_image(kind):
    """From the frozen random tokens of a patch a linear map restores most of what the projection can carry."""
    generator = torch.Generator().manual_seed(0)
    colours = torch.rand(300, 3, 4, 4, generator=generator)
    pixels = torch.nn.functional.interpolate(colours, scale_factor=7)  # one colour per patch
    tokens = tower_tokens(tower(**kind), (pixels - 0.5) / 0.27)[:, 1:]  # [300, 16, 24]
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


@KINDS
def test_deeper_random_towers_stay_in_range(kind):
    tokens = tower_tokens(tower(**kind, **{"vision_config.num_hidden_layers": 12}), torch.randn(4, 3, 28, 28))
    assert 0.5 < float(tokens.std()) < 20


@KINDS
def test_hash_depends_on_weights_and_options_only(kind):
    heads = {"vision_config.num_attention_heads": 2}
    assert state_hash(tower(seed=1, **kind)) == state_hash(tower(seed=1, **kind))
    assert state_hash(tower(seed=1, **kind)) != state_hash(tower(seed=2, **kind))
    assert state_hash(tower(seed=1, **kind)) != state_hash(tower(seed=1, **kind, **heads))
    assert state_hash(tower(seed=1, **kind)) != state_hash(tower(seed=1, **kind).to(torch.bfloat16))
    changed = tower(seed=1, **kind)
    with torch.no_grad():
        changed.encoder.layers[0].mlp.fc2.weight[3, 5] += 1e-6
    assert state_hash(tower(seed=1, **kind)) != state_hash(changed)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ({}, "54c3f061f6c2cd5052b0d153a038451ad43823d063995cb3c51f3b1a77d519dd"),
        (CLIP, "e9844d9ed236481f1885bd102ffa35c42d095373aece33511f87d2f7bd230d6d"),
    ],
    ids=["blip2", "clip"],
)
def test_hash_of_known_weights_never_changes(kind, expected):
    """Feature stores are addressed by it: another hash would make every stored token worthless."""
    built = build_tower(small_config(**kind).vision_config)
    with torch.no_grad():
        for weight in built.state_dict().values():
            weight.copy_(torch.arange(weight.numel()).view(weight.shape) / 64)
    assert state_hash(built) == expected
