"""The training loop of one worker: ZeRO by DeepSpeed, negatives from all workers, checkpoints from all ranks."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device
from torch import Tensor

from infra.base import storage
from infra.base.errors import OacirError
from training import checkpoints
from training.checkpoints import CheckpointWriter
from training.config import TrainRecipe
from training.data import QuerySet, Rows, Sampler
from training.devset import DEV_COLUMNS, MEASURES, Gallery, mean_by_step, measure
from training.features import FeatureStore
from training.feed import Fed, Feed
from training.job import BEST, TRAINED, Job
from training.model.adafocal import AdaFocalModel
from training.model.auto import config_of, new_model
from training.optim import build_optimizer, set_rates
from training.placement import place
from training.stores import joined
from training.task import ContrastiveTask

HISTORY_COLUMNS = (
    "step",
    "epoch",
    "loss",
    "temperature",
    "beta_mean",
    "beta_std",
    "learning_rate",
    "gradient_norm",
    "seconds",
    "data_seconds",
)
"""Of a step: norm of the gradient before clipping; seconds in all, and those spent waiting for the batch."""
MOST_REDUCED_AT_ONCE = 50_000_000
POST_EVERY_S = 0.5
JUDGED_EVERY_STEPS = 16
"""Steps after which every worker looks whether all losses so far are numbers. Never by the clock: a worker that left
alone would let the others wait in a collective."""


class DivergedError(OacirError):
    """Loss or weights are no numbers any more. Every worker finds so after the same step."""

    def __init__(self, what: str, rows: Rows) -> None:
        super().__init__(what)
        self.rows = rows
        """Rows of the global batch of the step."""


def train_worker(job: Job) -> None:
    """Train on this worker from the last complete checkpoint to the end."""
    scaling = job.recipe.scaling
    torch.set_num_threads(scaling.threads_per_worker)
    device = get_device()
    store = joined([FeatureStore.open(url, key) for url, key in job.stores])
    store = place(store, device, scaling.features_in, ray.train.get_context().get_local_world_size())
    queries, sampler, galleries, weights = ray.get([job.queries, job.sampler, job.galleries, job.weights])
    model = new_model(config_of(job.config), with_tower=False)
    model.load_state_dict(weights)
    loop = Loop(job, model.to(device), store, queries, sampler, galleries, device)
    try:
        loop.run()
    except DivergedError as error:
        # told to the driver, which stops: raised here, Ray Train would take it for a lost worker and try again
        ray.get(job.board.fail.remote(str(error), error.rows))
    finally:
        loop.writer.close()


@dataclass
class Parts:
    """Seconds spent by part of the step; on a GPU the parts are what the CPU waits for."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def time(self, part: str) -> Iterator[None]:
        """Add the block's duration to a part."""
        began = time.perf_counter()
        yield
        self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - began


