"""What is tried next, and after an interruption."""

from __future__ import annotations

from typing import Any

import pytest
from small_sweep import ended, sweep

from tuning.records import TrialRecord
from tuning.search import Proposals, Searcher, open_trials

SPACE = {
    "model.fixed_beta": {"kind": "uniform", "low": 0, "high": 10},
    "training.schedule": {"kind": "choice", "values": ["cosine", "linear"]},
    "training.betas": {"kind": "choice", "values": [[0.9, 0.98], [0.9, 0.999]]},
    "training.batch_size": {"kind": "int", "low": 8, "high": 24, "step": 8},
    "training.learning_rate": {"kind": "loguniform", "low": 1e-4, "high": 1e-2},
}
GRID = {"model.fixed_beta": {"kind": "grid", "values": [0, 1, 2, 3]}}
TPE = {"kind": "tpe", "trials": 30, "startup": 5}


def proposals(recipe: Any, records: list[TrialRecord]) -> Proposals:
    return Proposals(recipe, records, open_trials(recipe, records, replay=False))


def score(values: dict[str, Any]) -> float:
    return -((values["model.fixed_beta"] - 7) ** 2) - 5 * (values.get("training.schedule") == "linear")


def go_on(search: Proposals, count: int) -> list[tuple[int, dict[str, Any]]]:
    """Trials one after the other, each with its score."""
    found = []
    for turn in range(count):
        given = search.suggest(f"t{turn}")
        if given == Searcher.FINISHED:
            break
        trial = given["trial"]
        found.append((trial["number"], trial["values"]))
        search.on_trial_complete(f"t{turn}", {"state": "finished", "avg": score(trial["values"])})
    return found


def test_a_list_is_handed_out_once_and_in_order() -> None:
    recipe = sweep(GRID, algorithm={"kind": "grid"})
    search = proposals(recipe, [])
    assert search.left == 4
    assert [(n, v["model.fixed_beta"]) for n, v in go_on(search, 9)] == [(0, 0), (1, 1), (2, 2), (3, 3)]


FEW = {"training.seed": {"kind": "choice", "values": [0, 1]}}


def test_equal_values_are_one_run_so_the_second_waits_for_the_first() -> None:
    recipe = sweep(FEW, algorithm={"kind": "random", "trials": 5, "seed": 4})
    assert [v["training.seed"] for v in recipe.given] == [1, 0, 0, 0, 0]
    search = proposals(recipe, [])
    assert [search.suggest(name)["trial"]["number"] for name in "ab"] == [0, 1]
    assert search.suggest("c") is None
    search.on_trial_complete("a", {"state": "finished", "avg": 1.0})
    assert search.suggest("c") is None
    search.on_trial_complete("b", error=True)
    assert search.suggest("c")["trial"]["number"] == 2
    assert search.suggest("d") is None
    assert search.left == 2


def test_the_estimator_waits_with_equal_values_too() -> None:
    search = proposals(sweep(FEW, algorithm=TPE | {"trials": 6}), [])
    under_way: dict[str, dict[str, Any]] = {}
    numbers = []
    for turn in range(30):
        name = f"t{turn}"
        given = search.suggest(name)
        if given == Searcher.FINISHED:
            break
        if given is None:
            search.on_trial_complete(next(iter(under_way)), {"state": "finished", "avg": float(turn)})
            del under_way[next(iter(under_way))]
            continue
        under_way[name] = given["trial"]["values"]
        numbers.append(given["trial"]["number"])
        seeds = [values["training.seed"] for values in under_way.values()]
        assert len(seeds) == len(set(seeds)) <= 2
    assert sorted(numbers) == [0, 1, 2, 3, 4, 5]
    assert len(search.study.study.trials) == 6


def test_after_an_interruption_only_what_has_not_ended_is_tried() -> None:
    recipe = sweep(GRID, algorithm={"kind": "grid"})
    known = [ended(0, recipe.given[0], avg=1.0), TrialRecord(number=1, values=recipe.given[1])]
    known.append(ended(2, recipe.given[2], "failed"))
    assert [n for n, _ in go_on(proposals(recipe, known), 9)] == [1, 3]
    replayed = open_trials(recipe, known, replay=True)
    assert [n for n, _ in replayed] == [0, 1, 2, 3]


def test_the_estimator_learns_and_keeps_types() -> None:
    tried = go_on(proposals(sweep(SPACE, algorithm=TPE), []), 30)
    assert [n for n, _ in tried] == list(range(30))
    for _, values in tried:
        assert values["training.batch_size"] in (8, 16, 24)
        assert list(values["training.betas"]) in ([0.9, 0.98], [0.9, 0.999])
        assert 1e-4 <= values["training.learning_rate"] <= 1e-2
    early, late = ([score(v) for _, v in part] for part in (tried[:5], tried[-10:]))
    assert sorted(late)[5] > sorted(early)[2]
    again = go_on(proposals(sweep(SPACE, algorithm=TPE), []), 30)
    assert again == tried


