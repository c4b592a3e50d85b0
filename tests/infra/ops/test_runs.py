"""Runs of a few rows, written by the functions that training writes with."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import torch
from small_versions import rows_of, write_version

from infra import cli
from infra.base import storage, versions
from infra.base.command import Context
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.ops import runs
from infra.ops.runs import GcRecipe, ListRecipe, ShowRecipe
from training.checkpoints import CheckpointWriter


class Made(Config):
    name: str = "a"


def run_version(
    root: str, name: str, key: str, dev: float | None, year: int = 2020, **parents: str
) -> versions.Version:
    """A finished run; `dev` is what it reached."""
    draft = versions.start("runs", name, key, Made(), root=root)
    table = pa.table(
        {
            "step": [5, 10],
            "epoch": [0, 0],
            "domain": ["toys"] * 2,
            "queries": [7] * 2,
            "R@1": [1.0, dev or 0.0],
        }
    )
    storage.write_table(draft.path("dev.parquet"), table)
    figures = {"steps": 10, "loss": 0.5, "tower": "stored", "dev": {} if dev is None else {"R@1": dev}}
    version = draft.commit(
        content_hash=f"{name}-{key}-content",
        files=[versions.file_entry(draft.url, "dev.parquet", 2)],
        parents=parents,
        figures=figures,
        seconds={"train": 75.0},
    )
    _date(version.url, year)
    return version


def _date(url: str, year: int) -> None:
    place = Path(url) / "manifest.json"
    place.write_text(
        json.dumps(json.loads(place.read_text()) | {"created_at": f"{year}-01-02T00:00:00+00:00"})
    )


def evaluation(root: str, name: str, model: str) -> None:
    draft = versions.start("evaluations", name, "k", Made(), root=root)
    draft.commit(content_hash=f"scores of {name}", files=[], parents={"model": model})


@pytest.fixture
def root(tmp_path: Path) -> str:
    """Five finished runs of two names, made from one benchmark, and one that was begun."""
    place = str(tmp_path)
    dataset = write_version(tmp_path, rows_of({"toys/a": "train", "toys/b": "test"})).manifest.content_hash
    for key, dev, year in (("k1", 30.0, 2020), ("k2", 50.0, 2021), ("k3", 40.0, 2022), ("k4", None, 2023)):
        run_version(place, "a", key, dev, year, dataset=dataset)
    run_version(place, "b", "k1", 60.0, 2020, dataset="elsewhere-not-here")
    draft = versions.start("runs", "a", "begun", Made(), root=place)
    draft.uses({"dataset": dataset})
    for step in (3, 6):
        for rank in (0, 1):
            keeper = CheckpointWriter(draft.url, rank, 2, kept=2)
            keeper.save(step, {"weight": torch.zeros(2)})
            keeper.close()
    return place


def _keys(outcome: Any) -> list[str]:
    return [row["key"] for row in outcome.figures["runs"]]


def test_list_says_how_far_each_is_and_what_it_reached(root: str) -> None:
    outcome = runs.list_runs(ListRecipe(), Context(root=root))
    assert outcome.message == f"6 runs, 1 of them unfinished: {root}"
    assert _keys(outcome) == ["begun", "k4", "k3", "k2", "k1", "k1"]
    lines = [line.split() for line in outcome.details]
    assert lines[1][:3] == ["a/begun", "unfinished", "6"]
    assert lines[3][:5] == ["a/k3", "finished", "10", "40.0", "0.500"]
    assert lines[3][-1] == "small/0000000000000000"
    assert outcome.details[-1].endswith("(not under this root)")
    best = runs.list_runs(ListRecipe(name="a", sort="dev"), Context(root=root))
    assert _keys(best)[:3] == ["k2", "k3", "k1"]


def test_show_names_what_it_was_made_from_and_what_was_made_of_it(root: str) -> None:
    evaluation(root, "scores", "a-k2-content")
    outcome = runs.show(ShowRecipe(run="a/k2", steps=1), Context(root=root))
    text = "\n".join(outcome.details)
    assert outcome.figures["evaluations"] == ["scores/k"]
    for says in (
        "parent dataset  small/0000000000000000",
        "evaluation      scores/k",
        "1:15 min",
        "tower           stored",
    ):
        assert says in text
    assert outcome.details[-1].split() == ["10", "toys", "7", "50.0"]


def test_show_tells_of_an_unfinished_run_how_to_go_on(root: str) -> None:
    outcome = runs.show(ShowRecipe(run="a"), Context(root=root))  # the newest of its name
    assert outcome.figures["key"] == "begun"
    assert ["checkpoint", "step", "6"] in [line.split() for line in outcome.details]
    with pytest.raises(OacirError, match=r"run c: there is none under .*; names there: a, b"):
        runs.show(ShowRecipe(run="c"), Context(root=root))


def _gone(root: str, **fields: Any) -> set[str]:
    outcome = runs.gc(GcRecipe(**fields), Context(root=root))
    return {f"{one['what']} {one['url'].removeprefix(root + '/runs/')}" for one in outcome.figures["found"]}


def test_gc_keeps_the_newest_the_best_and_what_is_evaluated(root: str) -> None:
    assert _gone(root) == {"run a/k1", "run a/k3"}
    assert _gone(root, keep_best=0) == {"run a/k1", "run a/k2", "run a/k3"}
    assert _gone(root, keep_best=2) == {"run a/k1"}
    assert _gone(root, older_than_days=36500) == set()
    evaluation(root, "scores", "a-k1-content")
    assert _gone(root) == {"run a/k3"}


@pytest.mark.parametrize("finished", [True, False])
def test_gc_keeps_the_trials_of_a_sweep(root: str, finished: bool) -> None:
    from tuning.records import TrialRecord, write

    draft = versions.start("sweeps", "s", "k", Made(), root=root)
    record = TrialRecord(number=0, values={}, run=f"{root}/runs/a/k1")
    if finished:
        text = json.dumps(record.model_dump(mode="json"))
        storage.write_table(draft.path("trials.parquet"), pa.table({"record": [text]}))
        draft.commit(content_hash="s", files=[versions.file_entry(draft.url, "trials.parquet", 1)])
    else:
        write(draft.url, record)
    assert _gone(root) == {"run a/k3"}


def test_gc_deletes_only_with_yes_and_takes_what_a_kill_left(
    root: str, capsys: pytest.CaptureFixture[str]
) -> None:
    left = Path(root) / "runs" / "b" / "k1" / "checkpoints" / "step-00000010"
    left.mkdir(parents=True)
    (left / "rank-0-of-1.safetensors").write_bytes(b"12345")
    assert "checkpoints b/k1/checkpoints" in _gone(root)
    assert cli.main(["runs", "gc", "--root", root]) == 0
    assert "would delete 2 runs and the checkpoints of 1" in capsys.readouterr().out
    assert cli.main(["runs", "gc", "--root", root, "--yes", "--dry-run"]) == 0
    assert left.exists()
    assert cli.main(["runs", "gc", "--root", root, "--yes"]) == 0
    assert not left.exists()
    assert _keys(runs.list_runs(ListRecipe(), Context(root=root))) == ["begun", "k4", "k2", "k1"]
    assert _gone(root) == set()
