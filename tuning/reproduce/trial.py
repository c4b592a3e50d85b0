"""A trial as Ray Tune sees it: one training as `oacir train` makes it, measured and kept. And the queue of them."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from ray import tune
from ray.tune.search import Searcher

from infra.base.command import Context
from infra.base.progress import Progress
from infra.base.versions import open_version
from training.config import TrainRecipe
from tuning import orphans
from tuning.reproduce.kept import TrialKept, keep
from tuning.trial import why

log = logging.getLogger(__name__)
LOOK_EVERY_S = 5.0


@dataclass(frozen=True)
class Task:
    """What a trial does."""

    name: str
    key: str
    """See `TrialKept`."""
    recipe: TrainRecipe
    domains: tuple[str, ...] | None
    """That are ranked; None all."""
    ious: tuple[float, ...]
    blind: int


@dataclass(frozen=True)
class Shared:
    """What all trials get."""

    root: str
    place: str
    """URL of the reproduction."""
    dataset: str
    """URL of the benchmark."""


def carry_out(task: Task, shared: Shared) -> TrialKept:
    """Train, or find the run; rank; keep."""
    from training.trainer import train
    from tuning.reproduce.measure import measured

    began = time.monotonic()
    outcome = train(task.recipe, Context(root=shared.root))
    assert outcome.location is not None
    trained = time.monotonic()
    run, dataset = open_version(outcome.location), open_version(shared.dataset)
    ranks = measured(run, shared.root, dataset, task.domains, task.ious, task.blind)
    kept = TrialKept(
        name=task.name,
        key=task.key,
        run=run.url,
        run_hash=run.manifest.content_hash,
        train_s=round(trained - began, 1),
        measure_s=round(time.monotonic() - trained, 1),
    )
    keep(shared.place, kept, ranks)
    return kept


class Cell(tune.Trainable):
    """What Ray Tune starts, once for several trials, so that torch is imported once."""

    def setup(self, config: dict[str, Any], shared: Shared | None = None) -> None:  # noqa: ARG002
        """Take what all trials share; `config` is the first one's."""
        assert shared is not None
        self.shared = shared

    def step(self) -> dict[str, Any]:
        """All of a trial. What fails says why and ends no other."""
        task: Task = self.config["task"]
        try:
            # not in the main thread, whose signals the training would take
            with ThreadPoolExecutor(1) as pool:
                kept = pool.submit(carry_out, task, self.shared).result()
        except Exception as error:
            log.debug("trial %s failed", task.name, exc_info=True)
            return {"name": task.name, "reason": why(error), "done": True}
        return {"name": task.name, "reason": "", "done": True, **kept.model_dump()}

    def reset_config(self, new_config: dict[str, Any]) -> bool:  # noqa: ARG002
        """Serve another trial."""
        return True

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Nothing: the run has its own checkpoints."""

    def load_checkpoint(self, checkpoint: str) -> None:
        """Nothing."""


class Queue(Searcher):
    """Hands out one trial after the other, until they or the time have run out.

    Args:
        tasks: that are left, in their order.
        until: no trial begins after it, on the clock `time.monotonic`; None never ends.
    """

    def __init__(self, tasks: Sequence[Task], until: float | None) -> None:
        super().__init__()
        self.tasks, self.until = list(tasks), until

    def suggest(self, trial_id: str) -> Any:  # noqa: ARG002
        """The next trial, or that there is none."""
        if not self.tasks or (self.until is not None and time.monotonic() > self.until):
            return Searcher.FINISHED
        return {"task": self.tasks.pop(0)}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Nothing: no trial hangs on another's figures."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing: what the trials keep is the state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: what the trials keep is the state."""


class Ledger(tune.Callback):
    """Counts trials as they end, gathers why some failed, and gives back what lost ones had reserved.

    Args:
        progress: counts ended trials.
    """

    def __init__(self, progress: Progress) -> None:
        self.progress = progress
        self.failed: dict[str, str] = {}
        self.lost, self.looked = False, 0.0

    def __getstate__(self) -> dict[str, Any]:
        return {}  # Ray Tune pickles its callbacks for a restart that this project does otherwise

    def on_trial_complete(self, *, trial: Any, **_: Any) -> None:
        """A trial is over."""
        result = trial.last_result
        if result["reason"]:
            self._fail(result["name"], result["reason"])
        else:
            took = result["train_s"] + result["measure_s"]
            self.progress.update(1, f"{result['name']}: {took:.0f} s", at_once=True)

    def on_trial_error(self, *, trial: Any, **_: Any) -> None:
        """A trial's process was lost more often than the recipe allows."""
        self.lost = True
        times = trial.run_metadata.num_failures
        self._fail(trial.config["task"].name, f"its process or machine was lost {times} times (max_failures)")

    def on_trial_recover(self, **_: Any) -> None:
        """A trial's process was lost, and begins again."""
        self.lost = True

    def on_step_end(self, **_: Any) -> None:
        """After every event: once a process was lost, see now and then what it had reserved."""
        if self.lost and time.monotonic() - self.looked > LOOK_EVERY_S:
            self.looked = time.monotonic()
            orphans.remove()

    def _fail(self, name: str, reason: str) -> None:
        self.failed[name] = reason
        log.warning("trial %s failed: %s", name, reason)
        self.progress.update(0, f"{name}: failed", at_once=True)
