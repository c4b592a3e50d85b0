"""What the loop needs of DeepSpeed, and nothing else of it: an optimizer step, this rank's partitions of the state."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from training.batches import Batch
from training.config import TrainingSection, TrainRecipe
from training.gradients import micro_batches
from training.loss_scale import LossScale
from training.meters import Parts
from training.model.adafocal import AdaFocalModel
from training.optim import build_optimizer, set_rates
from training.task import ContrastiveTask, StepOutput, joined

MOST_REDUCED_AT_ONCE = 50_000_000


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
        self.deepspeed = make_engine(task, recipe)
        self.scale = LossScale() if self.training.precision == "float16" else None
        self.loss_scale, self.skipped = 1.0, False
        """Of the last step: its loss scale, and whether it was skipped because its gradient was no number."""
        self.overflows = False
        """Whether the last step's gradient was too large for float16 even unscaled; the same on every worker."""
        self.average = [p.detach().clone() for p in self.partitions] if self.training.ema_decay else []
        """Of an average of the weights: this rank's partitions of it."""

    @property
    def model(self) -> AdaFocalModel:
        """The model being trained."""
        model: AdaFocalModel = self.deepspeed.module.model
        return model

    @property
    def partitions(self) -> list[Tensor]:
        """This rank's float32 weights, one flat tensor per parameter group."""
        partitions: list[Tensor] = self.deepspeed.optimizer.single_partition_of_fp32_groups
        return partitions

    def step(self, batch: Batch, step: int, total: int, parts: Parts) -> StepOutput:
        """One optimizer step on this worker's part of a global batch; `step` counts from 0 to `total`.

        A step whose gradient overflows on any worker changes nothing on all of them.
        """
        set_rates(self.deepspeed.optimizer.param_groups, step, total, self.training)
        if self.scale is not None:
            self.deepspeed.optimizer.override_loss_scale(self.scale.value)
        pieces = micro_batches(batch, self.own_negatives, dist.get_world_size())
        outputs = [self._gradients(p, batch.total, last=p is pieces[-1], parts=parts) for p in pieces]
        with parts.time("optimizer"):
            self.deepspeed.step()
            self._judge_step()
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
        if not self.skipped:
            for average, partition in zip(self.average, self.partitions, strict=bool(self.average)):
                average.lerp_(partition, 1.0 - self.training.ema_decay)  # type: ignore[operator]  # there is one
        if self.scale is not None:
            self.loss_scale = self.scale.value
            self.overflows = self.skipped and self.scale.exhausted
            self.scale.update(self.skipped)

    @property
    def rate(self) -> float:
        """Learning rate of the last step, of everything but the CAAM."""
        rates = {group["name"]: group["lr"] for group in self.deepspeed.optimizer.param_groups}
        return float(rates["rest"])

    @property
    def gradient_norm(self) -> Any:
        """Norm of the last step's gradient before clipping; on a GPU a tensor that may not be computed yet."""
        return self.deepspeed.get_global_grad_norm()

    def broken(self) -> bool:
        """Whether weights are no numbers; asked of all workers together."""
        broken = torch.stack([~torch.isfinite(p).all() for p in self.partitions]).any().float()
        dist.all_reduce(broken, dist.ReduceOp.MAX)
        return bool(broken)

    def state(self) -> dict[str, Tensor]:
        """This rank's partition of weights, optimizer state and average."""
        optimizer = self.deepspeed.optimizer.optimizer
        tensors: dict[str, Tensor] = {}
        for i, partition in enumerate(self.partitions):
            kept = optimizer.state[partition]
            tensors |= {f"group{i}.weights": partition} | {f"group{i}.{k}": kept[k] for k in sorted(kept)}
        if self.scale is not None:
            tensors["loss_scale"] = self.scale.state()
        return tensors | {f"average{i}": average for i, average in enumerate(self.average)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go on from what `state` gave."""
        zero = self.deepspeed.optimizer
        for i, partition in enumerate(self.partitions):
            prefix = f"group{i}."
            saved = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            partition.data.copy_(saved.pop("weights"))
            # AdamW counts its steps in a tensor that stays on the CPU
            zero.optimizer.state[partition] = {
                k: v if k == "step" else v.to(partition.device) for k, v in saved.items()
            }
        zero.update_lp_params()
        if self.scale is not None:
            self.scale.restore(tensors["loss_scale"])
        for i, average in enumerate(self.average):
            average.copy_(tensors[f"average{i}"])

    def trained_weights(self) -> dict[str, Tensor]:
        """The trained weights by name, in their own shapes, on the CPU; on one, they are the model's own memory."""
        return {
            name: parameter.detach().cpu().reshape(self.shapes[name]).contiguous()
            for name, parameter in self.model.named_parameters()
            if parameter.requires_grad
        }

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights, where the recipe asks for an average; to be entered on every worker."""
        if not self.average:
            yield
            return
        trained = [p.detach().clone() for p in self.partitions]
        self._set_weights(self.average)
        try:
            yield
        finally:
            self._set_weights(trained)

    def _set_weights(self, partitions: list[Tensor]) -> None:
        for partition, values in zip(self.partitions, partitions, strict=True):
            partition.data.copy_(values)
        self.deepspeed.optimizer.update_lp_params()


def import_deepspeed() -> Any:
    """DeepSpeed without what it would do on the side in every worker."""
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
    deepspeed = import_deepspeed()
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
    config = {
        "train_micro_batch_size_per_gpu": -(-recipe.training.batch_size // world_size),
        "gradient_clipping": recipe.training.clip_norm,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": {
            "stage": recipe.scaling.zero_stage,
            "overlap_comm": False,
            # the default makes a buffer of 2 GB in every worker
            "reduce_bucket_size": min(trained, MOST_REDUCED_AT_ONCE),
            # an odd number of parameters (β = 0 has one) is refused
            "allgather_bucket_size": min(trained + trained % 2, MOST_REDUCED_AT_ONCE),
        },
        "steps_per_print": 2**31,
    }
    engine, *_ = deepspeed.initialize(
        model=task, optimizer=optimizer, config=config, dist_init_required=False
    )
    return engine
