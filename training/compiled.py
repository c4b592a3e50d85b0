"""The encoders' layers through torch.compile."""

from __future__ import annotations

import torch
from torch import nn

from infra.base.errors import OacirError
from training.model.caam import ContextualReasoning
from training.model.qformer import QFormerLayer

VARIANTS = 64
"""Graphs of one layer's code: with and without cross-attention, text, bias and gradients, and by the rows wanted."""


def compile_layers(model: nn.Module) -> None:
    """Compile every layer of the Q-Former, and the CRM; names of weights stay.

    Layers one by one: what lies between them packs rows by the texts' lengths, which no graph can know. Sizes are
    dynamic, so that neither the texts' lengths nor the last batch of an epoch compile anew.

    Raises:
        OacirError: torch finds no C++ compiler for a model on the CPU.
    """
    if next(model.parameters()).device.type == "cpu":
        require_compiler()
    torch._dynamo.config.recompile_limit = max(VARIANTS, torch._dynamo.config.recompile_limit)
    for module in model.modules():
        if isinstance(module, QFormerLayer | ContextualReasoning):
            module.compile(dynamic=True)


def require_compiler() -> None:
    """Raise OacirError where torch.compile has no C++ compiler."""
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        get_cpp_compiler()
    except InvalidCxxCompiler as error:
        raise OacirError(
            "training.compile needs a C++ compiler and there is none: install g++, or set training.compile to false"
        ) from error
