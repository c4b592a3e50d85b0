"""What is tried next: lists made beforehand, or Optuna's estimator; on resume first what was begun."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ray.tune.search import Searcher

from tuning.config import SweepRecipe, Tpe, better
from tuning.records import TrialRecord
from tuning.schedulers import TIME
from tuning.space import Choice, Dimension, Int, LogUniform, Uniform, Values, token


def open_trials(
    recipe: SweepRecipe, records: Sequence[TrialRecord], *, replay: bool
) -> list[tuple[int, Values]]:
    """Number and values of the trials that are known and not ended, or (replay) of all that are known, in order.

    Args:
        recipe: of the sweep.
        records: of the trials that were begun.
        replay: whether ended trials are gone through again, for a scheduler that compares with them.
    """
    of = {record.number: record for record in records}
    known = enumerate(recipe.given) if recipe.given is not None else [(r.number, r.values) for r in records]
    return [
        (number, of[number].values if number in of else values)
        for number, values in known
        if replay or number not in of or not of[number].ended
    ]


class Proposals(Searcher):
    """Hands Ray Tune one trial after the other. Ray's own OptunaSearch begins anew after a restart and takes a failed
    trial of two objectives for a running one.

    Args:
        recipe: of the sweep.
        records: of the trials that were begun.
        waiting: `open_trials` of them.
    """

    def __init__(
        self, recipe: SweepRecipe, records: Sequence[TrialRecord], waiting: Sequence[tuple[int, Values]]
    ) -> None:
        super().__init__()
        self.recipe, self.waiting, self.next = recipe, list(waiting), len(records)
        self.ended = {record.number for record in records if record.ended}
        self.study: Estimator | None = None
        if isinstance(recipe.algorithm, Tpe):
            self.study = Estimator(recipe, recipe.algorithm, records)
        self.of_trial: dict[str, int] = {}
        self.trained: dict[str, str] = {}
        """Values of the trials under way, by Tune's id."""

    @property
    def left(self) -> int:
        """Trials that it will hand out."""
        return len(self.waiting) + (self.recipe.trials - self.next if self.study is not None else 0)

    def suggest(self, trial_id: str) -> Any:
        """The configuration of the next trial; that there is none; or None while there is none yet.

        Trials with the same values are the same run, which one process at a time may train: the second waits until
        the first has ended, and finds it.
        """
        if self.study is not None and not self.waiting and self.next < self.recipe.trials:
            self.waiting.append((self.next, self.study.ask(self.next)))
            self.next += 1
        if not self.waiting:
            return Searcher.FINISHED
        busy = set(self.trained.values())
        free = [i for i, (_, values) in enumerate(self.waiting) if token(values) not in busy]
        if not free:
            return None
        number, values = self.waiting.pop(free[0])
        if self.study is not None and number not in self.ended:
            self.study.again(number, values)
        self.of_trial[trial_id], self.trained[trial_id] = number, token(values)
        return {"trial": {"number": number, "values": values}}

    def on_trial_complete(
        self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False
    ) -> None:
        """Let the estimator learn from it."""
        self.trained.pop(trial_id, None)
        if self.study is None or trial_id not in self.of_trial:
            return
        number, figures = self.of_trial[trial_id], result or {}
        state, first = figures.get("state"), figures.get(self.recipe.objectives[0])
        if not error and state == "finished":
            self.study.tell(number, [figures[name] for name in self.recipe.objectives])
        elif not error and state is None and first is not None:
            self.study.stop(number, int(figures.get(TIME, 1)), float(first))
        else:
            self.study.tell(number, None)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's records are its state."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the sweep's records are its state."""


class Estimator:
    """Optuna's estimator over the space. Choices are passed as texts, so that they may be of any type.

    A trial that the scheduler stopped counts as pruned at its last measurement, which is no value of a whole training
    but says more than nothing; with two objectives, of which only one is known by then, and a failed one as failed.
    """

    def __init__(self, recipe: SweepRecipe, algorithm: Tpe, records: Sequence[TrialRecord]) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self.space = recipe.space
        self.distributions = {name: _distribution(d) for name, d in recipe.space.items()}
        # what was begun is known by its records: the same seed would draw the first trials again
        sampler = optuna.samplers.TPESampler(
            seed=algorithm.seed * 100_003 + len(records),
            n_startup_trials=algorithm.startup,
            constant_liar=len(recipe.objectives) == 1,
        )
        directions = ["maximize" if better(name) > 0 else "minimize" for name in recipe.objectives]
        self.study = optuna.create_study(sampler=sampler, directions=directions)
        self.asked: dict[int, Any] = {}
        for record in records:
            if record.ended:
                self.study.add_trial(
                    optuna.trial.create_trial(
                        **self._known(record, recipe.objectives),
                        params=self._params(record.values),
                        distributions=self.distributions,
                    )
                )

    def _known(self, record: TrialRecord, objectives: Sequence[str]) -> dict[str, Any]:
        from optuna.trial import TrialState

        if record.state == "finished":
            return {"state": TrialState.COMPLETE, "values": [record.figures[name] for name in objectives]}
        if record.state == "stopped" and len(objectives) == 1 and record.readings:
            last = {len(record.readings): record.readings[-1].figures[objectives[0]]}
            return {"state": TrialState.PRUNED, "intermediate_values": last}
        return {"state": TrialState.FAIL}

    def ask(self, number: int) -> Values:
        """The values of a new trial."""
        trial = self.asked[number] = self.study.ask(self.distributions)
        return {
            name: d.values[int(trial.params[name].partition(":")[0])]
            if isinstance(d, Choice)
            else trial.params[name]
            for name, d in self.space.items()
        }

    def again(self, number: int, values: Values) -> None:
        """A trial that was begun before goes on with the values it had; one that was just asked for needs nothing."""
        if number in self.asked:
            return
        self.study.enqueue_trial(self._params(values))
        self.asked[number] = self.study.ask(self.distributions)

    def tell(self, number: int, values: list[float] | None) -> None:
        """How a trial ended; None without a value."""
        import optuna

        trial = self.asked.pop(number, None)
        if trial is not None:
            state = None if values is not None else optuna.trial.TrialState.FAIL
            self.study.tell(trial, values, state=state)

    def stop(self, number: int, measurements: int, value: float) -> None:
        """The scheduler stopped a trial after so many measurements, the last of the first objective being this."""
        import optuna

        trial = self.asked.pop(number, None)
        if trial is None:
            return
        if len(self.study.directions) > 1:
            self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
            return
        trial.report(value, measurements)
        self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)

    def _params(self, values: Values) -> dict[str, Any]:
        return {
            name: _texts(d)[[token({"": v}) for v in d.values].index(token({"": values[name]}))]
            if isinstance(d, Choice)
            else values[name]
            for name, d in self.space.items()
        }


def _texts(dimension: Choice) -> list[str]:
    return [f"{i}:{value}" for i, value in enumerate(dimension.values)]


def _distribution(dimension: Dimension) -> Any:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, (Uniform, LogUniform)):
        return FloatDistribution(dimension.low, dimension.high, log=isinstance(dimension, LogUniform))
    if isinstance(dimension, Int):
        return IntDistribution(dimension.low, dimension.high, step=dimension.step)
    assert isinstance(dimension, Choice)
    return CategoricalDistribution(_texts(dimension))
