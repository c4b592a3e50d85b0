from __future__ import annotations

import pytest

from infra.base.accounts import Account
from infra.base.versions import Manifest
from pipelines.config import DomainThresholds
from pipelines.summary import domain_figures, no_query, thresholds_line

THRESHOLDS = DomainThresholds(tau_valid=8, tau_high=0.92, tau_centric=0.88, tau_count=3)


def figures(counts: dict[str, int], largest: int = 9, **instances: int) -> dict[str, object]:
    return domain_figures(THRESHOLDS, counts, images=50, largest=largest, instances=instances)


def test_figures_of_a_domain_with_queries() -> None:
    counts = {"pairs": 20, "queries train": 10, "queries test": 5, "words": 270, "images test": 7}
    counts["instances with queries test"] = 2
    found = figures(counts, train=4, test=2)
    assert found["queries"] == {"train": 10, "dev": 0, "test": 5}
    assert found["mean_words"] == 18.0  # 270 words in 15 texts
    assert found["images_used"] == {"train": 0, "dev": 0, "test": 7, "reserve": 0}
    assert found["instances_with_queries"] == {"train": 0, "dev": 0, "test": 2}
    assert "why_no_query" not in found


@pytest.mark.parametrize(
    ("counts", "largest", "instances", "why"),
    [
        ({}, 0, {}, "no image could be read"),
        ({"images variant_unclear": 7}, 0, {}, "none of 7 images shows a variant clearly"),
        ({}, 5, {}, "no instance has τ_valid = 8 readable images (the largest has 5)"),
        (
            {"class-centric images": 30, "pairs too similar": 4},
            9,
            {},
            "no instance keeps τ_valid = 8 images and a pair (30 images class-centric, 4 pairs too similar)",
        ),
        (
            {"pairs": 12, "pairs no_box": 10, "pairs no_difference": 2, "pairs too similar": 3},
            9,
            {"test": 1},
            "none of 12 pairs could be annotated (no_box 10, no_difference 2)",
        ),
        (
            {"pairs": 12, "queries train": 12},
            9,
            {"train": 1},
            "only one instance is valid, it is kept for training",
        ),
        (
            {"pairs": 12, "queries train": 6, "pairs no_box": 6},
            9,
            {"train": 1, "test": 1},
            "the test instances have no annotated pair",
        ),
    ],
)
def test_why_a_domain_yields_no_query(
    counts: dict[str, int], largest: int, instances: dict[str, int], why: str
) -> None:
    assert figures(counts, largest, **instances)["why_no_query"] == why


def test_thresholds_as_a_line() -> None:
    line = "τ_valid 8, τ_high 0.92, τ_centric 0.88, τ_count 3, texts of at most 30 words"
    assert thresholds_line(THRESHOLDS) == line


def test_masks_are_stated_where_there_are_any() -> None:
    assert "masks" not in figures({}, largest=0)
    assert figures({"masks kept": 3, "masks empty": 1}, largest=0)["masks"] == {"kept": 3, "empty": 1}


def manifest(pairs: int, annotate: dict[str, int], filtered: list[Account], **queries: int) -> Manifest:
    """Of a build over two domains that ended in these accounts."""
    domain = {"queries": {"train": 0, "dev": 0, "test": 0} | queries, "why_no_query": "so it is"}
    quadruples = Account(
        entity="quadruples", taken_in=pairs, kept=pairs - sum(annotate.values()), rejected=annotate
    )
    return Manifest(
        kind="datasets",
        name="x",
        key="k",
        content_hash="c",
        files=[],
        recipe={},
        code_version="",
        created_at="",
        accounts={"filter": filtered, "annotate": [quadruples]},
        figures={"domains": {"cups": domain, "toys": domain}},
    )


def test_a_build_with_any_query_is_not_refused() -> None:
    assert no_query(manifest(12, {"no_box": 11}, [], train=1)) is None


def test_a_build_without_a_query_is_refused_with_a_cure_for_what_took_most() -> None:
    line = no_query(manifest(12, {"no_box": 8, "no_difference": 4}, []))
    assert line is not None
    assert line.startswith(
        "the benchmark holds no query (cups: so it is; toys: so it is); say where the object is"
    )
    assert "boxes*.csv (columns image_path, x, y, w, h)" in line
    assert "differ in setting" in (no_query(manifest(12, {"no_box": 4, "no_difference": 8}, [])) or "")
    assert "lower tau_valid" in (
        no_query(manifest(0, {}, [Account(entity="instances", taken_in=3, reserved=3)])) or ""
    )
    alike = [Account(entity="pairs", taken_in=6, rejected={"too_similar": 6})]
    assert "raise tau_high" in (no_query(manifest(0, {}, alike)) or "")
    assert "more photos" in (no_query(manifest(0, {}, [])) or "")
