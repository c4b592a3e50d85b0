from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines import filter as stage2
from pipelines.config import DomainThresholds, Thresholds
from pipelines.filter import FilterStage, GroupVerdict, judge_group, pair_id, runs
from pipelines.records import TABLES
from pipelines.stages import Part


def thresholds(valid: int = 3, high: float = 0.9, centric: float = 0.8, count: int = 2) -> DomainThresholds:
    return DomainThresholds(tau_valid=valid, tau_high=high, tau_centric=centric, tau_count=count)


def at(*degrees: float) -> np.ndarray:
    """Unit vectors in the plane: the cosine of two is the cosine of the angle between them."""
    angles = np.deg2rad(np.array(degrees))
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def judge(vectors: np.ndarray, t: DomainThresholds, max_pairs: int = 1000, seed: int = 0) -> GroupVerdict:
    ids = [f"d/i/{n}" for n in range(len(vectors))]
    return judge_group(vectors, ids, np.ones(len(ids), bool), t, max_pairs=max_pairs, seed=seed)


def test_small_group_is_reserved_with_all_its_images() -> None:
    verdict = judge(at(0, 0), thresholds(valid=3))
    assert verdict.state == "reserve"
    assert verdict.kept.tolist() == [0, 1]
    assert len(verdict.pairs) == 0
    assert verdict.why == "2 images, tau_valid 3"


def test_class_centric_images_are_those_close_to_tau_count_others() -> None:
    # cos 20° = 0.94, cos 40° = 0.77: 0 and 40 are within 0.8 of 20 alone, 20 of both; 120, 200, 280 of none
    verdict = judge(at(0, 20, 40, 120, 200, 280), thresholds(count=2))
    assert verdict.class_centric.tolist() == [1]
    assert verdict.kept.tolist() == [0, 2, 3, 4, 5]
    assert verdict.state == "valid"
    assert judge(at(0, 20, 40, 120, 200, 280), thresholds(count=1)).class_centric.tolist() == [0, 1, 2]


def test_group_that_falls_below_tau_valid_goes_to_the_reserve() -> None:
    verdict = judge(at(0, 20, 40, 120), thresholds(valid=4, count=2))
    assert verdict.state == "reserve"
    assert verdict.kept.tolist() == [0, 2, 3]
    assert verdict.class_centric.tolist() == [1]
    assert verdict.why == "3 of 4 images are not class-centric, tau_valid 4"


def test_too_similar_pairs_go_in_both_directions() -> None:
    # cos 20° = 0.94 > 0.9 and cos 40° = 0.77
    verdict = judge(at(0, 20, 60), thresholds(count=3))
    assert verdict.pairs.tolist() == [[0, 2], [1, 2], [2, 0], [2, 1]]
    assert verdict.too_similar.tolist() == [1, 1, 0]
    assert verdict.nearest.tolist() == [1, 0, -1]
    assert verdict.nearest_cosine == pytest.approx([np.cos(np.deg2rad(20))] * 2 + [0], abs=1e-6)
    assert verdict.similarity == pytest.approx([0.5, 0.766, 0.5, 0.766], abs=1e-3)


def test_group_whose_pairs_are_all_too_similar_is_reserved() -> None:
    verdict = judge(at(0, 1, 2), thresholds(count=5))
    assert (verdict.state, verdict.why) == ("reserve", "every pair is too similar")
    assert verdict.too_similar.tolist() == [2, 2, 2]


def test_the_sample_is_seeded_and_depends_on_ids_not_positions() -> None:
    vectors = at(*range(0, 360, 36))
    ids = [f"d/i/{n}" for n in range(10)]
    boxed = np.ones(10, bool)
    t = thresholds(high=0.99, centric=0.99)

    def names(order: list[int], seed: int) -> set[tuple[str, str]]:
        chosen = [ids[i] for i in order]
        verdict = judge_group(vectors[order], chosen, boxed, t, max_pairs=20, seed=seed)
        assert (len(verdict.pairs), verdict.not_sampled) == (20, 70)
        return {(chosen[r], chosen[t]) for r, t in verdict.pairs}

    straight = names(list(range(10)), seed=1)
    assert names(list(range(9, -1, -1)), seed=1) == straight
    assert names(list(range(10)), seed=2) != straight


