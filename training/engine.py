"""What the loop needs of DeepSpeed, and nothing else of it: an optimizer step, and this rank's part of the state."""

from __future__ import annotations

import copy
import math
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from training.bank import IMAGES, TARGETS
from training.batches import Batch
from training.config import TrainingSection, TrainRecipe
from training.gradients import micro_batches
from training.loss_scale import LossScale
from training.memory import counted
from training.meters import Parts
from training.model.adafocal import AdaFocalModel
from training.optim import build_optimizer, set_rates
from training.partitions import Filled, Partitions, partitions_of
from training.task import ContrastiveTask, StepOutput, joined

MOST_REDUCED_AT_ONCE = 50_000_000
LOSS_SCALE, BANK = "loss_scale", (TARGETS, IMAGES)


class Restored(NamedTuple):
    """What was read of a checkpoint for one rank: its pieces, and what is the same on every rank."""

    filled: Filled
    noticed: dict[str, Tensor]


class Engine:
    """A task under DeepSpeed ZeRO, and the average of its weights where the recipe asks for one.

    Args:
        task: on its device.
        recipe: what is trained how.
    """

    def __init__(self, task: ContrastiveTask, recipe: TrainRecipe) -> None:
        self.training: TrainingSection = recipe.training
        self.own_negatives = (
            self.training.micro_batch_size if self.training.negatives == "micro_batch" else None
        )
        """Queries of a micro-batch that is a contrastive batch of its own."""
        self.shapes = {name: p.shape for name, p in task.model.named_parameters()}
        self.bank = task.bank
        self.stage = recipe.scaling.zero_stage
        # stage 3 keeps no parameter whole: what is measured is a plain model, filled for the while
        self.plain = copy.deepcopy(task.model).to("meta") if self.stage == 3 else None
        self.deepspeed = make_engine(task, recipe)
        self.partitions: Partitions = partitions_of(
            self.deepspeed, task.model, self.stage, dist.get_rank(), dist.get_world_size()
        )
        self.scale = LossScale() if self.training.precision == "float16" else None
        self.loss_scale, self.skipped = 1.0, False
        """Of the last step: its loss scale, and whether it was skipped because its gradient was no number."""
        self.bytes: dict[str, int] = {}
        """What the state takes on this worker, by kind; known once AdamW has made its own in the first step."""
        self.overflows = False
        """Whether the last step's gradient was no number and no smaller loss scale would help; the same on every
        worker."""
        decay = self.training.ema_decay
        self.average = [f.detach().clone() for f in self.partitions.flats] if decay else []
        """Of an average of the weights: this rank's part of it."""

    @property
    def model(self) -> AdaFocalModel:
        """The model being trained."""
        model: AdaFocalModel = self.deepspeed.module.model
        return model

    def step(self, batch: Batch, step: int, total: int, parts: Parts) -> StepOutput:
        """One optimizer step on this worker's part of a global batch; `step` counts from 0 to `total`.

        A step whose gradient overflows on any worker changes nothing on all of them.
        """
        set_rates(self.deepspeed.optimizer.param_groups, step, total, self.training)
        self._norm: Any = None
        if self.scale is not None:
            self.deepspeed.optimizer.override_loss_scale(self.scale.value)
        pieces = micro_batches(batch, self.own_negatives, dist.get_world_size())
        outputs = [self._gradients(p, batch.total, last=p is pieces[-1], parts=parts) for p in pieces]
        if not self.bytes and self.partitions.moments(self.partitions.keys[0]):
            self.bytes = counted(self)
        with parts.time("optimizer"):
            if self.stage == 0:  # DeepSpeed tells the norm of ZeRO's gradients only
                gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
                self._norm = torch.nn.utils.get_total_norm(gradients)
            self.deepspeed.step()
            self._judge_step()
        if self.bank is not None:
            self.bank.take(applied=not self.skipped)
        return joined(outputs)

    def _gradients(self, batch: Batch, total: int, last: bool, parts: Parts) -> StepOutput:
        """Add the gradients of a piece of a global batch of `total`; after the last one they are complete."""
        # ZeRO-1 adds up on each worker until the boundary; ZeRO-2 keeps no whole gradient and reduces every time
        self.deepspeed.set_gradient_accumulation_boundary(last)
        with parts.time("forward"):
            output: StepOutput = self.deepspeed(batch)
        with parts.time("backward"):
            # the mean over the piece's queries becomes their share in the mean over all
            self.deepspeed.backward(output.objective * (batch.total / total))
        return output._replace(objective=output.objective.detach())

    def _judge_step(self) -> None:
        self.skipped = not self.deepspeed.was_step_applied()
        self.overflows = self.skipped and (self.scale is None or self.scale.exhausted)
        if self.skipped:
            self._norm = math.inf  # ZeRO-3 would tell that of the step before
        else:
            for average, flat in zip(self.average, self.partitions.flats, strict=bool(self.average)):
                average.lerp_(flat, 1.0 - self.training.ema_decay)  # type: ignore[operator]  # there is one
        if self.scale is not None:
            self.loss_scale = self.scale.value
            self.scale.update(self.skipped)

    @property
    def rate(self) -> float:
        """Learning rate of the last step, of everything but the CAAM."""
        rates = {group["name"]: group["lr"] for group in self.deepspeed.optimizer.param_groups}
        return float(rates["rest"])

    @property
    def gradient_norm(self) -> Any:
        """Norm of the last step's gradient before clipping; on a GPU a tensor that may not be computed yet."""
        return self.deepspeed.get_global_grad_norm() if self._norm is None else self._norm

    def broken(self) -> bool:
        """Whether weights are no numbers; asked of all workers together."""
        broken = torch.stack([~torch.isfinite(p).all() for p in self.partitions.flats]).any().float()
        broken = broken.to(
            self.deepspeed.device
        )  # with an optimizer in the host's memory the weights lie there
        dist.all_reduce(broken, dist.ReduceOp.MAX)
        return bool(broken)

    def state(self) -> dict[str, Tensor]:
        """This rank's part of weights, optimizer state and average, as `Partitions.state`."""
        tensors = self.partitions.state(self._more)
        if self.bank is not None and dist.get_rank() == 0:  # the same on every rank
            tensors |= self.bank.state()
        return tensors | ({} if self.scale is None else {LOSS_SCALE: self.scale.state()})

    def read(self, parts: Iterable[Mapping[str, Tensor]]) -> Restored:
        """What `state` gave, in this or another layout: parts of ranks, the likeliest first. Nothing is changed yet."""
        noticed: dict[str, Tensor] = {}

        def noting() -> Iterator[Mapping[str, Tensor]]:
            for part in parts:
                noticed.update({n: t for n, t in part.items() if n in (LOSS_SCALE, *BANK)})
                yield part

        return Restored(self.partitions.read(noting(), [*self._more]), noticed)

    def restore(self, found: Restored) -> None:
        """Go on with what was read; to be called on every worker."""
        self.partitions.restore(found.filled, self._more)
        if self.scale is not None:
            self.scale.restore(found.noticed[LOSS_SCALE])  # the same on every rank
        if self.bank is not None:
            if TARGETS in found.noticed:
                self.bank.restore(found.noticed)
            self.bank.broadcast()  # it lies in rank 0's part, which rank 0 reads first and others perhaps not at all

    @property
    def _more(self) -> dict[str, list[Tensor]]:
        return {"average": self.average} if self.average else {}

    @contextmanager
    def measured(self) -> Iterator[AdaFocalModel]:
        """The model that is measured and exported: whole, with the averaged weights where the recipe asks for an
        average; to be entered on every worker."""
        trained = [f.detach().clone() for f in self.partitions.flats] if self.average else []
        self._set_weights(self.average)
        try:
            yield self.model if self.plain is None else self._whole(self.plain)
        finally:
            self._set_weights(trained)

    def _whole(self, plain: AdaFocalModel) -> AdaFocalModel:
        """A plain model with the weights that ZeRO-3 keeps in parts."""
        gathered = import_deepspeed().zero.GatheredParameters
        whole = copy.deepcopy(plain).to_empty(device=self.deepspeed.device)
        mine = dict(self.model.named_parameters())
        with torch.no_grad():
            for name, parameter in whole.named_parameters():
                with gathered([mine[name]]):  # one at a time
                    parameter.copy_(mine[name].view(parameter.shape))
            for name, buffer in whole.named_buffers():
                buffer.copy_(self.model.get_buffer(name))
        return whole

    def _set_weights(self, flats: list[Tensor]) -> None:
        if not flats:
            return
        for flat, values in zip(self.partitions.flats, flats, strict=True):
            flat.data.copy_(values)
        self.partitions.publish()


