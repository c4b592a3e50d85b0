"""A worker's part of a step: the images that the sampler names, in order, whoever reads and whatever came before."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_benchmark import write_benchmark
from small_plan import SEED, plan_of

from infra.base.versions import Version
from training.model.views import see
from training.reader import Plan, Reader

CUT = {"mode": "frozen", "crop": 0.3, "flip": True}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Version:
    return write_benchmark(tmp_path_factory.mktemp("reader"), identities=6, masked=("red", "blue"))


def expected_images(plan: Plan, step: int, rank: int, world_size: int) -> tuple[list[int], list[int]]:
    """Query and target rows, written down from the sampler alone."""
    batches = plan.sampler.batches(step // plan.sampler.steps_per_epoch)
    rows = np.array_split(batches[step % plan.sampler.steps_per_epoch], world_size)[rank].tolist()
    return rows, sorted({int(plan.queries.target_rows[row]) for row in rows})


@pytest.mark.parametrize("step", [0, 3, 9])
def test_without_changes_a_step_is_what_a_store_would_have_shown(dataset: Version, step: int) -> None:
    plan = plan_of(dataset, {"mode": "frozen"})
    found = Reader(plan, 1, 2).read(step)
    queries, targets = expected_images(plan, step, 1, 2)
    shown = [int(plan.queries.reference_rows[q]) for q in queries] + targets
    pixels = plan.processor.squares([plan.images.image(row) for row in shown])
    assert np.array_equal(found["pixels"], pixels.numpy())
    assert np.array_equal(found["patch_mask"][: len(queries)], plan.queries.patch_masks[queries])
    assert not found["patch_mask"][len(queries) :].any()
    assert (set(found["step"]), set(found["error"])) == ({step}, {""})


@pytest.mark.parametrize("view", ["crop", "drawn"])
def test_views_are_seen_as_embed_sees_them(dataset: Version, view: str) -> None:
    plan = plan_of(dataset, {"mode": "frozen"}, reference_view=view, modulation="none")
    found, (queries, _) = Reader(plan, 0, 1).read(0), expected_images(plan, 0, 0, 1)
    for place, query in enumerate(queries):
        anchor = plan.anchors[query]
        row = int(plan.images.rows([anchor.reference_id])[0])
        assert anchor.box is not None
        box = (int(anchor.box[0]), int(anchor.box[1]), int(anchor.box[2]), int(anchor.box[3]))
        image = see(plan.images.image(row), box, view)  # type: ignore[arg-type]
        assert np.array_equal(found["pixels"][place], plan.processor.squares([image])[0].numpy())
    assert bool(found["patch_mask"].any()) == (view == "drawn")


def test_draws_depend_on_step_and_image_alone(dataset: Version) -> None:
    plan = plan_of(dataset, CUT)
    reader = Reader(plan, 0, 1)
    second = reader.read(1)
    again = Reader(plan, 0, 1).read(1)  # as a new reader would after a kill
    for name in second:
        assert np.array_equal(second[name], again[name])
    parts = [Reader(plan, rank, 2).read(1) for rank in (0, 1)]
    counts = [len(expected_images(plan, 1, rank, 2)[0]) for rank in (0, 1)]
    joined = np.concatenate([p["pixels"][:n] for p, n in zip(parts, counts, strict=True)])
    assert np.array_equal(joined, second["pixels"][: sum(counts)])  # other workers, the same draws
    count = len(plan.queries)
    one_step = Reader(replace(plan, sampler=replace(plan.sampler, batch_size=count)), 0, 1)
    epochs = [one_step.read(step)["pixels"][count:] for step in (0, 1)]  # the same targets, by their rows
    assert not any(np.array_equal(one, other) for one, other in zip(*epochs, strict=True))
    other = Reader(replace(plan, seed=SEED + 1), 0, 1).read(1)
    assert not np.array_equal(other["pixels"], second["pixels"])


@pytest.mark.parametrize("region", ["box", "mask"])
def test_random_cuts_show_the_object_larger_and_mark_it_there(dataset: Version, region: str) -> None:
    """Squares around the object show it larger than the whole image does, and mark more patches of it."""
    plain, cut = (plan_of(dataset, tower, region=region) for tower in ({"mode": "frozen"}, CUT))
    whole, parts = Reader(plain, 0, 1).read(2), Reader(cut, 0, 1).read(2)
    count = len(expected_images(plain, 2, 0, 1)[0])
    before, after = (read["patch_mask"][:count].sum(1) for read in (whole, parts))
    assert (after >= before - 2).all()
    assert after.mean() > before.mean() + 5
    objects = [box for box in cut.target_boxes if box is not None]
    assert len(objects) == len(cut.target_boxes)


def test_a_photo_that_changed_is_told_and_not_shown(tmp_path: Path) -> None:
    plan = plan_of(write_benchmark(tmp_path, identities=1, domains=("a",)), {"mode": "frozen"})
    uri = Path(plan.images.uris[0])
    uri.write_bytes(uri.read_bytes() + b"x")
    found = Reader(plan, 0, 1).read(0)
    assert len(found["error"]) == 1
    assert f"{uri}: changed since the benchmark was built" in found["error"][0]
    assert torch.from_numpy(found["pixels"]).shape[0] == 1
