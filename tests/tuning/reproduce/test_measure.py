"""What is kept of a model against what `oacir evaluate` finds of it."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from small_root import make_root

from infra.base.command import Context
from infra.base.versions import open_version, resolve
from pipelines.retrieval.config import EvaluateRecipe
from pipelines.retrieval.evaluate import evaluate
from tuning.reproduce.figures import Results
from tuning.reproduce.measure import OWN, REFERENCE_ONLY, TEXT_ONLY, box_variant, measured
from tuning.reproduce.orderings import Side
from tuning.reproduce.page import chance
from tuning.reproduce.rows import FULL, Row, Trial


@pytest.fixture(scope="module")
def context(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_root(tmp_path_factory.mktemp("root"))


def ranks(context: Context, run: str, domains: list[str] | None = None) -> pa.Table:
    dataset = resolve(context.root, "datasets", "benchmark")
    ious, blind = ((0.8, 0.3), 4) if run == "adafocal" else ((), 0)
    return measured(resolve(context.root, "runs", run), context.root, dataset, domains, ious, blind)


def of(table: pa.Table, variant: str) -> pa.Table:
    return table.filter(pc.equal(table["variant"], variant)).sort_by("query_id")


def test_ranks_betas_and_blind_baselines_are_those_of_evaluate(context: Context) -> None:
    found = ranks(context, "adafocal")
    outcome = evaluate(EvaluateRecipe(name="a", model="adafocal", dataset="benchmark"), context)
    theirs = open_version(str(outcome.location)).table("rankings").sort_by("query_id")
    own = of(found, OWN)
    for column in ("query_id", "target_rank", "instance_rank"):
        assert own[column].to_pylist() == theirs[column].to_pylist()
    assert own["beta"].to_pylist() == pytest.approx([beta[0] for beta in theirs["beta"].to_pylist()])
    results = Results(
        [Row(FULL, "AdaFocal")], {Trial(Row(FULL, "AdaFocal"), 0): found}, 1, ("car", "product")
    )
    overall = outcome.figures["overall"]["metrics"]
    for metric in ("R_ID@1", "R@1", "R@5", "Avg"):
        assert results.mean(Side(FULL), metric) == pytest.approx(overall[metric]["value"])
        for variant, name in ((TEXT_ONLY, "text_only"), (REFERENCE_ONLY, "reference_only")):
            assert results.mean(Side(FULL, variant), metric) == pytest.approx(overall[metric][name])
    told = chance(resolve(context.root, "datasets", "benchmark"))
    assert told == pytest.approx({m: overall[m]["chance"] for m in told})


def test_another_box_asks_another_question(context: Context) -> None:
    found = ranks(context, "adafocal")
    own, near, far = (of(found, variant) for variant in (OWN, box_variant(0.8), box_variant(0.3)))
    assert own["query_id"].to_pylist() == near["query_id"].to_pylist() == far["query_id"].to_pylist()
    assert (np.array(far["target_rank"]) != np.array(own["target_rank"])).mean() > 0.1
    ratio = np.array(near["box_share"]) / np.array(own["box_share"])
    # about one centre and wholly in one another, but where the picture ends
    assert {round(float(r), 2) for r in ratio} & {0.8, 1.25} == {0.8, 1.25}


def test_one_domain_alone_and_a_model_without_beta(context: Context) -> None:
    found = ranks(context, "beta0", ["product"])
    assert set(found["domain"].to_pylist()) == {"product"}
    assert set(found["variant"].to_pylist()) == {OWN}
    assert found["beta"].null_count == len(found)