def trained_weights(model: AdaFocalModel, shapes: Mapping[str, torch.Size]) -> dict[str, Tensor]:
    """The trained weights by name, in their own shapes, on the CPU; on one, they are the model's own memory."""
    return {
        name: parameter.detach().cpu().reshape(shapes[name]).contiguous()
        for name, parameter in model.named_parameters()
        if parameter.requires_grad
    }


def import_deepspeed(device: str = "cpu") -> Any:
    """DeepSpeed without what it would do on the side in every worker.

    Args:
        device: type of the model's device; it counts when DeepSpeed is first imported in a process.
    """
    if "deepspeed" not in sys.modules:
        # left to itself it takes the GPU that a machine has, and moves a model there that shall train on the CPU
        os.environ["DS_ACCELERATOR"] = device
    # its autotuner, not used here, imports mlflow where it finds it: 1.3 s and 100 MB
    hidden = "mlflow" not in sys.modules
    if hidden:
        sys.modules["mlflow"] = None  # type: ignore[assignment]  # the documented way to make an import fail
    try:
        import deepspeed
    finally:
        if hidden:
            del sys.modules["mlflow"]
    # Left to itself it probes compilers and then compiles a shared-memory collective (94 s, needs g++) that gloo never
    # calls. With torch's AdamW no compiled operator of DeepSpeed is used.
    deepspeed.ops.__compatible_ops__ = {}
    return deepspeed


