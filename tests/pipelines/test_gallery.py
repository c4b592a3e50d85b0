from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines import gallery
from pipelines.config import GalleryOptions
from pipelines.gallery import (
    ASKED,
    CandidateStage,
    GalleryStage,
    HardCandidateStage,
    choose_distractors,
    gallery_hash,
    gather_asked,
)
from pipelines.records import TABLES, conform
from pipelines.stages import Part, part_path, write_part


def candidates(place: str, sizes: dict[str, int], first: int = 0) -> pa.Table:
    """`sizes` images of each category; ranks rise with the number in the name."""
    rows = [
        {"gallery_id": place, "image_id": f"{category}{n}", "category": category, "rank": first + n}
        for category, size in sizes.items()
        for n in range(size)
    ]
    return pa.Table.from_pylist(rows, TABLES["distractors"])


def most(count: int, **domains: int) -> GalleryOptions:
    return GalleryOptions(distractors_per_domain=count, domains=domains)


def chosen(*args: Any) -> list[str]:
    return [r["image_id"] for r in choose_distractors(*args)[0]]


def test_distractors_follow_the_queries_categories() -> None:
    queries = {"d/test": {"a": 60, "b": 30, "c": 10}}
    table = candidates("d/test", {"a": 50, "b": 50, "c": 50, "x": 50})
    rows, figures = choose_distractors([table], queries, most(10))
    names = [r["image_id"] for r in rows]
    # six, three and one; the lowest ranks of each
    assert sorted(names) == ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1", "b2", "c0"]
    assert figures == {"d/test": {"matched": 10, "other": 0}}


def test_largest_remainders_get_the_rest() -> None:
    # shares of 10: 3.33, 3.33, 3.33: the first by name gets the tenth
    queries = {"d/test": {"a": 1, "b": 1, "c": 1}}
    table = candidates("d/test", {"a": 9, "b": 9, "c": 9})
    names = chosen([table], queries, most(10))
    assert [sum(n.startswith(c) for n in names) for c in "abc"] == [4, 3, 3]


def test_what_a_category_cannot_fill_goes_to_the_queries_others_then_to_any() -> None:
    queries = {"d/test": {"a": 5, "b": 5}}
    table = candidates("d/test", {"a": 2, "b": 6, "x": 9})
    rows, figures = choose_distractors([table], queries, most(10))
    # five and five wanted: two of a, all six of b, then the two lowest of x
    assert sorted(r["image_id"] for r in rows) == ["a0", "a1", *(f"b{n}" for n in range(6)), "x0", "x1"]
    assert figures == {"d/test": {"matched": 8, "other": 2}}


def test_galleries_without_queries_get_no_distractor() -> None:
    tables = [candidates("d/dev", {"a": 3}), candidates("e/test", {"a": 3})]
    rows, figures = choose_distractors(tables, {"d/dev": {"a": 1}}, most(2))
    assert {r["gallery_id"] for r in rows} == {"d/dev"}
    assert set(figures) == {"d/dev"}


@given(
    st.permutations(range(5)),
    st.integers(0, 12),
    st.dictionaries(st.sampled_from("ab"), st.integers(1, 9), min_size=1),
)
def test_the_order_of_parts_does_not_matter(order: list[int], limit: int, queries: dict[str, int]) -> None:
    tables = [candidates("d/test", {"a": 2, "b": 1, "x": 1}, first=7 * n) for n in range(5)]
    for n, table in enumerate(tables):
        ids = [f"{i}-{n}" for i in table["image_id"].to_pylist()]
        tables[n] = table.set_column(1, table.schema.field("image_id"), pa.array(ids))
    straight = choose_distractors(tables, {"d/test": queries}, most(limit))
    assert choose_distractors([tables[n] for n in order], {"d/test": queries}, most(limit)) == straight
    assert len(straight[0]) == min(limit, 20)


def part() -> Part:
    """a: test instance with a query 0 → 1, image 2 unused; t: training; r: reserve; u: valid without a query."""
    names = ["d/a/0", "d/a/1", "d/a/2", "d/r/0", "d/r/1", "d/t/0", "d/t/1", "d/u/0"]
    images = [{"image_id": n, "domain": "d", "uri": n, "width": 1, "height": 1, "sha256": n} for n in names]
    instances = [{"image_id": n, "instance_id": n[:3], "category": n[2]} for n in [*names, "d/a/dropped"]]
    quadruples = [
        {
            "query_id": f"q{instance}", "domain": "d", "split": split, "instance_id": f"d/{instance}",
            "category": instance, "reference_id": f"d/{instance}/0", "reference_box": [0, 0, 1, 1],
            "modification_text": "t", "target_ids": [f"d/{instance}/1"], "provenance": {"annotator": "x"},
        }
        for instance, split in (("a", "test"), ("t", "train"))
    ]  # fmt: skip
    return Part(
        0,
        {
            "_work/images/filtered": conform(pa.Table.from_pylist(images), "images"),
            "instances": pa.Table.from_pylist(instances, TABLES["instances"]),
            "quadruples": pa.Table.from_pylist(quadruples, TABLES["quadruples"]),
        },
    )


def test_candidates_are_images_of_instances_without_a_query() -> None:
    stage = CandidateStage(most(5), seed=0)
    splits = [
        ("d/a", "test", "test"),
        ("d/r", "reserve", "dev"),
        ("d/t", "train", "dev"),
        ("d/u", "train", "test"),
    ]
    rows = [
        {"instance_id": i, "domain": "d", "category": "c", "split": s, "gallery": g} for i, s, g in splits
    ]
    stage.common = {
        "splits": pa.Table.from_pylist(rows, TABLES["splits"]),
        "near_duplicates": pa.table({"image_id": ["d/r/1"]}),
    }
    stage.setup()
    found = stage(part()).tables["_work/distractors/candidates"].to_pylist()
    # r/1 nearly repeats an image of another instance, so it may not be a wrong answer
    assert {(r["gallery_id"], r["image_id"]) for r in found} == {("d/dev", "d/r/0"), ("d/test", "d/u/0")}


