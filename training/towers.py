"""What of the image tower is trained: its last blocks, adapters beside its attention, or all of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from infra.base.errors import OacirError
from training.model.vision import ClipTower

if TYPE_CHECKING:
    from training.model.adafocal import AdaFocalModel
    from training.tower_config import TowerSection

ATTENTION = {True: ["q_proj", "k_proj", "v_proj", "out_proj"], False: ["qkv", "projection"]}
"""The linear layers of a block's attention; True of CLIP's tower, False of BLIP-2's."""


def prepare_tower(model: AdaFocalModel, section: TowerSection, seed: int) -> None:
    """Let a model's tower train as the recipe says; it stays in eval mode, so nothing of it is ever dropped.

    Args:
        model: with its tower, frozen, with the weights it starts from.
        section: the recipe's.
        seed: of the adapters' random half; the other half is zero, so that the outputs start unchanged.

    Raises:
        OacirError: the tower has fewer blocks than are to be trained.
    """
    tower = model.tower
    blocks = tower.encoder.layers
    if section.mode == "full":
        tower.requires_grad_(True)
    elif section.mode == "last":
        if section.layers > len(blocks):
            raise OacirError(f"tower.layers is {section.layers}, the image tower has {len(blocks)} blocks")
        for block in blocks[-section.layers :]:
            block.requires_grad_(True)
    elif section.mode == "lora":
        _add_adapters(tower, section, seed)


def merge_adapters(model: AdaFocalModel) -> None:
    """Add what the adapters learned to the weights beside them, and take them out: a tower of the usual shape."""
    from peft.tuners.lora import LoraLayer

    tower = model.tower
    for name, module in list(tower.named_modules()):
        if isinstance(module, LoraLayer):
            module.merge()
            parent, _, leaf = name.rpartition(".")
            setattr(tower.get_submodule(parent), leaf, module.get_base_layer())


def _add_adapters(tower: nn.Module, section: TowerSection, seed: int) -> None:
    from peft import LoraConfig, inject_adapter_in_model

    config: Any = LoraConfig(
        r=section.lora_rank,
        lora_alpha=section.lora_alpha,
        lora_dropout=0.0,
        bias="none",
        target_modules=ATTENTION[isinstance(tower, ClipTower)],
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, tower)
    tower.eval()
