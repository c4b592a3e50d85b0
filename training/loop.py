"""The training loop of one worker: ZeRO by DeepSpeed, negatives from all workers, checkpoints from all ranks."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Sequence

import numpy as np
import ray
import ray.train
import torch
import torch.distributed as dist
from ray.train import CheckpointUploadMode
from ray.train.torch import get_device
from torch import Tensor

from infra.base import storage
from training import checkpoints
from training.batches import QuerySet, Sampler
from training.checkpoints import CheckpointWriter, DamagedError
from training.devset import DEV_COLUMNS, MEASURES, Gallery, dev_readings, mean_by_step, measure
from training.distributed import largest_of_all, share
from training.drain import Drain
from training.engine import Engine, trained_weights
from training.features import FeatureStore
from training.feed import BatchesAhead, Fed, Feed
from training.flops import Shapes, step_flops
from training.gauges import Gauges
from training.history import HISTORY_COLUMNS, DivergedError, History
from training.job import TRAINED, Job, Note, Wish
from training.liveness import Liveness
from training.meters import Parts, Reading, memory_bytes, new_meter
from training.model.adafocal import AdaFocalModel
from training.model.auto import config_of, new_model
from training.pixels import PixelTokens
from training.placement import place
from training.profiling import Trace
from training.stores import joined
from training.task import make_task
from training.towers import prepare_tower

POST_EVERY_S = 0.5
JUDGED_EVERY_STEPS = 16
"""Steps after which every worker looks whether all losses so far are numbers. Never by the clock: a worker that left
alone would let the others wait in a collective."""
MOST_FAILED = 3
"""Checkpoints in a row that may fail to be written; after that training ends, since it would learn for nothing."""


def train_worker(job: Job) -> None:
    """Train on this worker from the last complete checkpoint to the end."""
    scaling = job.recipe.scaling
    torch.set_num_threads(scaling.threads_per_worker)
    device = get_device()
    queries, sampler, galleries, weights = ray.get([job.queries, job.sampler, job.galleries, job.weights])
    model = new_model(config_of(job.config), with_tower=job.plan is not None)
    store: FeatureStore | PixelTokens
    if job.plan is None:
        store = joined([FeatureStore.open(url, key) for url, key in job.stores])
        store = place(store, device, scaling.features_in, ray.train.get_context().get_local_world_size())
    else:
        prepare_tower(model, job.recipe.tower, job.recipe.training.seed)
        store = PixelTokens(ray.get(job.plan), model, device)
    model.load_state_dict(weights)
    loop = Loop(job, model.to(device), store, queries, sampler, galleries, device)
    try:
        loop.run()
    except DivergedError as error:
        # told to the driver, which stops: raised here, Ray Train would take it for a lost worker and try again
        ray.get(job.board.fail.remote(str(error), error.rows))
    finally:
        loop.life.close()
        loop.writer.close()


class Loop:
    """One worker's training. All state that decides over later losses is in `state()`."""

    def __init__(
        self,
        job: Job,
        model: AdaFocalModel,
        store: FeatureStore | PixelTokens,
        queries: QuerySet,
        sampler: Sampler,
        galleries: list[Gallery],
        device: torch.device,
    ) -> None:
        self.job, self.store, self.queries, self.galleries = job, store, queries, galleries
        self.device, self.training = device, job.recipe.training
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self.sampler = sampler
        self.engine = Engine(make_task(model, self.training), job.recipe)
        self.writer = CheckpointWriter(
            job.run_url, self.rank, self.world_size, self.training.checkpoints_kept
        )
        self.history = History()
        self.dev: list[tuple[float, ...]] = []
        self.last_rows = np.zeros(0, np.int64)
        self.parts = Parts()
        self.meter, self.gauges = new_meter(job, device), Gauges(job.label, self.rank)
        self.drain = Drain(job.board, self.rank)
        self.life = Liveness(job.recipe.scaling.hang_s, self._tell_of_end)
        self.step, self.saved, self.posted = 0, 0, 0.0
        self.least = 1
        """Steps that the next checkpoint has to keep away from the last one."""

    def run(self) -> None:
        """Resume, train to the last step, and leave the trained weights in the run; or leave before, as asked."""
        self.resume()
        self.begin()
        self.engine.model.train()
        total = self.job.total_steps
        section, run_url = self.job.recipe.tracking, self.job.run_url
        with self.feed() as feed, Trace(section, run_url, self.step, self.rank == 0) as trace:
            began, waited = time.perf_counter(), 0.0
            self.meter.begin(self.step, 0.0, self.parts.paused)
            while self.step < total and not self.exhausted():
                fed = next(feed)
                self.parts.seconds["data"] = feed.waited_s
                self.train_step(fed, began, feed.waited_s - waited)
                waited = feed.waited_s
                self.meter.add(self.step, waited, self.parts.paused)
                self.life.beat()
                wish = self.drain.after_step()
                if trace.active:
                    with self.parts.time("profile"):
                        trace.step(self.step)
                ended_epoch = self.step % self.sampler.steps_per_epoch == 0
                if self._dev_is_due(ended_epoch, fed.epoch):
                    self.measure_dev(fed.epoch)
                every, done = self.training.checkpoint_every_steps, self.step == total or self.exhausted()
                if wish and not done:
                    self.leave(wish)
                    return
                if done or checkpoints.is_due(self.step, self.saved, every, self.least):
                    self.save()
                elif self.step % JUDGED_EVERY_STEPS == 0:
                    self.judge()
                elif time.monotonic() - self.posted > POST_EVERY_S:
                    self.flush()
                began = time.perf_counter()
        self.drain.close()
        self.finish()

    def begin(self) -> None:
        """Tell the driver that all workers are there, and where."""
        nodes: list[str] = [""] * self.world_size
        dist.all_gather_object(nodes, ray.get_runtime_context().get_node_id())
        if self.rank == 0:
            ray.get(self.job.board.start.remote(self.step, nodes))

    def leave(self, wish: Wish) -> None:
        """Save what is learned and go, behind the same step on every worker."""
        self.drain.close()
        if wish < Wish.GIVE_UP:
            self.save()
            self.life.beat()
            if problem := self.writer.settle():
                self.job.board.warn.remote(f"step {self.step:,} could not be saved: {problem}")
        dist.barrier()
        if self.rank == 0:
            ray.get(self.job.board.leave.remote(wish))

    def feed(self) -> BatchesAhead:
        """This worker's batches from the present step to the last."""
        steps = (self.rank, self.world_size, self.device, self.step, self.job.total_steps)
        if isinstance(self.store, FeatureStore):
            return Feed(self.store, self.queries, self.sampler, *steps)
        from training.online import SHARD, OnlineFeed  # Ray Data takes a second to load

        return OnlineFeed(ray.train.get_dataset_shard(SHARD), self.store.plan, *steps)

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
        output = self.engine.step(batch, self.step, self.job.total_steps, self.parts)
        with self.parts.time("record"):
            self.step += 1
            self.parts.steps += 1
            passed = time.perf_counter() - began
            # on a GPU the norm is not waited for here
            scale = (self.engine.loss_scale, float(self.engine.skipped))
            spent = (passed, waited, *scale, memory_bytes(self.device))
            rest = (self.engine.rate, self.engine.gradient_norm, *spent)
            self.history.add(self.step, epoch, rows, output, self._flops(fed), rest)
            self.last_rows = rows
        if self.engine.overflows:
            self.judge()  # a loss that is no number says more
            told = f"the gradient of step {self.step} is no number"
            if self.training.precision == "float16":
                told = (
                    f"the gradient of step {self.step} overflows float16 even unscaled (training.precision bfloat16 or"
                    " float32 would hold it)"
                )
            raise DivergedError(told, rows)

    def flush(self) -> None:
        """Complete the history of the last steps, and tell the driver."""
        self.history.flush()
        self.posted = time.monotonic()
        told = self.meter.read(self.history.rows)
        for window in told:
            self.gauges.set(window)
        self.gauges.saved(self.writer.written_at)
        if self.rank == 0 and self.history.rows:
            if told:
                self.tell("train", [window.figures for window in told])
            self.job.board.post.remote(self.history.last)

    def tell(self, group: str, told: Sequence[Reading]) -> None:
        """Tell the driver figures, each with its step among them."""
        notes = [Note(group, int(figures["step"]), time.time(), figures) for figures in told]
        self.job.board.tell.remote(notes)

    def judge(self) -> None:
        """Flush, and stop if a loss was no number. To be called after the same steps on every worker.

        Raises:
            DivergedError: of the first such step.
        """
        self.flush()
        if self.history.diverged is not None:
            raise self.history.diverged

    def measure_dev(self, epoch: int) -> None:
        """Measure on the dev galleries, keep the best weights if the recipe asks for them, report to Ray Train."""
        began = time.perf_counter()
        self.judge()
        with self.engine.measured() as model:
            size, beat = self.training.dev_batch_size, self.life.beat
            found = measure(model, self.store, self.galleries, self.device, size, beat)
        seconds = time.perf_counter() - began
        self.parts.seconds["dev"] = self.parts.seconds.get("dev", 0.0) + seconds
        best_before = max(mean_by_step(self.dev).values(), default=-1.0)
        self.dev += [(self.step, epoch, i, *row, seconds) for i, row in enumerate(found)]
        if self.rank == 0:
            self.tell("dev", dev_readings(self.dev[-len(found) :], self.galleries))
        mean = mean_by_step(self.dev)[self.step]
        if self.training.select == "best_on_dev" and mean > best_before:
            with self.engine.measured() as best:
                if self.rank == 0:
                    self.writer.save_best(self.step, trained_weights(best, self.engine.shapes))
        averages = torch.tensor([row[1:] for row in found]).mean(0).tolist()
        metrics = {f"dev_{name}": value for name, value in zip(MEASURES, averages, strict=True)}
        ray.train.report(
            {"step": self.step, "epoch": epoch + 1, "loss": self.history.last["loss"], "dev": mean} | metrics,
            # in a thread: otherwise a report waits until the controller has taken the one before
            checkpoint_upload_mode=CheckpointUploadMode.ASYNC,
        )

    def save(self) -> None:
        """Write this rank's part of a checkpoint; never one that training could not go on from."""
        self.judge()
        with self.parts.time("checkpoint"):
            # a gradient may break the weights of a step whose loss was a number still
            if self.engine.broken():
                raise DivergedError(
                    f"the weights are no numbers any more after step {self.step}", self.last_rows
                )
            self.writer.save(self.step, self.state())
            self._bear_failures()
            if self.step < 1 / checkpoints.GROWTH and self.least == 1:
                self.writer.settle()  # so early that one lost step is more than a twentieth of the work
            least = checkpoints.least_distance(self.writer.usual_s, self.writer.spent_s, self.parts.step_s)
            # every worker has clocks of its own; all have to save after the same steps
            self.least = int(largest_of_all(float(least), self.device))
        self.saved = self.step

    def _bear_failures(self) -> None:
        """Say that a checkpoint could not be written; too many in a row end the training."""
        failures, problem = self.writer.failures, self.writer.problem
        if failures >= MOST_FAILED:
            self.job.board.fail.remote(f"{failures} checkpoints in a row could not be written: {problem}", ())
            self.drain.ask(Wish.GIVE_UP, problem)
        elif failures:
            self.job.board.warn.remote(f"a checkpoint could not be written, training goes on: {problem}")

    def _tell_of_end(self, why: str) -> None:
        ray.get(self.job.board.warn.remote(f"worker {self.rank} ended itself: {why}"))

    def state(self) -> dict[str, Tensor]:
        """This rank's part of the state; rank 0, which alone reports, adds the history."""
        tensors = self.engine.state()
        if self.rank == 0:
            tensors["history"] = checkpoints.as_tensor(self.history.rows, len(HISTORY_COLUMNS))
            tensors["dev"] = checkpoints.as_tensor(self.dev, len(DEV_COLUMNS))
        return tensors

    def resume(self) -> None:
        """Continue after the newest checkpoint that all workers can read as if nothing had happened.

        Raises:
            DamagedError: there are checkpoints, and none can be read.
        """
        problem, steps = "", [checkpoints.complete_steps(self.job.run_url)]
        dist.broadcast_object_list(steps, 0, device=self.device)  # all have to look at the same
        for step in reversed(steps[0]):
            self.life.beat()
            try:
                self.restore(step)
            except DamagedError as error:
                problem = str(error)
                if self.rank == 0:
                    ray.get(self.job.board.warn.remote(f"{problem}; training goes on from the one before"))
                continue
            break
        if problem and not self.step:
            raise DamagedError(
                f"{problem}, and so are all others; delete {checkpoints.FOLDER}/ to begin anew"
            )
        if self.rank == 0:
            checkpoints.remove_after(self.job.run_url, self.step)

    def restore(self, step: int) -> None:
        """Continue after a complete checkpoint.

        Raises:
            DamagedError: on every worker, if any of them cannot read it. Nothing is changed then.
        """
        saved = checkpoints.Saved.newest(self.job.run_url, step, self.world_size)
        problem, found, first = "", None, dict[str, Tensor]()
        try:
            parts = saved.parts(self.rank)
            first = next(parts)
            found = self.engine.read(itertools.chain([first], parts))
        except DamagedError as error:
            problem = str(error)
        if largest_of_all(float(bool(problem)), self.device) or found is None:
            raise DamagedError(problem or f"checkpoint of step {step:,}: damaged, as another worker found")
        self.engine.restore(found)
        self.step = self.saved = step
        if self.rank == 0:
            self.history.restore(first["history"].tolist())
            self.dev = [tuple(row) for row in first["dev"].tolist()]
            self.tell("train", self.meter.earlier(self.history.rows))
            self.tell("dev", dev_readings(self.dev, self.galleries))
        known = [self.dev]  # all workers judge by it whether to go on
        dist.broadcast_object_list(known, 0, device=self.device)
        self.dev = known[0]

    def finish(self) -> None:
        """Leave the last weights and what a step cost by part."""
        self.writer.wait()
        self._write_weights()
        held: list[dict[str, int]] = [{}] * self.world_size
        dist.all_gather_object(held, self.engine.bytes)
        if self.rank == 0:
            ray.get(self.job.board.finish.remote(self.parts.seconds, held))
        dist.barrier()

    def _flops(self, fed: Fed) -> float:
        """Model FLOPs of this worker's part of the step; NaN where `step_flops` does not know."""
        start, end = share(len(fed.rows), self.rank, self.world_size)
        batch = fed.batch
        # the lengths of the texts as the host knows them: to ask the batch would wait for the device
        pieces = int(self.queries.text_lengths[fed.rows[start:end]].sum())
        targets, longest = len(batch.target_tokens), batch.input_ids.shape[1]
        shapes = Shapes(end - start, targets, batch.total, pieces, longest, batch.modulate)
        found = step_flops(self.engine.model.config, shapes, self.job.recipe.tower)
        return math.nan if found is None else found

    def _dev_is_due(self, ended_epoch: bool, epoch: int) -> bool:
        every = self.training.dev_every_epochs
        if every is None or not self.galleries:
            return False
        return self.step == self.job.total_steps or (ended_epoch and (epoch + 1) % every == 0)

    def _write_weights(self) -> None:
        """The last weights, written by rank 0; to be called on every worker."""
        from safetensors.torch import save

        with self.engine.measured() as model:
            if self.rank:
                return
            # inside: on a CPU these are the model's own weights
            data = save(trained_weights(model, self.engine.shapes))
        storage.write_bytes(storage.join(self.job.run_url, TRAINED), data)
