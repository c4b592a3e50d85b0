"""What a query is told from beside the targets of its batch, and which of it does not count."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from training.bank import MemoryBank
from training.batches import Batch
from training.losses import false_negatives
from training.model.interfaces import Rep


class Columns(NamedTuple):
    """What the queries of a worker are scored against; see `LossContext`."""

    targets: Rep
    negatives: Rep | None
    excluded: Tensor | None


def beside_references(targets: Rep, distinct: Rep, batch: Batch) -> Rep:
    """Each query's target [b, …], with its reference beside it [b, 2, …] where references are negatives.

    One tensor, so that one collective gathers both.
    """
    if batch.reference_index is None:
        return targets
    return torch.stack([targets, distinct[batch.reference_index]], 1)


def columns_of(gathered: Rep, batch: Batch, labels: Tensor, bank: MemoryBank | None) -> Columns:
    """The columns of the loss: the targets of the global batch, then its references, then the bank.

    Every worker has the same columns in the same order, whatever the number of workers.

    Args:
        gathered: what `beside_references` gave, of all workers.
        batch: this worker's part; it knows which image each column of the global batch is.
        labels: the column of each query's own target, [b].
        bank: targets of earlier steps.
    """
    targets, *further = (gathered,) if batch.reference_index is None else gathered.unbind(1)
    images = [batch.target_images, *([batch.reference_images] if further else [])]
    if bank is not None:
        further.append(bank.targets)
        images.append(bank.images)
    known = [numbers for numbers in images if numbers is not None]
    excluded = None
    if batch.right_images is not None:
        excluded = false_negatives(torch.cat(known), batch.right_images, labels)
    return Columns(targets, torch.cat(further) if further else None, excluded)
