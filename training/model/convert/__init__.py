"""Checkpoints of others → ours, and ours → the authors' layout. Tensors only; nothing is ever unpickled."""

from training.model.convert.load import Converted, read_checkpoint
from training.model.convert.names import from_huggingface, from_release, to_huggingface, to_release

__all__ = [
    "Converted",
    "from_huggingface",
    "from_release",
    "read_checkpoint",
    "to_huggingface",
    "to_release",
]
