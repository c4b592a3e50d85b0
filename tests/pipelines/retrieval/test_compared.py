"""Evaluations side by side: labels, what their runs left, and how their benchmark is found again."""

from __future__ import annotations

from pathlib import Path

import pytest

from infra.base import versions
from infra.base.command import Context
from infra.base.errors import VersionError
from pipelines.retrieval.compared import Compared, compare, dataset_of, find_parent
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate


@pytest.fixture(scope="module")
def root(context: Context) -> str:
    for name in ("adafocal", "beta0"):
        evaluate(EvaluateRecipe(name=name, model=name, dataset="benchmark", bootstrap_samples=100), context)
    return context.root


def test_labels_are_the_names_numbered_where_they_repeat(root: str) -> None:
    def labels(*references: str, given: list[str] | None = None) -> list[str]:
        return [one.label for one in compare(root, references, given)]

    assert labels("adafocal", "beta0") == ["adafocal", "beta0"]
    assert labels("adafocal", "beta0", "adafocal") == ["adafocal (1)", "beta0", "adafocal (3)"]
    assert labels("adafocal", "beta0", given=["full", "bare"]) == ["full", "bare"]


def test_a_comparison_knows_its_runs_rankings_and_betas(root: str) -> None:
    full, bare = compare(root, ["adafocal", "beta0"], None)
    assert full.run == versions.resolve(root, "runs", "adafocal")
    assert len(full.rankings) == len(bare.rankings) == 48
    rows = full.evaluation.table("rankings").to_pylist()
    assert full.betas == pytest.approx([sum(r["beta"]) / len(r["beta"]) for r in rows])
    assert bare.betas == []  # without a modulator there is no β, not a β of zero
    history = full.of_run("history")
    assert history is not None
    assert history["step"] == list(range(1, 41))
    assert full.of_run("no such table") is None
    assert Compared("x", full.evaluation, None).of_run("history") is None


def test_a_parent_is_found_by_its_content_wherever_it_lies(root: str) -> None:
    run = versions.resolve(root, "runs", "adafocal")
    content = run.manifest.content_hash
    for recorded in (run.url, f"{run.url}/export", "/moved/away"):
        assert find_parent(root, "runs", content, recorded) == run
    assert find_parent(root, "runs", "0" * 64, run.url) is None  # another one lies there now


def test_a_benchmark_that_is_gone_is_asked_for_with_its_root(root: str, tmp_path: Path) -> None:
    (full,) = compare(root, ["adafocal"], None)
    assert dataset_of(root, full) == versions.resolve(root, "datasets", "benchmark")
    stated = full.figures["dataset"]
    stated["url"] = str(tmp_path / "gone")
    assert dataset_of(root, full).manifest.name == "benchmark"  # under the root all the same
    with pytest.raises(VersionError, match=r"its benchmark benchmark .* give the --root that holds it"):
        dataset_of(str(tmp_path), full)