def at(*degrees: float) -> list[list[float]]:
    return [[float(np.cos(np.deg2rad(d))), float(np.sin(np.deg2rad(d)))] for d in degrees]


def test_the_size_of_a_gallery_may_differ_by_domain() -> None:
    queries = {"d/test": {"a": 1}, "e/test": {"a": 1}}
    tables = [candidates(place, {"a": 9}) for place in queries]
    _, figures = choose_distractors(tables, queries, most(2, e=5))
    assert {place: f["matched"] for place, f in figures.items()} == {"d/test": 2, "e/test": 5}


def test_hardest_candidates_are_those_nearest_to_what_the_gallery_is_asked_for() -> None:
    stage = HardCandidateStage(most(2), seed=0)
    names = [f"d/r/{n}" for n in range(5)]
    rows = [("d/a", "test", "test"), ("d/r", "reserve", "test")]
    stage.common = {
        "splits": pa.Table.from_pylist(
            [
                {"instance_id": i, "domain": "d", "category": "c", "split": s, "gallery": g}
                for i, s, g in rows
            ],
            TABLES["splits"],
        ),
        "near_duplicates": pa.table({"image_id": pa.array([], pa.string())}),
        ASKED: pa.table({"gallery_id": ["d/test", "d/test", "d/dev"], "descriptor": at(0, 100, 50)}),
    }
    stage.setup()
    tables = {
        "_work/images/filtered": conform(
            pa.Table.from_pylist(
                [
                    {"image_id": n, "domain": "d", "uri": n, "width": 1, "height": 1, "sha256": n}
                    for n in names
                ]
            ),
            "images",
        ),
        "instances": pa.Table.from_pylist(
            [{"image_id": n, "instance_id": "d/r", "category": "r"} for n in names], TABLES["instances"]
        ),
        "quadruples": TABLES["quadruples"].empty_table(),
        # of the references and targets at 0 and 100 degrees they are 50, 10, 40, 5 and 80 degrees away; 50 is of dev
        "descriptors": pa.table({"image_id": names, "descriptor": at(50, 10, 140, 105, 180)}),
    }
    found = stage(Part(0, tables)).tables["_work/distractors/candidates"].to_pylist()
    assert [r["image_id"] for r in found] == ["d/r/3", "d/r/1"]
    ranks = [r["rank"] >> gallery.DRAW_BITS for r in found]
    assert ranks == [round((1 - np.cos(np.deg2rad(d))) * gallery.STEPS) for d in (5, 10)]


def test_what_a_gallery_is_asked_for_is_gathered_over_the_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, split in enumerate(("test", "train")):
        rows = part().tables["quadruples"].to_pylist()
        rows = [r | {"split": split, "reference_id": f"{number}{r['reference_id']}"} for r in rows]
        used = [r["reference_id"] for r in rows] + [r["target_ids"][0] for r in rows]
        described = pa.table({"image_id": [*used, "other"], "descriptor": at(*range(len(used) + 1))})
        write_part(
            str(tmp_path), part_path("quadruples", number), pa.Table.from_pylist(rows, TABLES["quadruples"])
        )
        write_part(str(tmp_path), part_path("descriptors", number), described)
    asked = gather_asked(str(tmp_path), 2, seed=0).to_pylist()
    assert [r["gallery_id"] for r in asked] == ["d/test"] * 4
    found = np.array(sorted(r["descriptor"] for r in asked))
    assert found == pytest.approx(np.array(sorted(at(0, 1, 2, 3))), abs=1e-6)
    monkeypatch.setattr(gallery, "ASKED_IMAGES", 3)
    few = gather_asked(str(tmp_path), 2, seed=0).to_pylist()
    assert len(few) == 3
    assert all(r in asked for r in few)


def test_gallery_holds_references_targets_and_distractors_and_images_know_their_split() -> None:
    stage = GalleryStage()
    rows = [{"gallery_id": "d/dev", "image_id": "d/r/0", "category": "r", "rank": 0}]
    gone = {"image_id": ["d/a/2", "d/u/0"], "rejected": [True, False]}
    stage.common = {
        "_work/distractors/chosen": pa.Table.from_pylist(rows, TABLES["distractors"]),
        "near_duplicates": pa.table(gone),
    }
    stage.setup()
    result = stage(part())
    members = [
        (r["gallery_id"], r["split"], r["image_id"], r["is_distractor"])
        for r in result.tables["gallery"].to_pylist()
    ]
    assert members == [
        ("d/test", "test", "d/a/0", False),
        ("d/test", "test", "d/a/1", False),
        ("d/dev", "dev", "d/r/0", True),
    ]
    used = {r["image_id"]: r["split"] for r in result.tables["images"].to_pylist()}
    assert used == {
        "d/a/0": "test", "d/a/1": "test", "d/r/0": "reserve", "d/t/0": "train", "d/t/1": "train"
    }  # fmt: skip
    (account,) = (a.check() for a in result.accounts)
    # of eight images one gave way to a near-duplicate before, so that seven come in
    assert (account.taken_in, account.kept, account.not_sampled) == (7, 5, 2)


def test_gallery_hash_is_over_the_sorted_names() -> None:
    assert gallery_hash(["b", "a"]) == hashlib.sha256(b"a\nb\n").hexdigest()
