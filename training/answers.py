"""Which images of a benchmark are one another's equal: what a query's target must not be told from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING, Literal

import numpy as np

from infra.base.errors import OacirError
from training.batches import Answers, QuerySet

if TYPE_CHECKING:
    import pyarrow as pa

    from infra.base.versions import Version
    from training.config import TrainingSection
    from training.data import ImageRows

Equality = Literal["same_target", "equivalent"]


def with_negatives(
    queries: QuerySet, section: TrainingSection, quadruples: pa.Table, dataset: Version, store: ImageRows
) -> QuerySet:
    """A training set that knows what the recipe's negatives ask for.

    Args:
        queries: of those quadruples.
        section: the recipe's.
        quadruples: rows of the `quadruples` table.
        dataset: the benchmark.
        store: whose rows those of `queries` are.
    """
    if section.reference_negatives:
        whole = store.rows(quadruples["reference_id"].to_pylist())
        queries = dataclasses.replace(queries, whole_rows=whole)
    if section.false_negatives != "keep":
        answers = answers_of(quadruples, dataset, section.false_negatives)
        queries = dataclasses.replace(queries, answers=answers)
    return queries


def require_room(section: TrainingSection, count: int, url: str) -> None:
    """Refuse a memory bank in which every query would always find its own target among its negatives.

    Raises:
        OacirError: the bank holds an epoch of `count` quadruples, and nothing leaves false negatives out.
    """
    if section.false_negatives == "keep" and section.memory_bank >= count:
        raise OacirError(
            f"{url}: training.memory_bank {section.memory_bank:,} holds the targets of a whole epoch ({count:,}"
            " quadruples), each query's own among its negatives; set it lower, or training.false_negatives to"
            " same_target or equivalent"
        )


def answers_of(quadruples: pa.Table, dataset: Version, equality: Equality) -> Answers:
    """The images of some queries as numbers that equal images share.

    Args:
        quadruples: rows of the `quadruples` table.
        dataset: the benchmark.
        equality: `same_target`: every image_id is an image of its own, and a query has one right answer.
            `equivalent`: images of the same bytes are one, and so are those that the benchmark's table
            `near_duplicates` (where it has one) calls the same photo. It names the nearest partner of each image
            alone, so what is equal to the same image is equal. All of a query's `target_ids` are right answers.
    """
    references, wanted = quadruples["reference_id"].to_pylist(), quadruples["target_ids"].to_pylist()
    if equality == "same_target":
        wanted = [ids[:1] for ids in wanted]
    pairs = same_photos(dataset) if equality == "equivalent" else ()
    number = numbered([*references, *(image for ids in wanted for image in ids)], pairs)
    right = [[number[image] for image in ids] for ids in wanted]
    width = max((len(ids) for ids in right), default=1)
    return Answers(
        np.array([number[image] for image in references], np.int64),
        # a query with fewer right answers has its own target more than once
        np.array([ids + ids[:1] * (width - len(ids)) for ids in right], np.int64).reshape(-1, width),
    )


def same_photos(dataset: Version) -> list[tuple[str, str]]:
    """Pairs of image_ids that show one photo: the same bytes, or near-duplicates as the build found them."""
    pairs: list[tuple[str, str]] = []
    first: dict[str, str] = {}
    for table in dataset.tables("images", ["image_id", "sha256"]):
        for image, digest in zip(table["image_id"].to_pylist(), table["sha256"].to_pylist(), strict=True):
            if first.setdefault(digest, image) != image:
                pairs.append((first[digest], image))
    for table in dataset.tables("near_duplicates", ["image_id", "other_id"]):
        pairs += zip(table["image_id"].to_pylist(), table["other_id"].to_pylist(), strict=True)
    return pairs


def numbered(images: Iterable[str], pairs: Iterable[tuple[str, str]]) -> dict[str, int]:
    """A number for each image, from 0; images that a chain of pairs joins have one number."""
    leader: dict[str, str] = {}

    def lead(image: str) -> str:
        while (above := leader.get(image, image)) != image:
            leader[image] = leader.get(above, above)
            image = leader[image]
        return image

    for one, other in pairs:
        leader[lead(one)] = lead(other)
    numbers: dict[str, int] = {}
    return {image: numbers.setdefault(lead(image), len(numbers)) for image in images}
