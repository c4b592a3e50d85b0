"""A training takes the machines there are: one, two, one again, with the batches and losses of two all along."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

pytestmark = [pytest.mark.long, pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]
STEPS, GROWS_AT, SHRINKS_BEHIND = 160, 12, 8
TOLERANCE = 1e-3
"""Relative, of losses in float32 over all those steps of another order of sums."""
NO_DROPOUT = "{qformer.hidden_dropout_prob: 0.0, qformer.attention_probs_dropout_prob: 0.0, crm_dropout: 0.0}"


def test_workers_come_and_go_with_the_machines(tmp_path: Path) -> None:
    from drill_train import Training, history
    from drilling import ROOT, environment
    from small_benchmark import write_benchmark
    from training_elsewhere import nodes

    from infra.base.versions import open_version

    write_benchmark(tmp_path, identities=24)
    embedded = ["embed", "--config", "tiny", "--dataset", "small", "--root", str(tmp_path)]
    subprocess.run(
        [sys.executable, "-m", "infra.cli", *embedded, "--model.overrides", NO_DROPOUT],
        check=True, cwd=ROOT, env=environment(), capture_output=True,
    )  # fmt: skip
    options = [
        "--training.steps",
        str(STEPS),
        "--training.epochs",
        str(STEPS),
        "--training.dev_every_epochs",
        "20",
        # at the recipe's rate it knows its few queries by heart after fifty steps, and rounding decides over the rest
        "--training.learning_rate",
        "1e-4",
        "--training.caam_learning_rate",
        "1e-5",
        "--model.overrides",
        NO_DROPOUT,
    ]
    Training(tmp_path, tmp_path / "whole", options).finish()
    elastic = [*options, "--scaling.min_workers", "1", "--scaling.look_every_s", "1"]
    with nodes(1) as there:
        run = Training(tmp_path, tmp_path / "elastic", elastic, RAY_ADDRESS=there.cluster.address)
        run.until(GROWS_AT)
        there.nodes.append(there.add())
        while len(there.at_work()) < 2 and run.process.poll() is None:
            run.poll()
            time.sleep(0.1)
        assert len(there.at_work()) == 2, run.said[-2000:]
        run.until(run.step + SHRINKS_BEHIND)
        there.cluster.remove_node(there.nodes.pop(), allow_graceful=False)
        run.finish()
    starts = open_version(str(tmp_path / "elastic")).manifest.figures["starts"]
    assert [start["workers"] for start in starts] == [1, 2, 1]
    assert 0 == starts[0]["step"] < GROWS_AT <= starts[1]["step"] < starts[2]["step"] < STEPS
    found, whole = history(tmp_path / "elastic"), history(tmp_path / "whole")
    assert found["step"] == list(range(1, STEPS + 1))
    assert found["loss"] == pytest.approx(whole["loss"], rel=TOLERANCE)