def test_pairs_whose_reference_has_a_box_are_sampled_first() -> None:
    boxed = np.zeros(10, bool)
    boxed[[2, 7]] = True
    t = thresholds(high=0.99, centric=0.99)
    ids = [f"d/i/{n}" for n in range(10)]
    verdict = judge_group(at(*range(0, 360, 36)), ids, boxed, t, max_pairs=25, seed=0)
    with_box = [r for r, _ in verdict.pairs if boxed[r]]
    assert len(with_box) == 18  # all of them: two references, nine targets each
    assert len(verdict.pairs) == 25


def slow(vectors: np.ndarray, t: DomainThresholds) -> tuple[str, list[int], list[int], set, set]:
    """The rules once more, pair by pair."""
    n = len(vectors)
    cosine = [[float(np.dot(vectors[i], vectors[j])) for j in range(n)] for i in range(n)]
    if n < t.tau_valid:
        return "reserve", list(range(n)), [], set(), set()
    centric = [
        i for i in range(n) if sum(cosine[i][j] > t.tau_centric for j in range(n) if j != i) >= t.tau_count
    ]
    kept = [i for i in range(n) if i not in centric]
    if len(kept) < t.tau_valid:
        return "reserve", kept, centric, set(), set()
    pairs = {(i, j) for i in kept for j in kept if i != j and cosine[i][j] <= t.tau_high}
    near = {(i, j) for i in kept for j in kept if i != j and cosine[i][j] > t.tau_high}
    return ("valid" if pairs else "reserve"), kept, centric, pairs, near


