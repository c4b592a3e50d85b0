"""How the tokens of an image lie in a shard: as bfloat16 or float32, or as int8 with one scale for each token.

An image is a row, token after token. A token of int8 is D values and behind them its scale, a float32 in the machine's
(little-endian) order: value × scale is the number. The scale is the token's largest absolute number / 127, so that
zero stays zero and no number is off by more than half a scale. Pure functions; torch alone.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Dtype = Literal["bfloat16", "float32", "int8"]
"""Types of stored tokens."""
Precision = Literal["float32", "bfloat16"]
"""Arithmetic of the tower that made them."""
LARGEST, SCALE_BYTES = 127, 4
_PLAIN: dict[str, torch.dtype] = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def row_bytes(tokens: int, width: int, dtype: Dtype) -> int:
    """Bytes of one image's tokens."""
    return tokens * (width + SCALE_BYTES if dtype == "int8" else width * _PLAIN[dtype].itemsize)


def pack(tokens: Tensor, dtype: Dtype) -> Tensor:
    """Tokens [n, N, D] as they are stored, uint8 [n, row bytes], on their device."""
    if dtype != "int8":
        return tokens.to(_PLAIN[dtype]).contiguous().flatten(1).view(torch.uint8)
    tokens = tokens.float()
    scales = tokens.abs().amax(dim=-1, keepdim=True) / LARGEST  # [n, N, 1]
    values = (tokens / torch.where(scales > 0, scales, 1.0)).round().clamp(-LARGEST, LARGEST).to(torch.int8)
    return torch.cat([values.view(torch.uint8), scales.view(torch.uint8)], dim=-1).flatten(1)


def unpack(rows: Tensor, shape: tuple[int, int], dtype: Dtype) -> Tensor:
    """What `pack` gave back as tokens [n, N, D] of the stored type, int8 as float32; on the rows' device.

    Args:
        rows: contiguous, of any type, [n, row bytes / its item size].
        shape: (N, D).
        dtype: as it was packed.
    """
    if dtype != "int8":
        return rows.view(_PLAIN[dtype]).view(len(rows), *shape)
    stored = rows.view(torch.uint8).view(len(rows), shape[0], shape[1] + SCALE_BYTES)
    aligned = stored[..., shape[1] :].clone(memory_format=torch.contiguous_format)
    return stored[..., : shape[1]].view(torch.int8) * aligned.view(torch.float32)


def rounded(tokens: Tensor, dtype: Dtype) -> Tensor:
    """Tokens [n, N, D] as a store of that type gives them back, float32."""
    return unpack(pack(tokens, dtype), (tokens.shape[1], tokens.shape[2]), dtype).float()
