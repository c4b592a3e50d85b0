"""Towers that learn: gradients on workers are those of one process; adapters start at nothing and end as weights."""

from __future__ import annotations

import subprocess
import sys
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from small_training import ROWS, Gradients, global_batch, largest_relative_error, on_processes, part
from torch import Tensor

from infra.base.errors import OacirError
from training.losses import info_nce
from training.model.adafocal import AdaFocalModel
from training.model.auto import random_model
from training.model.config import preset
from training.model.vision import tower_tokens
from training.scoring import max_over_set
from training.task import ContrastiveTask
from training.tower_config import TowerSection
from training.towers import merge_adapters, prepare_tower

Mode = Literal["frozen", "last", "lora", "full"]
BLOCKS = 3


def model_of(kind: str = "blip_2_vision_model", dtype: torch.dtype = torch.float64) -> AdaFocalModel:
    """A model of three blocks of that kind of tower, whose attention matters."""
    sizes = {
        "vision_config.hidden_size": 16, "vision_config.num_attention_heads": 2, "vision_config.image_size": 28,
        "vision_config.patch_size": 7, "vision_config.num_hidden_layers": BLOCKS, "vision_config.intermediate_size": 16,
        "qformer.hidden_size": 16, "qformer.num_attention_heads": 2, "qformer.num_hidden_layers": 2,
        "qformer.intermediate_size": 16, "qformer.vocab_size": 20, "num_query_tokens": 3, "num_probe_tokens": 2,
        "embed_dim": 8, "crm_heads": 2, "crm_layers": 1, "crm_feedforward": 16, "beta_hidden": 8, "crm_dropout": 0.0,
        "qformer.hidden_dropout_prob": 0.0, "qformer.attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    name = "vit_l" if kind == "clip_vision_model" else "tiny"
    return random_model(preset(name, **sizes), seed=1).to(dtype).train()


def pixels(count: int, seed: int = 3) -> Tensor:
    return torch.randn(count, 3, 28, 28, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def pixel_batch() -> dict[str, Tensor]:
    """The global batch of the tests of distribution, with pixels; rows 0 and 1 share a target, 2 and 10 too."""
    references, targets = pixels(ROWS), pixels(ROWS, 4)
    targets[1], targets[10] = targets[0], targets[2]
    return global_batch(torch.float64) | {"reference_tokens": references, "target_tokens": targets}


def names_trained(model: AdaFocalModel) -> set[str]:
    return {n for n, p in model.named_parameters() if p.requires_grad and n.startswith("vision_model.")}


def straightforward(mode: Mode) -> Gradients:
    """One process: the tower called by hand, plain InfoNCE over the whole batch; only the choice is written anew."""
    model, batch = model_of(), pixel_batch()
    for name, parameter in model.tower.named_parameters():
        last = name.startswith(f"encoder.layers.{BLOCKS - 1}.")
        parameter.requires_grad_(mode == "full" or (mode == "last" and last))
    tokens = [
        model.tower(pixel_values=batch[f"{role}_tokens"]).last_hidden_state
        for role in ("reference", "target")
    ]
    query, targets = model(*tokens, batch["input_ids"], batch["attention_mask"], batch["patch_mask"])
    loss = info_nce(max_over_set(query.embedding, targets), model.temp, torch.arange(ROWS))
    loss.backward()
    return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("mode", "world_size"), [("frozen", 2), ("last", 1), ("last", 2), ("full", 2)])
def test_gradients_from_pixels_are_those_of_one_process(mode: Mode, world_size: int) -> None:
    def work(rank: int) -> Gradients:
        model = model_of()
        prepare_tower(model, TowerSection(mode=mode, layers=1 if mode == "last" else 2), seed=0)
        ContrastiveTask(model)(part(pixel_batch(), rank, world_size)).objective.backward()
        for parameter in model.parameters():
            if parameter.grad is not None:
                dist.all_reduce(parameter.grad)
                parameter.grad /= world_size
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}

    found, expected = on_processes(world_size, work), straightforward(mode)
    assert largest_relative_error(found, expected) <= 1e-9
    of_tower = [name for name in found if name.startswith("vision_model.")]
    assert bool(of_tower) == (mode != "frozen")
    assert all(f"layers.{BLOCKS - 1}." in name for name in of_tower) == (mode != "full")


