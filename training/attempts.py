"""The driver while workers train: starts them, again where they were lost or asked to leave, and passes on what either
side has to say."""

from __future__ import annotations

import logging
import math
import threading
import time
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.hold import Hold
from infra.base.progress import Progress
from training import checkpoints
from training.config import ScalingSection
from training.job import Job, Started, Wish, work
from training.listening import Listener, StoppedError
from training.logged import Log
from training.room import leaving, needs, room_now
from training.stopping import Signals
from training.tracking import note

log = logging.getLogger(__name__)
POLL_S = 0.2
DRAINED_WITHIN_S = 100.0
"""After a signal: who takes machines away gives two minutes at most."""
STARTED_WITHIN_S = 5.0
"""The same where no worker trains: there is nothing to save."""
COLLECTIVES_S = 1800
RAY_FOLDER = "ray"
NEVER_S = 1e9


def run_to_end(job: Job, streamed: Mapping[str, Any], watch: Watch) -> None:
    """Start workers until they have trained to the end, or have found that they cannot.

    Args:
        job: what they get.
        streamed: what Ray Train is told of the data.
        watch: running.

    Raises:
        TerminatedError: a signal asked for an end; what was learned is saved.
        StoppedError: the listener did.
        OacirError: workers were lost too often without a new checkpoint.
    """
    import ray

    losses = Losses(job.recipe.scaling.max_failures, last_step(job.run_url))
    with Signals() as signals:
        while True:
            watch.hold.require()
            ray.get(job.board.ready.remote())
            count = _room(job.recipe.scaling, signals, job.run_url)
            try:
                _attend(trainer(job, streamed, count), job, signals, watch)
            except ray.train.TrainingFailedError as error:
                if signals.received is not None:
                    raise signals.stopped(last_step(job.run_url), job.run_url, in_time=False) from error
                if isinstance(error, ray.train.ControllerError):
                    if not elastic(job.recipe.scaling):
                        raise
                    log.warning("no room for %d workers after all", count)
                    continue
                if not losses.bearable(last_step(job.run_url)):
                    raise training_error(error, job.run_url) from error
                log.warning("workers were lost: training goes on behind step %d", last_step(job.run_url))
                continue
            left, why = ray.get(job.board.outcome.remote())
            if left is None or left == Wish.GIVE_UP:
                return
            if left == Wish.STOP:
                step = last_step(job.run_url)
                if signals.received is not None:
                    raise signals.stopped(step, job.run_url)
                raise StoppedError(f"{job.run_url}: stopped after step {step:,}; the same recipe goes on")
            log.warning("%s: training goes on behind step %d", why, last_step(job.run_url))


class Losses:
    """How often workers were lost since there was a newer checkpoint.

    Args:
        most: that are borne.
        step: of the newest checkpoint now.
    """

    def __init__(self, most: int, step: int) -> None:
        self.most, self.step, self.count = most, step, 0

    def bearable(self, step: int) -> bool:
        """Count another one, while the newest checkpoint is that of `step`; whether training may go on."""
        self.count = 1 if step > self.step else self.count + 1
        self.step = step
        return self.count <= self.most


def elastic(scaling: ScalingSection) -> bool:
    """Whether the number of workers may change."""
    return scaling.fewest < scaling.workers


def _room(scaling: ScalingSection, signals: Signals, run_url: str) -> int:
    """How many workers to start; where that may change, waits until there is room for the fewest."""
    if not elastic(scaling):
        return scaling.workers
    told = False
    while (found := room_now(scaling)) < scaling.fewest:
        if not told:
            log.warning(
                "room for %d workers, fewer than scaling.min_workers %d: waiting", found, scaling.fewest
            )
        told = True
        time.sleep(POLL_S)
        if signals.received is not None:
            raise signals.stopped(last_step(run_url), run_url)
    return min(found, scaling.workers)


def last_step(run_url: str) -> int:
    """Of the newest complete checkpoint; 0 without one."""
    return max(checkpoints.complete_steps(run_url), default=0)


def trainer(job: Job, streamed: Mapping[str, Any], count: int) -> Any:
    """Ray Train for one attempt with so many workers; what of it lies in the run is removed by whoever ends the
    training. It starts nothing anew by itself: it would know neither of the machines that are there then nor of
    checkpoints."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from training.drain import ListeningConfig

    scaling = job.recipe.scaling
    filesystem, folder = storage.arrow_filesystem(storage.join(job.run_url, RAY_FOLDER))
    return TorchTrainer(
        work,
        train_loop_config=job,
        torch_config=ListeningConfig(
            backend="nccl" if scaling.use_gpu else "gloo",
            timeout_s=max(COLLECTIVES_S, math.ceil(2 * (scaling.hang_s or 0))),
        ),
        scaling_config=ScalingConfig(
            num_workers=asked(scaling, count),
            use_gpu=scaling.use_gpu,
            resources_per_worker=needs(scaling),
            # it would stop the workers at any moment; we ask them to leave behind a step
            elastic_resize_monitor_interval_s=NEVER_S,
        ),
        # A name of its own for each attempt: Ray Train would resume an earlier one of the same name from its own,
        # older record. Resuming is ours, from the checkpoints of all ranks.
        run_config=RunConfig(
            name=uuid.uuid4().hex[:12],
            storage_path=folder,
            storage_filesystem=filesystem,
            failure_config=FailureConfig(
                max_failures=0,
                max_preemption_failures=0,
                controller_failure_limit=0 if elastic(scaling) else -1,  # how often it may wait for room
            ),
        ),
        **streamed,
    )


def asked(scaling: ScalingSection, count: int) -> int | tuple[int, int]:
    """How many workers Ray Train is asked for: exactly so many; where the cluster can grow, up to the most, so that it
    does. Ray's own count of the room for them is up to 20 s old."""
    from ray._private.state import state  # what Ray Train asks; no public call says it

    if elastic(scaling) and count < scaling.workers and state.get_max_resources_from_cluster_config():
        return count, scaling.workers
    return count


def _attend(made: Any, job: Job, signals: Signals, watch: Watch) -> None:
    """Wait for Ray Train in a thread: in the main one it would take the signals."""
    failed: list[BaseException] = []

    def fit() -> None:
        try:
            made.fit()
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    while thread.is_alive():
        thread.join(POLL_S)
        if signals.received is None:
            continue
        if not signals.passed_on:
            signals.passed_on = True
            job.board.ask.remote(Wish.STOP, signals.name)
        waited = time.monotonic() - signals.received_at
        idle = watch.working is None
        if signals.again or waited > (STARTED_WITHIN_S if idle else DRAINED_WITHIN_S):
            _end_at_once(watch)
            raise signals.stopped(last_step(job.run_url), job.run_url, in_time=idle)
    if failed:
        raise failed[0]


def _end_at_once(watch: Watch) -> None:
    """End the workers, with the session or this driver's part in it."""
    import ray

    watch.close()  # a question to the board would start a session anew
    ray.shutdown()


def training_error(error: Exception, run_url: str) -> Exception:
    """The worker's own complaint in one line, where there is one."""
    failures = getattr(error, "worker_failures", None) or {}
    for rank, failure in sorted(failures.items()):
        cause = getattr(failure, "cause", failure)
        text = " ".join(str(cause).split())
        return OacirError(
            f"training failed in worker {rank}: {text[-600:]}; the run is at {run_url}, the same command goes on"
        )
    return error


@dataclass(frozen=True)
class Attendants:
    """Who else has a say in a training.

    Attributes:
        hold: of its run.
        listener: who follows it and may end it.
    """

    hold: Hold
    listener: Listener | None


@dataclass
class Look:
    """When the room for workers was looked at last, and how much there was."""

    at: float
    room: int = 0


class Watch:
    """Carries the board's news to the progress line, to the log and to MLflow, and looks after the machines."""

    def __init__(
        self, board: Any, scaling: ScalingSection, progress: Progress, told: Log, attendants: Attendants
    ) -> None:
        self.board, self.scaling, self.progress, self.log = board, scaling, progress, told
        self.listener, self.hold = attendants.listener, attendants.hold
        self.notes, self.warnings, self.note = 0, 0, ""
        self.shown = progress.done
        self.working: Started | None = None
        """The workers that train now."""
        self._since: Started | None = None
        self._look = Look(time.monotonic())
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if not self._stop.is_set():
            self.close()
            with suppress(Exception):  # the board may be what was lost
                self._read()

    def close(self) -> None:
        """Look no more."""
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        import ray

        while not self._stop.wait(POLL_S):
            try:
                self._read()
                self._look_around()
            except ray.exceptions.RayError:  # whatever ended the board ends the training too, which says why
                return

    def _read(self) -> None:
        import ray

        news = ray.get(self.board.read.remote(self.notes, self.warnings))
        self.notes += len(news.notes)
        self.warnings += len(news.warnings)
        self.working = news.working
        for warning in news.warnings:
            log.warning("%s", warning)
        self.log.notes(news.notes)
        if self.listener is not None:
            self.listener.notes(news.notes)
            if self.listener.stopping():
                self.board.ask.remote(Wish.STOP, "its listener ended the training")
        if self.hold.taken_by is not None:
            self.board.ask.remote(Wish.GIVE_UP, "another command has taken over")
        for told in news.notes:
            if told.group == "train" and told.step > self.shown:
                self.shown, self.note = told.step, note(told.figures)
                self.progress.update(max(0, told.step - self.progress.done), self.note, at_once=True)
        if news.row is not None:
            done = int(news.row["step"])
            self.progress.update(done - self.progress.done, self.note or f"loss {news.row['loss']:.3f}")

    def _look_around(self) -> None:
        """Ask the workers to leave where a machine of theirs is about to go, or where there is room for more."""
        if self.working is None:
            return
        if self.working != self._since:
            self._since, self._look = self.working, Look(time.monotonic())
        if leaving() & set(self.working.nodes):
            self.board.ask.remote(Wish.MOVE, "a machine is about to be taken away")
        if time.monotonic() - self._look.at < self.scaling.look_every_s:
            return
        before, self._look = self._look.room, Look(time.monotonic(), room_now(self.scaling))
        now = min(self.scaling.workers, self._look.room, before)  # of two looks: machines come one by one
        if elastic(self.scaling) and now > len(self.working.nodes):
            self.board.ask.remote(Wish.RESIZE, f"there is room for {now} workers")
