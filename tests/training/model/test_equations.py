"""The model against the slow reference of tests/reference: every number and every gradient, in float64 and float32.

Nothing is read from disk: weights, images, texts and boxes come from a seed, so that a bare clone proves the equations.
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from tests.reference import adafocal as reference
from tests.reference.cases import Sizes, case_boxes, random_boxes, random_inputs, random_weights
from training.losses import info_nce
from training.model.adafocal import AdaFocalModel
from training.model.config import AdaFocalConfig
from training.model.convert import from_release
from training.model.qformer import AttentionMaps
from training.model.regions import patch_mask
from training.scoring import max_over_set

SIZES = Sizes()
SEEDS = (0, 1)
MODULATIONS = {"none": 0.0, "fixed": 1.5, "scalar": 0.0, "vector": 0.0}
CASES = ("mixed", "all_boxes", "all_none")
# modulation, bias_scale, case, seed: everything once, what matters most once more
VARIANTS = [
    *((modulation, "released", case, 0) for modulation in MODULATIONS for case in CASES),
    ("vector", "paper", "mixed", 0),
    ("fixed", "paper", "all_boxes", 0),
    ("scalar", "released", "mixed", 1),
    ("vector", "released", "mixed", 1),
]
# Of the largest element of what is compared. Float32 has 6e-8; gradients add up many terms that cancel.
CLOSE = {torch.float64: 1e-10, torch.float32: 2e-5}
CLOSE_GRADIENT = {torch.float64: 1e-9, torch.float32: 1e-3}


class Expected(NamedTuple):
    """What the reference computes for one variant, and its gradients in the release's names (None: unused)."""

    query: reference.QueryPass
    targets: Tensor
    scores: Tensor
    loss: Tensor
    gradients: dict[str, Tensor | None]


@cache
def released_weights(modulation: str, seed: int) -> dict[str, Tensor]:
    weights = random_weights(SIZES, seed, SIZES.queries if modulation == "vector" else 1)
    if modulation in ("none", "fixed"):
        weights = {n: w for n, w in weights.items() if not n.startswith(("crm_module.", "contextual_probe"))}
    return weights


@cache
def regions(case: str, seed: int) -> Tensor:
    """Patch masks of the case, by the model's own function [B, N] float32."""
    boxes = case_boxes(random_boxes(SIZES, seed))[case]
    return torch.stack([patch_mask(box, SIZES.image_size, SIZES.patch_size) for box in boxes])


@cache
def expected_tokens(seed: int) -> tuple[Tensor, Tensor]:
    inputs = random_inputs(SIZES, seed)
    weights, options = released_weights("none", seed), SIZES.options("none")
    with torch.no_grad():
        reference_tokens = reference.tower(weights, options, inputs.reference_pixels)
        return reference_tokens, reference.tower(weights, options, inputs.target_pixels)


@cache
def expected(modulation: str, bias_scale: str, case: str, seed: int) -> Expected:
    options = SIZES.options(modulation, MODULATIONS[modulation], bias_scale)
    inputs, (tokens, target_tokens) = random_inputs(SIZES, seed), expected_tokens(seed)
    boxes = case_boxes(random_boxes(SIZES, seed))[case]
    masks = torch.stack([reference.patch_mask(box, options) for box in boxes])
    weights = {
        name: weight.clone().requires_grad_(not name.startswith("visual_encoder."))
        for name, weight in released_weights(modulation, seed).items()
    }
    query = reference.encode_query(weights, options, tokens, inputs.ids, inputs.mask, masks)
    targets, _ = reference.encode_target(weights, options, target_tokens)
    scores = reference.similarity(query.f_q, targets)
    loss = reference.info_nce(scores, weights["temp"])
    trained = {name: weight for name, weight in weights.items() if weight.requires_grad}
    gradients = torch.autograd.grad(loss, list(trained.values()), allow_unused=True)
    return Expected(query, targets, scores, loss, dict(zip(trained, gradients, strict=True)))


