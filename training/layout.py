"""Tensors laid out in one buffer as a safetensors file: one copy, and no moment in which no other thread may run.

`safetensors.torch.save` copies every tensor twice while it holds the interpreter's lock, so that training in another
thread stands still for it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping

import torch
from torch import Tensor

NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16", torch.int64: "I64",
    torch.int32: "I32", torch.int16: "I16", torch.int8: "I8", torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
"""Data types as the format calls them."""
ALIGNED = 8
"""Bytes that the header is a multiple of."""


def laid_out(tensors: Mapping[str, Tensor]) -> memoryview:
    """A copy of the tensors as the bytes of a safetensors file, on the CPU.

    Args:
        tensors: by name, on any device, of any shape and layout; of the types in `NAMES`.
    """
    # wide types first, so that each tensor lies at a multiple of its numbers' size
    order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
    header, end = dict[str, object](), 0
    for name in order:
        value, begin = tensors[name], end
        end += value.numel() * value.element_size()
        header[name] = {
            "dtype": NAMES[value.dtype],
            "shape": list(value.shape),
            "data_offsets": [begin, end],
        }
    head = json.dumps(header, separators=(",", ":")).encode()
    head += b" " * (-len(head) % ALIGNED)
    start = ALIGNED + len(head)
    buffer = torch.empty(start + end, dtype=torch.uint8)
    whole = buffer.numpy().data
    whole[:start] = len(head).to_bytes(ALIGNED, "little") + head
    for name in order:
        value = tensors[name].detach()
        size = value.numel() * value.element_size()
        if size:
            buffer[start : start + size].view(value.dtype).view(value.shape).copy_(value)
        start += size
    return whole