def make_engine(task: ContrastiveTask, recipe: TrainRecipe) -> Any:
    """The DeepSpeed engine; initialised on the process group that Ray Train made."""
    deepspeed = import_deepspeed(next(task.parameters()).device.type)
    for parameter in task.parameters():
        if (
            parameter.dim() == 0
        ):  # the temperature; DeepSpeed broadcasts parameters as bytes and cannot view a scalar so
            parameter.data = parameter.data.view(1)
    optimizer = build_optimizer(
        task.model.trainable_parameters(), recipe.training, recipe.tower.learning_rate
    )
    trained = sum(p.numel() for g in optimizer.param_groups for p in g["params"])
    world_size = dist.get_world_size()
    zero: dict[str, Any] = {
        "stage": recipe.scaling.zero_stage,
        "overlap_comm": False,
        # the default makes a buffer of 2 GB in every worker
        "reduce_bucket_size": min(trained, MOST_REDUCED_AT_ONCE),
        # an odd number of parameters (β = 0 has one) is refused
        "allgather_bucket_size": min(trained + trained % 2, MOST_REDUCED_AT_ONCE),
    }
    if recipe.scaling.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": recipe.scaling.use_gpu}
    config = {
        "train_micro_batch_size_per_gpu": -(-recipe.training.batch_size // world_size),
        "gradient_clipping": recipe.training.clip_norm,
        "zero_allow_untested_optimizer": True,
        # torch's AdamW on the CPU: DeepSpeed's own would be compiled on the spot
        "zero_force_ds_cpu_optimizer": False,
        "zero_optimization": zero,
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(
        model=task, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine
