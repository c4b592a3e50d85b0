"""What the training state takes on one worker, in bytes: predicted for a dry run, and counted in the engine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from training.engine import Engine

NUMBER = 4
"""Bytes of a float32."""
KINDS = ("weights", "master", "gradients", "optimizer", "average")
"""The model's weights; the float32 copy that is stepped; gradients between backward pass and step; AdamW's two moments;
the average of the weights (`training.ema_decay`). Activations, batches and DeepSpeed's buckets of at most 200 MB come
on top; stage 1 holds whole gradients until they are reduced at the end of the backward pass."""


def predicted(
    trained: int, frozen: int, stage: int, workers: int, *, average: bool = False
) -> dict[str, int]:
    """Bytes of each of `KINDS` on one of the workers (Rajbhandari et al. 2020, Fig. 1, for float32 weights).

    Args:
        trained, frozen: parameters of the model.
        stage: of ZeRO, 0 to 3.
        workers: that share the state.
        average: whether an average of the weights is kept.
    """

    def shared(numbers: int, from_stage: int) -> int:
        return NUMBER * (-(-numbers // workers) if stage >= from_stage else numbers)

    return {
        "weights": shared(trained + frozen, 3),
        "master": shared(trained, 1) if stage else 0,  # stage 0 steps the weights themselves
        "gradients": shared(trained, 1),
        "optimizer": 2 * shared(trained, 1),
        "average": shared(trained, 1) if average else 0,
    }


def counted(engine: Engine) -> dict[str, int]:
    """Bytes of each of `KINDS` on this worker; to be called between backward pass and optimizer step."""
    zero, parameters = engine.deepspeed.optimizer, list(engine.model.parameters())
    weights = [p.ds_tensor if engine.stage == 3 else p.data for p in parameters]
    master = engine.partitions.flats if engine.stage else []
    gradients = [p.grad for p in [*parameters, *master] if p.grad is not None]
    if engine.stage:
        gradients += _tensors(zero.averaged_gradients.values())
    moments = [v for key in engine.partitions.keys for v in engine.partitions.moments(key)]
    tensors = dict(zip(KINDS, (weights, master, gradients, moments, engine.average), strict=True))
    return {kind: sum(t.numel() * t.element_size() for t in found) for kind, found in tensors.items()}


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, list | tuple):
            yield from _tensors(value)
        elif value is not None:
            yield value
