"""Trainings that are left in their midst and go on: a signal, a worker that is sent away, hangs or is lost again and
again, and other numbers of workers. No checkpoint is written but where a worker is asked to leave, or at the end."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from small_benchmark import write_benchmark

from infra.base.command import Context, Outcome
from infra.base.errors import OacirError, TerminatedError
from infra.base.hold import held
from infra.base.progress import Progress
from infra.base.versions import Version, open_version
from pipelines.embed import embed
from training import attempts, checkpoints, trainer
from training.config import TrainRecipe
from training.job import Job, work
from training.trainer import UNTIMED, train

pytestmark = [pytest.mark.ray, pytest.mark.slow]
STEPS, MIDST = 40, 12
TOLERANCE = 1e-4
"""Relative, of losses in float32 over forty steps of another order of sums."""


def recipe(**scaling: Any) -> TrainRecipe:
    """Without dropout, whose masks every worker draws for itself."""
    overrides = {
        "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
        "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32, "crm_dropout": 0.0,
        "qformer.hidden_dropout_prob": 0.0, "qformer.attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return TrainRecipe.model_validate(
        {
            "name": "left", "dataset": "small",
            "model": {"overrides": overrides, "crm_layers": 1},
            "embed": {"workers": 1, "dtype": "float32"},
            "training": {
                "epochs": 20, "steps": STEPS, "batch_size": 23, "learning_rate": 1e-3, "caam_learning_rate": 1e-3,
                "dev_every_epochs": None,
            },
            "scaling": scaling,
        }
    )  # fmt: skip


def rarely(job: Job) -> None:
    """The loop of a worker that saves only where it has to."""
    from training import checkpoints as of_the_worker

    of_the_worker.is_due = lambda *_: False  # type: ignore[assignment]
    work(job)


@dataclass(frozen=True)
class Scene:
    root: Path
    whole: Version
    """Left in peace."""

    def train(self, out: str, asked: TrainRecipe) -> Outcome:
        return train(asked, Context(root=str(self.root), out=str(self.root / out)))

    def history(self, out: str) -> dict[str, list[Any]]:
        found: dict[str, list[Any]] = open_version(str(self.root / out)).table("history").to_pydict()
        return found

    def same(self, out: str) -> bool:
        """Whether weights and every step are those of the run that was left in peace, bit for bit."""
        again = open_version(str(self.root / out))
        columns = list(UNTIMED)
        return (
            again.table("history", columns).equals(self.whole.table("history", columns))
            and again.manifest.content_hash == self.whole.manifest.content_hash
        )


@pytest.fixture(scope="module")
def scene(ray_session: None, tmp_path_factory: pytest.TempPathFactory) -> Scene:
    root = tmp_path_factory.mktemp("left")
    write_benchmark(root, identities=12)
    embed(recipe(), Context(root=str(root)))
    whole = train(recipe(), Context(root=str(root), out=str(root / "whole")))
    return Scene(root, open_version(str(whole.location)))


@contextmanager
def at_steps(
    acts: dict[int, Callable[[], None]], patch: pytest.MonkeyPatch, loop: Callable[[Job], None] = rarely
) -> Iterator[list[int]]:
    """Do something once as soon as a step is shown; the steps at which it was."""
    waiting, done = dict(sorted(acts.items())), list[int]()

    class Showing(Progress):
        def update(self, count: int = 1, note: str = "", *, at_once: bool = False) -> None:
            super().update(count, note, at_once=at_once)
            for step in [s for s in waiting if s <= self.done][:1]:
                done.append(self.done)
                waiting.pop(step)()

    patch.setattr(trainer, "Progress", Showing)
    patch.setattr(attempts, "work", loop)
    yield done
    assert not waiting, "the training was over before something was done to it"


def training_workers() -> list[psutil.Process]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):  # gone meanwhile
            if "RayTrainWorker" in " ".join(process.cmdline()):
                found.append(process)
    return sorted(found, key=lambda p: p.pid)


def of_worker(index: int, what: str) -> Callable[[], None]:
    """Call a method of the process of one of the workers."""

    def call() -> None:
        getattr(training_workers()[index], what)()

    return call


def signal_to_us(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def stopped_at(error: TerminatedError) -> int:
    found = re.match(r"stopped by SIG\w+: all (\d+) steps are saved; the same command goes on", str(error))
    assert found, error
    return int(found[1])


def test_sigterm_saves_the_step_and_the_same_command_goes_on(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with (
        at_steps({MIDST: signal_to_us(signal.SIGTERM)}, monkeypatch) as done,
        pytest.raises(TerminatedError) as caught,
    ):
        scene.train("term", recipe())
    assert caught.value.exit_code == 143
    left = stopped_at(caught.value)
    assert done[0] <= left < STEPS
    assert checkpoints.complete_steps(str(scene.root / "term")) == [left]
    assert not training_workers()
    with (
        held(str(scene.root / "term"), "training"),
        pytest.raises(OacirError, match="another command works here"),
    ):
        scene.train("term", recipe())
    outcome = scene.train("term", recipe())
    assert outcome.figures["starts"] == [{"step": left, "workers": 2}]
    assert scene.same("term")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_worker_that_is_sent_away_saves_first_and_does_not_count_as_lost(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    with at_steps({MIDST: of_worker(1, "terminate")}, monkeypatch) as done:
        starts = scene.train("sent-away", recipe(max_failures=0)).figures["starts"]
    assert [start["workers"] for start in starts] == [2, 2]
    assert starts[0]["step"] == 0
    assert done[0] <= starts[1]["step"] < STEPS
    assert scene.same("sent-away")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_two_workers_then_one_then_two_agree_with_two(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    left = []
    for stop, workers, stage in ((MIDST, 2, 2), (2 * MIDST, 1, 3)):
        with (
            at_steps({stop: signal_to_us(signal.SIGINT)}, monkeypatch),
            pytest.raises(TerminatedError) as caught,
        ):
            scene.train("changing", recipe(workers=workers, zero_stage=stage))
        assert caught.value.exit_code == 130
        left.append(stopped_at(caught.value))
    monkeypatch.undo()
    scene.train("changing", recipe(workers=2))
    found, whole = scene.history("changing"), scene.history("whole")
    assert found["step"] == whole["step"]
    assert found["loss"] == pytest.approx(whole["loss"], rel=TOLERANCE)
    assert found["samples"] == whole["samples"]
    # the step behind the second change, by weights or moments of another step, would be far off
    spread = np.abs(np.diff(whole["loss"])).mean() / np.mean(whole["loss"])
    assert spread > 20 * TOLERANCE, (left, spread)


@pytest.mark.long
@pytest.mark.timeout(600)
def test_a_worker_that_hangs_is_started_anew(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    asked = recipe(hang_s=12.0)
    with at_steps({MIDST: of_worker(0, "suspend")}, monkeypatch):
        starts = scene.train("hung", asked).figures["starts"]
    assert [start["workers"] for start in starts] == [2, 2]
    assert "worker 1 ended itself: no step for 12 s, last seen in" in caplog.text or (
        "worker 0 ended itself: no step for 12 s" in caplog.text
    )
    assert scene.same("hung")


@pytest.mark.long
@pytest.mark.timeout(600)
def test_losses_count_anew_behind_a_newer_checkpoint(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three losses and one that may be; each comes behind checkpoints of its own."""
    kills = dict.fromkeys((8, 18, 28), of_worker(0, "kill"))
    with at_steps(kills, monkeypatch, loop=work):
        starts = scene.train("again", recipe(max_failures=1)).figures["starts"]
    assert len(starts) == 4
    assert scene.same("again")
