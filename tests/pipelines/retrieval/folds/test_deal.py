"""Folds over instances: every instance asked once, never trained on where it is asked, galleries the same."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.base import versions
from infra.base.command import Context
from infra.base.errors import OacirError
from infra.base.versions import Version
from pipelines.gallery import gallery_hash
from pipelines.retrieval.folds.deal import deal, make_folds
from pipelines.verify import VerifyRecipe, verify


@pytest.fixture(scope="module")
def folds(context: Context) -> list[Version]:
    return make_folds(versions.resolve(context.root, "datasets", "benchmark"), 3, 0, context.root)


@settings(max_examples=60)
@given(st.dictionaries(st.text(max_size=4), st.integers(1, 50), min_size=3), st.integers(3, 8), st.integers())
def test_folds_are_balanced_and_seeded(queries: dict[str, int], count: int, seed: int) -> None:
    if len(queries) < count:
        with pytest.raises(OacirError, match="choose fewer"):
            deal(queries, count, seed)
        return
    fold_of = deal(queries, count, seed)
    assert fold_of == deal(dict(reversed(queries.items())), count, seed)
    assert fold_of.keys() == queries.keys()
    sums = Counter(dict.fromkeys(range(count), 0))
    for name, fold in fold_of.items():
        sums[fold] += queries[name]
    assert max(sums.values()) - min(sums.values()) <= max(queries.values())
    assert min(sums.values()) > 0


def test_every_query_is_asked_once_and_never_trained_on_there(context: Context, folds: list[Version]) -> None:
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    rows = [fold.table("quadruples").to_pylist() for fold in folds]
    asked = Counter(row["query_id"] for fold in rows for row in fold if row["split"] == "test")
    assert asked == Counter(
        dataset.table("quadruples")["query_id"].to_pylist()
    )  # train queries of the build too
    assert set(asked.values()) == {1}
    for fold in rows:
        splits: dict[str, set[str]] = {}
        for row in fold:
            splits.setdefault(row["instance_id"], set()).add(row["split"])
        assert all(len(found) == 1 for found in splits.values())
        assert {s for found in splits.values() for s in found} == {"train", "dev", "test"}
    plain = [{k: v for k, v in row.items() if k != "split"} for row in rows[0]]
    assert sorted(plain, key=str) == sorted(
        ({k: v for k, v in r.items() if k != "split"} for r in dataset.table("quadruples").to_pylist()),
        key=str,
    )


def test_galleries_hold_all_images_of_the_domain_and_are_the_same_in_every_fold(
    context: Context, folds: list[Version]
) -> None:
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    images = dataset.table("images").to_pylist()
    for fold in folds:
        for domain in ("car", "product"):
            expected = gallery_hash(r["image_id"] for r in images if r["domain"] == domain)
            for split in ("dev", "test"):
                assert fold.manifest.figures["galleries"][f"{domain}/{split}"]["sha256"] == expected
        gallery = [r for r in fold.table("gallery").to_pylist() if r["split"] == "test"]
        own = {r["image_id"] for r in gallery if not r["is_distractor"]}
        rows = [r for r in fold.table("quadruples").to_pylist() if r["split"] == "test"]
        assert own == {i for r in rows for i in (r["reference_id"], *r["target_ids"])}


def test_a_fold_is_a_version_that_verifies_and_says_what_it_is(
    context: Context, folds: list[Version]
) -> None:
    again = make_folds(versions.resolve(context.root, "datasets", "benchmark"), 3, 0, context.root)
    assert [f.manifest.created_at for f in again] == [f.manifest.created_at for f in folds]
    assert not verify(VerifyRecipe(dataset=folds[1].url), context).refused
    assert folds[1].manifest.name == "benchmark-fold-2-of-3"
    assert (
        folds[1].manifest.figures["notes"][0].startswith("fold 2 of 3 of benchmark: its instances are asked")
    )
    other = make_folds(versions.resolve(context.root, "datasets", "benchmark"), 3, 1, context.root)
    assert other[0].url != folds[0].url


def test_too_many_folds_are_refused(context: Context) -> None:
    dataset = versions.resolve(context.root, "datasets", "benchmark")
    with pytest.raises(OacirError, match="domain car: 8 instances have a query, which makes no 9 folds"):
        make_folds(dataset, 9, 0, context.root)