def test_recomputed_blocks_give_the_same_gradients() -> None:
    """`training.activation_checkpointing` holds for a tower that learns, although it stays in eval mode."""
    from training.gradients import recompute_layers

    def gradients(recomputed: bool) -> tuple[Gradients, int]:
        model, calls = model_of(), 0

        def count(*_: Any) -> None:
            nonlocal calls
            calls += 1

        prepare_tower(model, TowerSection(mode="last", layers=2), seed=0)
        if recomputed:
            recompute_layers(model)
        model.train()
        for block in model.tower.encoder.layers:
            block.self_attn.register_forward_hook(count)
        ContrastiveTask(model)(part(pixel_batch(), 0, 1)).objective.backward()
        return {n: p.grad for n, p in model.named_parameters() if p.grad is not None}, calls

    (plain, once), (again, twice) = gradients(False), gradients(True)
    assert largest_relative_error(again, plain) <= 1e-12
    assert twice == once + 2 * 2  # two blocks that learn, for references and for targets


KINDS = ("blip_2_vision_model", "clip_vision_model")


@pytest.mark.parametrize("kind", KINDS)
def test_adapters_alone_learn_and_start_at_nothing(kind: str) -> None:
    model, images = model_of(kind), pixels(2)
    before = model.encode_pixels(images)
    frozen = {name: p.clone() for name, p in model.tower.named_parameters()}
    prepare_tower(model, TowerSection(mode="lora", lora_rank=2), seed=0)
    assert torch.equal(model.encode_pixels(images), before)
    ways = 4 if kind == "clip_vision_model" else 2  # query, key and value one by one, or as one
    assert len(names_trained(model)) == BLOCKS * ways * 2
    assert all(".lora_" in name for name in names_trained(model))
    model.encode_pixels(images).square().sum().backward()
    for name, parameter in model.tower.named_parameters():
        assert (parameter.grad is not None) == (".lora_" in name), name
        if ".lora_" not in name:
            assert torch.equal(parameter, frozen[name.replace(".base_layer", "")])
    assert any(p.grad.abs().any() for p in model.tower.parameters() if p.grad is not None)


@pytest.mark.parametrize("kind", KINDS)
def test_merged_adapters_are_a_tower_of_the_usual_shape_with_the_same_tokens(kind: str) -> None:
    model, images = model_of(kind), pixels(2)
    start, names = model.tower_state_hash(), set(model.state_dict())
    untouched = model.encode_pixels(images)
    prepare_tower(model, TowerSection(mode="lora", lora_rank=2, lora_alpha=7), seed=0)
    generator = torch.Generator().manual_seed(9)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    learned = model.encode_pixels(images).detach()
    assert not torch.allclose(learned, untouched, atol=1e-2)
    merge_adapters(model)
    assert set(model.state_dict()) == names
    torch.testing.assert_close(model.encode_pixels(images).detach(), learned)
    assert model.tower_state_hash() != start


def test_peft_is_loaded_for_adapters_alone() -> None:
    code = "import sys, training.loop, training.online, training.trainer; assert 'peft' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_adapters_start_from_the_seed() -> None:
    def start(seed: int) -> dict[str, Tensor]:
        model = model_of()
        torch.manual_seed(int(torch.randint(100, ())))
        prepare_tower(model, TowerSection(mode="lora"), seed)
        return {n: p for n, p in model.tower.named_parameters() if "lora_A" in n}

    first, again, other = start(1), start(1), start(2)
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first)


def test_more_blocks_than_there_are_cannot_learn() -> None:
    with pytest.raises(OacirError, match=r"tower\.layers is 4, the image tower has 3 blocks"):
        prepare_tower(model_of(), TowerSection(mode="last", layers=4), seed=0)


def test_a_tower_that_learns_drops_nothing() -> None:
    model = model_of()
    prepare_tower(model, TowerSection(mode="full"), seed=0)
    model.train()
    assert not model.tower.training
    assert not any(part.training for block in model.tower.encoder.layers for part in block.children())
    assert tower_tokens(model.tower, pixels(1)).requires_grad
    with torch.no_grad():
        assert not tower_tokens(model.tower, pixels(1)).requires_grad
