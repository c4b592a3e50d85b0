"""What is trained: a model and its loss in one module. The loop knows neither."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from training.bank import MemoryBank
from training.batches import Batch
from training.compiled import compile_layers
from training.distributed import gather_rows, share
from training.gradients import encode, recompute_layers
from training.model.adafocal import AdaFocalModel
from training.model.interfaces import LossContext
from training.negatives import beside_references, columns_of

if TYPE_CHECKING:
    from training.config import TrainingSection


class StepOutput(NamedTuple):
    """Outcome of a forward pass on one worker.

    Attributes:
        objective: what to differentiate; its gradients, averaged over the workers, are those of the global loss.
        loss_sum: sum of the loss over this worker's queries, detached.
        beta: β of this worker's queries, detached [b, 1 or M]; None without a modulator.
        temperature: of the loss, a detached copy.
    """

    objective: Tensor
    loss_sum: Tensor
    beta: Tensor | None
    temperature: Tensor


def joined(outputs: Sequence[StepOutput]) -> StepOutput:
    """Outcomes of consecutive pieces of a worker's part as one."""
    betas = [output.beta for output in outputs if output.beta is not None]
    return StepOutput(
        torch.stack([output.objective for output in outputs]).sum(),
        torch.stack([output.loss_sum for output in outputs]).sum(),
        torch.cat(betas) if betas else None,
        outputs[0].temperature,
    )


PRECISIONS = {name: getattr(torch, name) for name in ("float32", "bfloat16", "float16")}
"""Arithmetic of the encoders by its name in a recipe."""


class ContrastiveTask(nn.Module):
    """A model under its own objective, each query against the targets of all workers.

    Args:
        model: with or without its tower.
        precision: arithmetic of the encoders; scores and loss are float32 always.
        micro_batch: most queries or targets that are encoded at once, with the same loss and gradients (see
            `gradients.encode`); None encodes the part as a whole.
        bank: targets of earlier steps as further negatives; whoever steps says when those of this step come in.
    """

    def __init__(
        self,
        model: AdaFocalModel,
        precision: torch.dtype = torch.float32,
        micro_batch: int | None = None,
        bank: MemoryBank | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        self.micro_batch = micro_batch
        self.bank = bank

    def forward(self, batch: Batch) -> StepOutput:
        """One worker's part of a global batch.

        The mean over workers that data parallelism takes of gradients is undone by the factor world size / total: the
        sum of all queries' losses divided by their number is what is differentiated (DeepSpeed#7107).
        """
        rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        device = batch.reference_tokens.device.type
        with torch.autocast(device, self.precision, enabled=self.precision != torch.float32):
            query, distinct = encode(self.model, batch, self.micro_batch)
        targets = distinct[batch.target_index]  # [b, M, d]
        start, end = share(batch.total, rank, world_size)
        exact = self.model.temp.dtype  # float32, or float64 where a test asks for more digits
        labels = torch.arange(start, end, device=targets.device)
        gathered = gather_rows(beside_references(targets, distinct, batch).to(exact), batch.total)
        columns = columns_of(gathered, batch, labels, self.bank)
        context = LossContext(
            query._replace(
                embedding=query.embedding.to(exact), extras={k: v.to(exact) for k, v in query.extras.items()}
            ),
            columns.targets,  # [total, M, d]
            labels,
            self.model.temp,
            self.model.score,
            columns.negatives,
            columns.excluded,
        )
        if self.bank is not None:
            self.bank.offer(columns.targets, batch.target_images)
        terms = [weight * loss(context) for weight, loss in self.model.objective]
        loss_sum = torch.stack(terms).sum() * (end - start)
        beta = None if query.beta is None else query.beta.detach().float()
        temperature = self.model.temp.detach().clone()
        return StepOutput(loss_sum * (world_size / batch.total), loss_sum.detach(), beta, temperature)


def make_task(model: AdaFocalModel, section: TrainingSection) -> ContrastiveTask:
    """What a recipe trains, in its precision and with its ways to save memory.

    Raises:
        OacirError: it asks for compiled layers where nothing can compile.
    """
    if section.activation_checkpointing:
        recompute_layers(model)
    if section.compile:
        compile_layers(model)
    cached = section.micro_batch_size if section.negatives == "batch" else None
    size = section.memory_bank
    bank = MemoryBank(size, model.target_shape, model.temp) if size else None
    return ContrastiveTask(model, PRECISIONS[section.precision], cached, bank)
