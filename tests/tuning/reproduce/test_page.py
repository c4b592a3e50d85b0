"""The report: ours beside the paper's, verdicts, what is missing."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from ranked import ranked
from small_benchmark import write_benchmark

from infra.base.config import load_recipe
from tuning.reproduce.config import ReproduceRecipe
from tuning.reproduce.figures import Results
from tuning.reproduce.kept import TrialKept
from tuning.reproduce.measure import REFERENCE_ONLY, TEXT_ONLY, box_variant
from tuning.reproduce.orderings import ON_THE_BEST, verdicts
from tuning.reproduce.page import ADAPTS, Reported, page
from tuning.reproduce.rows import BARE, CROP, FULL, Trial, matrix


def reported(tmp_path: Path, crop: float = 30) -> Reported:
    recipe = load_recipe(ReproduceRecipe, "reproduce.yaml", [("seeds", "2")])
    rows = [row for row in matrix(recipe.betas, everything=False) if row.name in (FULL, CROP, BARE)]
    variants = {box_variant(0.8): 39.5, box_variant(0.5): 35, TEXT_ONLY: 4, REFERENCE_ONLY: 5}
    tables, kept = {}, {}
    for seed in range(2):
        for row, share in zip(rows, (40, crop, 20), strict=True):
            parts = [ranked(share, seed=seed, beta=4.0 if row.name == FULL else None)]
            parts += [ranked(s, variant=name) for name, s in variants.items() if row.name == FULL]
            trial = Trial(row, seed)
            tables[trial] = pa.concat_tables(parts)
            kept[trial] = TrialKept(name=trial.name, key="k", run="/r", run_hash="h", train_s=60, measure_s=5)
    results = Results(rows, tables, 2, ("a", "b"))
    dataset = write_benchmark(tmp_path, identities=12)
    return Reported.of(recipe, dataset, results, kept, ["sprc-s0"], {"sprc-s0": "the loss is nan"})


def test_every_row_stands_beside_the_published_one_and_what_is_missing_is_said(tmp_path: Path) -> None:
    text = page(reported(tmp_path))
    assert "| AdaFocal | 2 | 40.0 ± 0.0 | 40.0 ± 0.0 | 40.0 ± 0.0 | 40.0 ± 0.0 | 79.00 |" in text
    assert "| AdaFocal, box IoU 0.5 | 2 | 35.0 ± 0.0 " in text
    assert "**published, not ours**" in text
    assert "**Not whole.** 1 trainings are not there: sprc-s0." in text
    assert "- sprc-s0 failed: the loss is nan" in text
    assert "| chance | |" in text
    assert "6 trainings of 60 s in the mean" in text


def test_the_verdicts_follow_the_figures(tmp_path: Path) -> None:
    whole = reported(tmp_path)
    ordering = ("S", "AdaFocal > ROI crop > β = 0")
    assert whole.verdicts[ordering]
    assert whole.verdicts["S", ADAPTS]
    assert not reported(tmp_path, crop=45).verdicts[ordering]
    assert "[S] pass  AdaFocal > ROI crop > β = 0" in list(whole.lines())
    assert whole.told()[ordering] == "pass"
    assert reported(tmp_path, crop=45).told()[ordering] == "FAIL"
    found = json.loads(json.dumps(whole.figures()))
    assert found["missing"] == ["sprc-s0"]
    assert {row["label"] for row in found["rows"]} >= {"AdaFocal", "ROI crop", "β = 0"}
    [one] = [c for c in found["comparisons"] if c["second"] == ["roi_crop", "own"] and c["metric"] == "Avg"]
    assert one["value"] == pytest.approx(10)


def test_an_ordering_that_lacks_a_comparison_is_open(tmp_path: Path) -> None:
    whole = reported(tmp_path)
    rows = matrix((1, 2, 4), everything=False)
    own, bare = (Trial(row, 0) for row in rows if row.name in (FULL, BARE))
    few = Results(rows, {own: ranked(40), bare: ranked(20)}, 1, ("a", "b"))
    told = replace(whole, results=few, judged=few.judged(), verdicts=verdicts(few.judged())).told()
    assert told["S", "AdaFocal > ROI crop > β = 0"] == "open"
    assert told["S", "SPRC† > SPRC"] == "open"
    assert {told["S", name] for name in ON_THE_BEST} == {"open"}
    assert "pass" not in told.values()
    assert "[S] open  SPRC† > SPRC" in list(replace(whole, results=few, verdicts={}).lines())
