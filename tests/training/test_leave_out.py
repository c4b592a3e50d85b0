"""Leave-one-domain-out: nothing of a domain is trained on or chosen by."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_benchmark import write_benchmark

from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version, open_version
from pipelines.embed import embed
from training.config import TrainRecipe
from training.data import read_quadruples
from training.trainer import train

SMALL = {
    "qformer.hidden_size": 32, "qformer.num_hidden_layers": 2, "qformer.intermediate_size": 64,
    "num_query_tokens": 4, "num_probe_tokens": 2, "crm_feedforward": 32,
}  # fmt: skip


def small_recipe(**training: object) -> TrainRecipe:
    tree = {"model": {"overrides": SMALL, "crm_layers": 1}, "embed": {"images_per_shard": 32, "workers": 1}}
    return TrainRecipe.model_validate(
        {"name": "small", "dataset": "small", **tree, "training": {"epochs": 1, "batch_size": 24, **training}}
    )


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Version:
    """Two domains, a and b."""
    return write_benchmark(tmp_path_factory.mktemp("leave-out"), identities=12)


def test_a_left_out_domain_has_no_quadruple_in_any_split(dataset: Version) -> None:
    for split in ("train", "dev"):
        everything = read_quadruples(dataset, split)
        rest = read_quadruples(dataset, split, ["a"])
        assert {q["query_id"] for q in rest.to_pylist()} == {
            q["query_id"] for q in everything.to_pylist() if q["domain"] == "b"
        }
        assert 0 < len(rest) < len(everything)
    assert len(read_quadruples(dataset, "train", ["a", "b"])) == 0


def test_a_domain_that_is_not_there_cannot_be_left_out(dataset: Version) -> None:
    with pytest.raises(OacirError, match="leave_out_domains names car; its domains are a, b"):
        read_quadruples(dataset, "train", ["car", "a"])


@pytest.mark.slow
@pytest.mark.ray
def test_training_without_a_domain_reads_the_features_of_all(dataset: Version, ray_session: None) -> None:
    root = str(Path(dataset.url).parents[2])
    embed(small_recipe(), Context(root=root))
    outcome = train(small_recipe(leave_out_domains=["a"], steps=1), Context(root=root))
    assert outcome.location is not None
    run = open_version(outcome.location)
    assert run.manifest.figures["quadruples"] == len(read_quadruples(dataset, "train", ["a"]))
    assert set(run.table("dev")["domain"].to_pylist()) == {"b"}
    plan = train(small_recipe(steps=1), Context(root=root, dry_run=True))
    assert plan.figures["key"] != run.manifest.key
    with pytest.raises(OacirError, match="0 training quadruples"):
        train(small_recipe(leave_out_domains=["a", "b"]), Context(root=root))