def config(modulation: str, bias_scale: str) -> AdaFocalConfig:
    s = SIZES
    return AdaFocalConfig(
        vision_config={
            "image_size": s.image_size, "patch_size": s.patch_size, "hidden_size": s.vit_width,
            "num_hidden_layers": s.vit_depth, "num_attention_heads": s.vit_heads, "intermediate_size": s.vit_mlp,
        },
        qformer={
            "hidden_size": s.hidden, "num_hidden_layers": s.layers, "num_attention_heads": s.heads,
            "intermediate_size": s.intermediate, "cross_attention_frequency": s.cross_attention_every,
            "vocab_size": s.vocab, "max_position_embeddings": s.positions,
        },
        num_query_tokens=s.queries, num_probe_tokens=s.probes, embed_dim=s.embed_dim,
        crm_layers=s.crm_layers, crm_heads=s.crm_heads, crm_feedforward=s.crm_feedforward,
        beta_hidden=s.beta_hidden, max_text_tokens=s.text_tokens, modulation=modulation,
        fixed_beta=MODULATIONS[modulation], bias_scale=bias_scale,
    )  # fmt: skip


@cache
def build(modulation: str, bias_scale: str, seed: int, dtype: torch.dtype) -> AdaFocalModel:
    shape = config(modulation, bias_scale)
    model = AdaFocalModel(shape).to(dtype)
    model.load_state_dict(from_release(released_weights(modulation, seed), shape))
    return model.eval()


def query_of(model: AdaFocalModel, tokens: Tensor, case: str, seed: int, maps: AttentionMaps | None = None):
    inputs = random_inputs(SIZES, seed)
    return model.encode_query(tokens, inputs.ids, inputs.mask, regions(case, seed), maps=maps)


def assert_close(found: Tensor, wanted: Tensor, share: float, what: str = "") -> None:
    """Within `share` of the largest element of `wanted`."""
    torch.testing.assert_close(
        found.double(),
        wanted,
        rtol=0,
        atol=share * float(wanted.detach().abs().max()),
        msg=lambda m: f"{what}: {m}",
    )