def test_the_estimator_goes_on_where_it_was() -> None:
    recipe = sweep(SPACE, algorithm=TPE)
    tried = go_on(proposals(recipe, []), 12)
    known = [ended(n, v, avg=score(v)) for n, v in tried[:10]]
    known.append(ended(10, tried[10][1], "failed"))
    known.append(TrialRecord(number=11, values=tried[11][1]))
    search = proposals(recipe, known)
    assert search.left == 19
    rest = go_on(search, 99)
    assert rest[0] == tried[11]
    assert [n for n, _ in rest] == list(range(11, 30))
    # no draw is repeated, and what was known counts: the random start is over
    assert len({str(v) for _, v in [*tried[:11], *rest]}) == 30
    assert sorted(score(v) for _, v in rest[-10:])[5] > sorted(score(v) for _, v in tried[:5])[2]


def test_two_objectives_one_of_them_less_is_better() -> None:
    recipe = sweep(SPACE, algorithm=TPE | {"trials": 8}, objectives=["avg", "query_ms"])
    search = proposals(recipe, [])
    for turn in range(8):
        values = search.suggest(f"t{turn}")["trial"]["values"]
        result = {"state": "finished", "avg": score(values), "query_ms": values["training.batch_size"]}
        if turn == 3:
            result = {"state": "failed", "avg": float("nan"), "query_ms": float("nan")}
        search.on_trial_complete(f"t{turn}", result)
    study = search.study.study
    assert [d.name for d in study.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert [t.state.name for t in study.trials] == ["COMPLETE"] * 3 + ["FAIL"] + ["COMPLETE"] * 4
    assert search.suggest("t9") == Searcher.FINISHED


def test_a_lost_process_counts_as_failed() -> None:
    search = proposals(sweep(SPACE, algorithm=TPE | {"trials": 2}), [])
    search.suggest("t0")
    search.on_trial_complete("t0", None, error=True)
    assert [t.state.name for t in search.study.study.trials] == ["FAIL"]


@pytest.mark.parametrize("trials", [3, 5])
def test_more_random_trials_begin_with_the_same_ones(trials: int) -> None:
    recipe = sweep(SPACE, algorithm={"kind": "random", "trials": trials, "seed": 4})
    longest = sweep(SPACE, algorithm={"kind": "random", "trials": 5, "seed": 4})
    assert recipe.given == longest.given[:trials]


def test_a_trial_that_was_stopped_tells_the_estimator_its_last_measurement() -> None:
    """Beside a scheduler that stops most trials it would choose at random to the end."""
    recipe = sweep(SPACE, algorithm=TPE, scheduler={"kind": "asha"})
    search = proposals(recipe, [])
    for turn in range(6):
        values = search.suggest(f"t{turn}")["trial"]["values"]
        # as Ray Tune tells it: the last result, by the scheduler's decision
        search.on_trial_complete(f"t{turn}", {"avg": float(turn), "training_iteration": 2, "values": values})
    search.suggest("broken")
    search.on_trial_complete("broken", {"state": "failed", "avg": float("nan")})
    trials = search.study.study.trials
    assert [t.state.name for t in trials] == ["PRUNED"] * 6 + ["FAIL"]
    assert [t.intermediate_values for t in trials[:6]] == [{2: float(n)} for n in range(6)]

    tried = go_on(proposals(sweep(SPACE, algorithm=TPE), []), 2)
    records = [ended(0, tried[0][1], "stopped", avg=4.0), ended(1, tried[1][1], "failed")]
    again = proposals(recipe, records).study.study.trials
    assert [t.state.name for t in again] == ["PRUNED", "FAIL"]
    assert again[0].intermediate_values == {2: 4.0}
    # for the scheduler they are gone through once more, for the estimator they are known
    replayed = Proposals(recipe, records, open_trials(recipe, records, replay=True))
    assert [n for n, _ in go_on(replayed, 3)] == [0, 1, 2]
    assert [t.state.name for t in replayed.study.study.trials] == ["PRUNED", "FAIL", "COMPLETE"]
    pair = sweep(SPACE, algorithm=TPE, scheduler={"kind": "asha"}, objectives=["avg", "query_ms"])
    two = proposals(pair, records)
    two.suggest("t")
    two.on_trial_complete("t", {"avg": 1.0, "training_iteration": 2})
    assert [t.state.name for t in two.study.study.trials] == ["FAIL", "FAIL", "FAIL"]
