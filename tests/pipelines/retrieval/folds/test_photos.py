"""Real photos in folds: what so few of them are worth is said with every figure."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small_root import make_run
from without_ray import run_stages_here

from infra.base import versions
from infra.base.command import Context
from infra.base.config import load_recipe
from infra.ops.crossvalidate import crossvalidate
from pipelines.build import build
from pipelines.config import BuildRecipe
from pipelines.retrieval.folds.config import CrossvalidateRecipe

DOMAINS = ("subjects", "video")


@pytest.mark.long
def test_real_photos_are_asked_in_folds_and_said_to_be_few(
    shared_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An untrained model: what is held against the benchmark are the counts, the galleries, chance and the notes."""
    source, photos = tmp_path / "photos", shared_dir / "data" / "photos"
    for domain in DOMAINS:
        shutil.copytree(photos / domain, source / domain)
    shutil.copy(photos / "boxes_subjects_estimated.csv", source)
    shutil.copy(photos / "boxes_davis.csv", source)
    run_stages_here(monkeypatch)
    context = Context(root=str(tmp_path / "root"))
    build(load_recipe(BuildRecipe, "photos.yaml", [("source.root", str(source))]), context)
    dataset = versions.resolve(context.root, "datasets", "photos")
    make_run(context.root, dataset, "untrained", "scalar")
    outcome = crossvalidate(
        CrossvalidateRecipe(name="photos-cv", dataset="photos", model="untrained", folds=3), context
    )
    rows = [row for row in dataset.table("quadruples").to_pylist() if row["target_ids"]]
    images = dataset.table("images")["domain"].to_pylist()
    for domain, part in outcome.figures["domains"].items():
        own = [row for row in rows if row["domain"] == domain]
        assert part["queries"] == len(own)
        assert part["instances"] == len({row["instance_id"] for row in own})
        assert part["gallery"] == images.count(domain)
        few = f"{domain}: {part['instances']} instances: too few to rank models"
        assert any(few in note or "too few to rank models" in note for note in outcome.figures["notes"])
        measure = part["metrics"]["R@5"]
        assert measure["chance"] == pytest.approx(500 / (part["gallery"] - 1))
        assert measure["low"] < measure["high"]
    assert len(outcome.figures["evaluations"]) == 3