def tokens_of(model: AdaFocalModel, seed: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    inputs = random_inputs(SIZES, seed)
    reference_tokens = model.encode_pixels(inputs.reference_pixels.to(dtype))
    return reference_tokens, model.encode_pixels(inputs.target_pixels.to(dtype))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("seed", SEEDS)
def test_image_tokens(seed, dtype):
    found = tokens_of(build("none", "released", seed, dtype), seed, dtype)
    for ours, wanted in zip(found, expected_tokens(seed), strict=True):
        assert_close(ours, wanted, CLOSE[dtype])


@pytest.mark.parametrize("case", CASES)
def test_patch_masks(case):
    for seed in SEEDS:
        boxes = case_boxes(random_boxes(SIZES, seed))[case]
        wanted = torch.stack([reference.patch_mask(box, SIZES.options("none")) for box in boxes])
        assert torch.equal(regions(case, seed).double(), wanted)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize(("modulation", "bias_scale", "case", "seed"), VARIANTS)
def test_from_pixels_to_the_loss(modulation, bias_scale, case, seed, attention, dtype):
    model, wanted = build(modulation, bias_scale, seed, dtype), expected(modulation, bias_scale, case, seed)
    tokens, target_tokens = tokens_of(model, seed, dtype)
    maps = AttentionMaps([], []) if attention == "eager" else None
    query, targets = query_of(model, tokens, case, seed, maps), model.encode_target(target_tokens)
    scores = max_over_set(query.embedding, targets)
    loss = info_nce(scores, model.temperature, torch.arange(SIZES.batch))

    close = CLOSE[dtype]
    assert (query.beta is None) == (wanted.query.beta is None)
    if wanted.query.beta is not None:
        assert_close(query.beta, wanted.query.beta, close, "β")
    assert_close(query.embedding, wanted.query.f_q, close, "f_q")
    assert_close(targets, wanted.targets, close, "targets")
    assert_close(scores, wanted.scores, close, "scores")
    assert_close(loss, wanted.loss, close, "loss")
    if maps is not None:
        assert len(maps.cross_attention) == len(wanted.query.cross)
        for ours, theirs in zip(maps.cross_attention, wanted.query.cross, strict=True):
            assert_close(ours, theirs, close, "cross-attention")


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize(("modulation", "bias_scale", "case", "seed"), VARIANTS)
def test_gradients(modulation, bias_scale, case, seed, dtype):
    """Of every trained parameter; None where, and only where, the reference has none (the idle CAAM)."""
    model, wanted = build(modulation, bias_scale, seed, dtype), expected(modulation, bias_scale, case, seed)
    model.zero_grad(set_to_none=True)
    tokens, target_tokens = tokens_of(model, seed, dtype)
    query, targets = query_of(model, tokens, case, seed), model.encode_target(target_tokens)
    scores = max_over_set(query.embedding, targets)
    info_nce(scores, model.temperature, torch.arange(SIZES.batch)).backward()

    weights = released_weights(modulation, seed)
    found = {n: wanted.gradients.get(n) for n in weights}  # none for the tower's
    theirs = from_release(
        {n: torch.zeros_like(weights[n]) if g is None else g for n, g in found.items()}, model.config
    )
    unused = {n for n in from_release(weights, model.config) if n.startswith("caam.") and case == "all_none"}
    largest = max(float(g.abs().max()) for g in theirs.values())
    compared = 0
    for name, parameter in model.named_parameters():
        if name.startswith("vision_model.") or name in unused:
            assert parameter.grad is None, name
            continue
        assert parameter.grad is not None, name
        # Biases of keys move nothing: their gradients are rounding, as small as the type lets them be.
        rounding = 1e-3 * CLOSE_GRADIENT[dtype] * largest
        scale = CLOSE_GRADIENT[dtype] * float(theirs[name].abs().max())
        torch.testing.assert_close(
            parameter.grad.double(), theirs[name], rtol=0, atol=max(scale, rounding),
            msg=lambda m, n=name: f"{n}: {m}",
        )  # fmt: skip
        compared += 1
    assert compared == sum(not n.startswith("visual_encoder.") for n in weights) - len(unused)


def test_unused_parameters_of_the_reference_are_the_idle_modulator():
    for modulation in ("scalar", "vector"):
        gradients = expected(modulation, "released", "all_none", 0).gradients
        idle = {name for name, gradient in gradients.items() if gradient is None}
        assert idle == {n for n in gradients if n.startswith(("crm_module.", "contextual_probe"))}
        assert all(g is not None for g in expected(modulation, "released", "mixed", 0).gradients.values())


@pytest.mark.parametrize("modulation", ["scalar", "vector"])
def test_stored_tokens_give_the_same_bits_as_pixels(modulation, tmp_path):
    online = build(modulation, "released", 0, torch.float32)
    tokens, target_tokens = tokens_of(online, 0, torch.float32)
    save_file({"tokens": tokens, "target_tokens": target_tokens}, tmp_path / "tokens.safetensors")
    stored = load_file(tmp_path / "tokens.safetensors")
    trained = {n: w for n, w in online.state_dict().items() if not n.startswith("vision_model.")}
    cached = AdaFocalModel(online.config, with_tower=False).eval()
    cached.load_state_dict(trained)
    ours, theirs = query_of(cached, stored["tokens"], "mixed", 0), query_of(online, tokens, "mixed", 0)
    assert torch.equal(ours.embedding, theirs.embedding)
    assert torch.equal(ours.beta, theirs.beta)
    assert torch.equal(cached.encode_target(stored["target_tokens"]), online.encode_target(target_tokens))


@torch.no_grad()
def test_the_cases_let_every_part_speak():
    """The proof is worth its inputs: rows that eps moves, β spread, attention neither flat nor on one patch."""
    for seed in SEEDS:
        query, targets, *_ = expected("vector", "released", "mixed", seed)
        assert float(query.beta.std()) > 0.3
        assert float(query.beta.min()) < 1.5  # where softplus is not the identity
        assert float(expected_tokens(seed)[0].var(-1).median()) < 1e3 * reference.VISION_EPS
        assert float(query.probe_hidden[:, : SIZES.probes].var(-1).median()) < 1e3 * reference.CRM_EPS
        for weights in query.cross:
            entropy = -(weights * weights.log()).sum(-1).mean() / math.log(weights.shape[-1])
            assert 0.2 < float(entropy) < 0.97
        winners = torch.einsum("qd,tmd->qtm", query.f_q, targets).argmax(-1)
        assert len(winners.unique()) > 1
