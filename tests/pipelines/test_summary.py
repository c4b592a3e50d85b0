from __future__ import annotations

import pytest

from pipelines.config import DomainThresholds
from pipelines.summary import domain_figures, thresholds_line

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