class Loop:
    """One worker's training. All state that decides over later losses is in `state()`."""

    def __init__(
        self,
        job: Job,
        model: AdaFocalModel,
        store: FeatureStore,
        queries: QuerySet,
        sampler: Sampler,
        galleries: list[Gallery],
        device: torch.device,
    ) -> None:
        self.job, self.store, self.queries, self.galleries = job, store, queries, galleries
        self.device, self.training = device, job.recipe.training
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.sampler = sampler
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.precision = torch.bfloat16 if self.training.precision == "bfloat16" else torch.float32
        self.engine = make_engine(ContrastiveTask(model, self.precision), job.recipe)
        self.writer = CheckpointWriter(
            job.run_url, self.rank, self.world_size, self.training.checkpoints_kept
        )
        self.history: list[tuple[float, ...]] = []
        self.dev: list[tuple[float, ...]] = []
        self.pending: list[tuple[tuple[float, ...], Tensor, Any, Tensor, Rows]] = []
        self.diverged: DivergedError | None = None
        self.last_rows = np.zeros(0, np.int64)
        self.parts = Parts()
        self.average = [p.detach().clone() for p in self._partitions] if self.training.ema_decay else []
        """Of an average of the weights: this rank's partitions of it."""
        self.step, self.saved, self.posted = 0, 0, 0.0

    @property
    def model(self) -> AdaFocalModel:
        """The model being trained."""
        return self.engine.module.model

    @property
    def _partitions(self) -> list[Tensor]:
        """This rank's float32 weights, one flat tensor per parameter group."""
        partitions: list[Tensor] = self.engine.optimizer.single_partition_of_fp32_groups
        return partitions

    def run(self) -> None:
        """Resume, train to the last step, and leave the trained weights in the run."""
        done = checkpoints.complete_steps(self.job.run_url)
        if done:
            self.restore(done[-1])
        self.engine.train()
        total = self.job.total_steps
        with self.feed() as feed:
            began, waited = time.perf_counter(), 0.0
            while self.step < total and not self.exhausted():
                fed = next(feed)
                self.parts.seconds["data"] = feed.waited_s
                self.train_step(fed, began, feed.waited_s - waited)
                waited = feed.waited_s
                ended_epoch = self.step % self.sampler.steps_per_epoch == 0
                if self._dev_is_due(ended_epoch, fed.epoch):
                    self.measure_dev(fed.epoch)
                every = self.training.checkpoint_every_steps
                if self.step == total or self.exhausted() or checkpoints.is_due(self.step, self.saved, every):
                    self.save()
                elif self.step % JUDGED_EVERY_STEPS == 0:
                    self.judge()
                elif time.monotonic() - self.posted > POST_EVERY_S:
                    self.flush()
                began = time.perf_counter()
        self.finish()

    def feed(self) -> Feed:
        """This worker's batches from the present step to the last."""
        return Feed(
            self.store,
            self.queries,
            self.sampler,
            self.rank,
            self.world_size,
            self.device,
            self.step,
            self.job.total_steps,
        )

    def exhausted(self) -> bool:
        """Whether dev has not become better for as many measurements as the recipe has patience for."""
        patience, means = self.training.patience, mean_by_step(self.dev)
        if patience is None or not means:
            return False
        measured = sorted(means)
        best = max(measured, key=means.__getitem__)  # the first of equals
        return len(measured) - 1 - measured.index(best) >= patience

    def train_step(self, fed: Fed, began: float, waited: float) -> None:
        """One optimizer step on a global batch.

        Args:
            fed: this worker's part of it.
            began: when the wait for it began, by `time.perf_counter`.
            waited: seconds that it took.
        """
        epoch, rows, batch = fed
        # dropout is a pure function of (seed, step, rank), so a resumed step draws the same masks
        torch.manual_seed(((self.training.seed * 1_000_003 + self.step) * 8191 + self.rank) % 2**63)
        set_rates(self.engine.optimizer.param_groups, self.step, self.job.total_steps, self.training)
        temperature = self.model.temp.detach().clone()
        with self.parts.time("forward"):
            output = self.engine(batch)
        with self.parts.time("backward"):
            self.engine.backward(output.objective)
        with self.parts.time("optimizer"):
            self.engine.step()
            for average, partition in zip(self.average, self._partitions, strict=bool(self.average)):
                average.lerp_(partition, 1.0 - self.training.ema_decay)  # type: ignore[operator]  # there is one
        with self.parts.time("record"):
            beta = torch.zeros(1, 1) if output.beta is None else output.beta
            sums = torch.stack([output.loss_sum.double(), beta.double().sum(), beta.double().square().sum()])
            handle = dist.all_reduce(sums, async_op=True)
            values = float("nan") if output.beta is None else float(beta.shape[1] * len(rows))
            rates = {g["name"]: g["lr"] for g in self.engine.optimizer.param_groups}
            norm = self.engine.get_global_grad_norm()  # on a GPU a tensor: not waited for here
            passed = time.perf_counter() - began
            row = (self.step + 1, epoch, len(rows), values, rates["rest"], norm, passed, waited)
            self.pending.append((row, sums, handle, temperature, rows))
            self.last_rows = rows
            self.step += 1

    def flush(self) -> None:
        """Turn what the last steps left on the device into history rows, and tell the driver."""
        for (step, epoch, size, values, *rest), sums, handle, temperature, rows in self.pending:
            handle.wait()
            loss_sum, beta_sum, beta_square = sums.tolist()
            loss, mean = loss_sum / size, beta_sum / values
            spread = math.sqrt(max(0.0, beta_square / values - mean**2)) if values == values else mean
            if not math.isfinite(loss) and self.diverged is None:
                self.diverged = DivergedError(f"the loss is {loss} at step {step:.0f}", rows)
            self.history.append((step, epoch, loss, temperature.item(), mean, spread, *map(float, rest)))
        self.pending.clear()
        self.posted = time.monotonic()
        if self.rank == 0 and self.history:
            self.job.board.post.remote(dict(zip(HISTORY_COLUMNS, self.history[-1], strict=True)))

    def judge(self) -> None:
        """Flush, and stop if a loss was no number. To be called after the same steps on every worker.

        Raises:
            DivergedError: of the first such step.
        """
        self.flush()
        if self.diverged is not None:
            raise self.diverged

    def measure_dev(self, epoch: int) -> None:
        """Measure on the dev galleries, keep the best weights if the recipe asks for them, report to Ray Train."""
        began = time.perf_counter()
        self.judge()
        with self.averaged():
            found = measure(self.model, self.store, self.galleries, self.device, self.training.dev_batch_size)
        seconds = time.perf_counter() - began
        self.parts.seconds["dev"] = self.parts.seconds.get("dev", 0.0) + seconds
        best_before = max(mean_by_step(self.dev).values(), default=-1.0)
        self.dev += [(self.step, epoch, i, *row, seconds) for i, row in enumerate(found)]
        mean = mean_by_step(self.dev)[self.step]
        if self.training.select == "best_on_dev" and mean > best_before:
            self._write_weights(BEST)
        averages = torch.tensor([row[1:] for row in found]).mean(0).tolist()
        metrics = {f"dev_{name}": value for name, value in zip(MEASURES, averages, strict=True)}
        ray.train.report(
            {"step": self.step, "epoch": epoch + 1, "loss": self.history[-1][2], "dev": mean} | metrics,
            # in a thread: otherwise a report waits until the controller has taken the one before
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def save(self) -> None:
        """Write this rank's part of a checkpoint; never one that training could not go on from."""
        self.judge()
        with self.parts.time("checkpoint"):
            self._require_finite_weights()
            self.writer.save(self.step, self.state())
            if self.step < 1 / checkpoints.GROWTH:
                self.writer.wait()  # so early that one lost step is more than a twentieth of the work
        self.saved = self.step

    def _require_finite_weights(self) -> None:
        """A gradient may break the weights of a step whose loss was a number still; asked of all workers together."""
        broken = (
            torch.stack([~torch.isfinite(partition).all() for partition in self._partitions]).any().float()
        )
        dist.all_reduce(broken, dist.ReduceOp.MAX)
        if broken:
            raise DivergedError(f"the weights are no numbers any more after step {self.step}", self.last_rows)

    def state(self) -> dict[str, Tensor]:
        """This rank's partition of weights and optimizer state; rank 0, which alone reports, adds the history."""
        zero = self.engine.optimizer
        tensors: dict[str, Tensor] = {}
        for i, partition in enumerate(self._partitions):
            kept = zero.optimizer.state[partition]
            tensors |= {f"group{i}.weights": partition} | {f"group{i}.{k}": kept[k] for k in sorted(kept)}
        tensors |= {f"average{i}": average for i, average in enumerate(self.average)}
        if self.rank == 0:
            tensors["history"] = checkpoints.as_tensor(self.history, len(HISTORY_COLUMNS))
            tensors["dev"] = checkpoints.as_tensor(self.dev, len(DEV_COLUMNS))
        return tensors

    def restore(self, step: int) -> None:
        """Continue after a complete checkpoint as if nothing had happened."""
        tensors = checkpoints.load(self.job.run_url, step, self.rank, self.world_size)
        zero = self.engine.optimizer
        for i, partition in enumerate(self._partitions):
            prefix = f"group{i}."
            saved = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            partition.data.copy_(saved.pop("weights"))
            # AdamW counts its steps in a tensor that stays on the CPU
            zero.optimizer.state[partition] = {
                k: v if k == "step" else v.to(partition.device) for k, v in saved.items()
            }
        zero.update_lp_params()
        for i, average in enumerate(self.average):
            average.copy_(tensors[f"average{i}"])
        self.step = self.saved = step
        if self.rank == 0:
            self.history, self.dev = ([tuple(r) for r in tensors[n].tolist()] for n in ("history", "dev"))
        known = [self.dev]  # all workers judge by it whether to go on
        dist.broadcast_object_list(known, 0, device=self.device)
        self.dev = known[0]

    def finish(self) -> None:
        """Leave the last weights and what a step cost by part."""
        self.writer.wait()
        self._write_weights(TRAINED)
        if self.rank == 0:
            ray.get(self.job.board.finish.remote(self.parts.seconds))
        dist.barrier()

    def _dev_is_due(self, ended_epoch: bool, epoch: int) -> bool:
        every = self.training.dev_every_epochs
        if every is None or not self.galleries:
            return False
        return self.step == self.job.total_steps or (ended_epoch and (epoch + 1) % every == 0)

    def _write_weights(self, name: str) -> None:
        """What is exported, written by rank 0; to be called on every worker."""
        from safetensors.torch import save

        with self.averaged():
            if self.rank:
                return
            trained = {
                name: parameter.detach().cpu().reshape(self.shapes[name]).contiguous()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }
            data = save(trained)  # inside: on a CPU these are the model's own weights, not copies
        storage.write_bytes(storage.join(self.job.run_url, name), data)

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """The model with the averaged weights, where the recipe asks for an average; to be entered on every worker."""
        if not self.average:
            yield
            return
        zero, trained = self.engine.optimizer, [p.detach().clone() for p in self._partitions]
        self._set_weights(zero, self.average)
        try:
            yield
        finally:
            self._set_weights(zero, trained)

    def _set_weights(self, zero: Any, partitions: list[Tensor]) -> None:
        for partition, values in zip(self._partitions, partitions, strict=True):
            partition.data.copy_(values)
        zero.update_lp_params()


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
    optimizer = build_optimizer(task.model.trainable_parameters(), recipe.training)
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