@settings(max_examples=60, deadline=None)
@given(
    count=st.integers(1, 14),
    seed=st.integers(0, 10_000),
    high=st.sampled_from([0.3, 0.7, 0.9]),
    centric=st.sampled_from([0.2, 0.6, 0.9]),
    tau_count=st.integers(1, 4),
    valid=st.integers(2, 6),
    cells=st.sampled_from([1, 20, 1 << 22]),
)
def test_equals_the_slow_version_in_blocks_of_any_size(
    count: int, seed: int, high: float, centric: float, tau_count: int, valid: int, cells: int
) -> None:
    vectors = np.random.default_rng(seed).normal(size=(count, 3)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    t = thresholds(valid, high, centric, tau_count)
    before, stage2.BLOCK_CELLS = stage2.BLOCK_CELLS, cells
    try:
        verdict = judge(vectors, t)
        sampled = judge(vectors, t, max_pairs=7)
    finally:
        stage2.BLOCK_CELLS = before
    state, kept, dropped, pairs, near = slow(vectors, t)
    assert verdict.state == state
    assert verdict.kept.tolist() == kept
    assert verdict.class_centric.tolist() == dropped
    assert {tuple(p) for p in verdict.pairs.tolist()} == pairs
    assert verdict.too_similar.tolist() == [sum(i == r for r, _ in near) for i in range(count)]
    assert all((i, int(verdict.nearest[i])) in near for i in np.flatnonzero(verdict.too_similar))
    assert len(sampled.pairs) == min(7, len(pairs))
    assert {tuple(p) for p in sampled.pairs.tolist()} <= pairs
    assert len(sampled.pairs) + sampled.not_sampled == len(pairs)


def test_the_sample_is_that_of_the_lowest_ranks_in_blocks_of_any_size() -> None:
    """The same pairs whatever the block, chosen by rank alone: against ranking all pairs at once."""
    rng = np.random.default_rng(1)
    vectors = rng.normal(size=(60, 4)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    ids = [f"d/i/{n}" for n in range(60)]
    boxed = rng.random(60) < 0.5
    t = thresholds(high=0.5, centric=0.9, count=50)
    marks = stage2._marks(ids, boxed, 3)
    order = sorted(
        (int(stage2._ranks(marks[i : i + 1], marks[j : j + 1])[0]), i, j)
        for i in range(60)
        for j in range(60)
        if i != j and float(vectors[i] @ vectors[j]) <= 0.5
    )
    wanted = sorted((i, j) for _, i, j in order[:40])
    before = stage2.BLOCK_CELLS
    for cells in (60, 200, 7 * 60, 1 << 20):
        stage2.BLOCK_CELLS = cells
        verdict = judge_group(vectors, ids, boxed, t, max_pairs=40, seed=3)
        assert [tuple(p) for p in verdict.pairs.tolist()] == wanted
        assert verdict.not_sampled == len(order) - 40
    stage2.BLOCK_CELLS = before
    cosine = [float(vectors[i] @ vectors[j]) for i, j in wanted]
    assert verdict.similarity == pytest.approx(cosine, abs=1e-6)


def tables(sizes: dict[str, list[float]]) -> dict[str, pa.Table]:
    """Collected tables of instances given by the angles of their images."""
    images, instances, angles = [], [], []
    for instance, degrees in sizes.items():
        for n, degree in enumerate(degrees):
            image_id = f"toys/{instance}/{n}.jpg"
            images.append(
                {
                    "image_id": image_id,
                    "domain": "toys",
                    "uri": "u",
                    "width": 9,
                    "height": 9,
                    "sha256": image_id,
                }
            )
            instances.append(
                {
                    "image_id": image_id,
                    "instance_id": f"toys/{instance}",
                    "category": "toy",
                    "box": [0, 0, 1, 1] if n else None,
                }
            )
            angles.append(degree)
    vectors = at(*angles)
    descriptors = [
        {"image_id": i["image_id"], "descriptor": v, "phash": 0} for i, v in zip(images, vectors, strict=True)
    ]
    return {
        "_work/images/collected": pa.Table.from_pylist(images, TABLES["images"]),
        "instances": pa.Table.from_pylist(instances, TABLES["instances"]),
        "descriptors": pa.Table.from_pylist(descriptors, TABLES["descriptors"]),
    }


def test_stage_accounts_for_every_image_instance_and_pair() -> None:
    stage = FilterStage(Thresholds(default=thresholds(count=2)), max_pairs=5, seed=0)
    result = stage(
        Part(0, tables({"a": [0, 20, 40, 120, 200], "b": [0, 90], "c": [0, 120, 240], "d": [0, 20, 60, 180]}))
    )
    images, instances, pairs = (account.check() for account in result.accounts)
    assert (images.taken_in, images.kept, images.reserved) == (14, 11, 2)
    assert images.rejected == {"class_centric": 1}
    assert (instances.kept, instances.reserved) == (3, 1)
    # a: 4 images, 12 pairs, 5 kept; c: 6 pairs, 5 kept; d: 12 pairs of which 0-20 both ways too similar, 5 kept
    assert (pairs.taken_in, pairs.kept, pairs.not_sampled) == (30, 15, 13)
    assert pairs.rejected == {"too_similar": 2}
    groups = {g["instance_id"]: g for g in result.tables["groups"].to_pylist()}
    assert groups["toys/b"] == {
        "instance_id": "toys/b",
        "domain": "toys",
        "category": "toy",
        "state": "reserve",
        "found": 2,
        "images": 2,
        "pairs": 0,
        "boxed": 0,
    }
    assert (groups["toys/a"]["found"], groups["toys/a"]["images"], groups["toys/a"]["pairs"]) == (5, 4, 5)
    assert (
        groups["toys/c"]["boxed"] == 4
    )  # of its six pairs four have a boxed reference, and those come first
    rejects = result.tables["rejects/filter"].to_pylist()
    assert [(r["entity"], r["key"]) for r in rejects if r["reason"] == "class_centric"] == [
        ("images", "toys/a/1.jpg")
    ]
    # 0 and 20 of d, each the other's nearest: one row for each reference
    similar = [(r["key"], r["records"], r["detail"]) for r in rejects if r["reason"] == "too_similar"]
    assert similar == [
        ("toys/d/0.jpg", 1, "nearest toys/d/1.jpg, cosine 0.9397"),
        ("toys/d/1.jpg", 1, "nearest toys/d/0.jpg, cosine 0.9397"),
    ]
    rows = result.tables["pairs"].to_pylist()
    assert all(r["pair_id"] == pair_id("toys", r["reference_id"], r["target_id"]) for r in rows)
    assert len({r["pair_id"] for r in rows}) == 15
    assert result.counts["toys"]["instances valid"] == 3


def test_runs_are_the_stretches_of_equal_neighbours() -> None:
    assert runs(["a", "a", "b", "c", "c"]) == [range(0, 2), range(2, 3), range(3, 5)]
    assert runs([]) == []
