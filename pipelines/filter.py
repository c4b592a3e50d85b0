"""Stage 2, filter: which images and ordered pairs of an instance teach something (METHODS section 1)."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.base.accounts import Account
from pipelines.config import DomainThresholds, Thresholds
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult

BLOCK_CELLS = 1 << 22


@dataclass(frozen=True)
class GroupVerdict:
    """What the filter makes of the images of one instance (numbers are positions in the group)."""

    state: str
    """valid | reserve; `why` says why not valid."""
    why: str
    kept: NDArray[np.int64]
    """Images that passed, ascending; all images of a group that was too small to begin with."""
    class_centric: NDArray[np.int64]
    """Images that look like too many others of the group."""
    pairs: NDArray[np.int64]
    """[p, 2] reference and target, ascending; empty unless valid."""
    similarity: NDArray[np.float32]
    """[p] cosine of each pair."""
    too_similar: NDArray[np.int64]
    """[q, 2] ordered pairs whose cosine exceeds τ_high."""
    too_similar_cosine: NDArray[np.float32]
    """[q] their cosines."""
    not_sampled: int
    """Good pairs beyond the limit."""


def judge_group(
    vectors: NDArray[np.float32],
    image_ids: Sequence[str],
    boxed: NDArray[np.bool_],
    thresholds: DomainThresholds,
    *,
    max_pairs: int,
    seed: int,
) -> GroupVerdict:
    """Apply the thresholds to one instance, exactly, in blocked matrix products.

    1. Fewer than τ_valid images: reserve.
    2. An image whose cosine to ≥ τ_count others of the group exceeds τ_centric is class-centric and dropped; all
       are judged against the whole group at once. Fewer than τ_valid left: reserve.
    3. Of the ordered pairs of the rest, those with cosine > τ_high are too similar; of the others a seeded sample of
       `max_pairs` is kept, the same whatever the block size. Pairs whose reference has a box come first: for the
       others an annotator would have to find one. No pair left: reserve.

    Args:
        vectors: [n, d] unit descriptors.
        image_ids: [n] their images; the sample depends on them, not on positions.
        boxed: [n] whether the image has a box.
        thresholds: of the domain.
        max_pairs: most pairs to keep.
        seed: of the sample.
    """
    count = len(image_ids)
    everyone = np.arange(count)
    if count < thresholds.tau_valid:
        why = f"{count} images, tau_valid {thresholds.tau_valid}"
        return _reserve(why, everyone, everyone[:0])
    close = np.zeros(count, np.int64)
    for rows, cosine in _cosines(vectors):
        close[rows] = (cosine > thresholds.tau_centric).sum(axis=1)
    centric = close >= thresholds.tau_count
    kept = everyone[~centric]
    if len(kept) < thresholds.tau_valid:
        why = f"{len(kept)} of {count} images are not class-centric, tau_valid {thresholds.tau_valid}"
        return _reserve(why, kept, everyone[centric])
    pairs, similarity, near, near_cosine, good = _pairs(
        vectors[kept], _marks(image_ids, boxed, seed)[kept], thresholds.tau_high, max_pairs
    )
    return GroupVerdict(
        state="valid" if good else "reserve",
        why="" if good else "every pair is too similar",
        kept=kept,
        class_centric=everyone[centric],
        pairs=kept[pairs],
        similarity=similarity,
        too_similar=kept[near],
        too_similar_cosine=near_cosine,
        not_sampled=good - len(pairs),
    )


def _reserve(why: str, kept: NDArray[np.int64], centric: NDArray[np.int64]) -> GroupVerdict:
    none, cosines = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    return GroupVerdict("reserve", why, kept, centric, none, cosines, none, cosines, 0)


def _cosines(vectors: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blocks of rows of the cosine matrix [b, n]; an image's cosine to itself is −1, so that it never counts."""
    height = max(1, BLOCK_CELLS // max(1, len(vectors)))
    for start in range(0, len(vectors), height):
        rows = slice(start, min(start + height, len(vectors)))
        cosine = vectors[rows] @ vectors.T
        cosine[np.arange(rows.stop - start), np.arange(start, rows.stop)] = -1.0
        yield rows, cosine


def _pairs(
    vectors: NDArray[np.float32], marks: NDArray[np.uint64], tau_high: float, max_pairs: int
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64], NDArray[np.float32], int]:
    best = np.zeros((0, 2), np.int64)
    best_cosine, best_rank = np.zeros(0, np.float32), np.zeros(0, np.uint64)
    near, near_cosine = [best], [best_cosine]
    good = 0
    for rows, cosine in _cosines(vectors):
        apart = np.ones(cosine.shape, bool)
        apart[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = False
        similar = cosine > tau_high
        found = np.argwhere(similar)
        near.append(found + np.array([rows.start, 0]))
        near_cosine.append(cosine[similar])
        found = np.argwhere(apart & ~similar)
        good += len(found)
        rank = _ranks(marks[found[:, 0] + rows.start], marks[found[:, 1]])
        best = np.concatenate([best, found + np.array([rows.start, 0])])
        best_cosine = np.concatenate([best_cosine, cosine[found[:, 0], found[:, 1]]])
        best_rank = np.concatenate([best_rank, rank])
        if len(best) > max_pairs:
            first = np.sort(np.argsort(best_rank, kind="stable")[:max_pairs])
            best, best_cosine, best_rank = best[first], best_cosine[first], best_rank[first]
    return best, best_cosine, np.concatenate(near), np.concatenate(near_cosine), good


def _marks(image_ids: Sequence[str], boxed: NDArray[np.bool_], seed: int) -> NDArray[np.uint64]:
    """A pseudo-random number for each image, odd if it has a box."""
    digests = [hashlib.sha256(f"{seed}\0{image_id}".encode()).digest() for image_id in image_ids]
    marks = np.array([int.from_bytes(d[:8]) for d in digests], np.uint64)
    return (marks & ~np.uint64(1)) | boxed.astype(np.uint64)


def _ranks(reference: NDArray[np.uint64], target: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """A pseudo-random rank of each ordered pair (splitmix64's finaliser), lower if the reference has a box."""
    x = reference * np.uint64(0x9E3779B97F4A7C15) + target
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    x = (x ^ (x >> np.uint64(31))) >> np.uint64(1)
    return x | ((~reference & np.uint64(1)) << np.uint64(63))


def pair_id(domain: str, reference_id: str, target_id: str) -> str:
    """The name of an ordered pair: `<domain>/<16 hex digits>`, from its images alone."""
    digest = hashlib.sha256(f"{reference_id}\0{target_id}".encode()).hexdigest()
    return f"{domain}/{digest[:16]}"


@dataclass
class FilterStage(Stage):
    """Collected images of whole instances → images that go on, pairs, and the state of each instance."""

    thresholds: Thresholds
    max_pairs: int
    seed: int
    name = "filter"
    inputs = ("_work/images/collected", "instances", "descriptors")
    outputs = ("_work/images/filtered", "pairs", "groups", "rejects/filter")

    def __call__(self, part: Part) -> StageResult:
        """Judge each instance of the part."""
        images, instances = part.tables["_work/images/collected"], part.tables["instances"]
        sheet = _Sheet()
        for rows in runs(instances["instance_id"].to_pylist()):
            here = slice(rows.start, rows.stop)
            group = _Group(
                first=rows.start,
                domain=images["domain"][rows.start].as_py(),
                instance_id=instances["instance_id"][rows.start].as_py(),
                category=instances["category"][rows.start].as_py(),
                image_ids=images["image_id"][here].to_pylist(),
                boxed=np.array([box is not None for box in instances["box"][here].to_pylist()]),
            )
            vectors = np.stack(part.tables["descriptors"]["descriptor"][here].to_numpy()).astype(np.float32)
            verdict = judge_group(
                vectors,
                group.image_ids,
                group.boxed,
                self.thresholds.of(group.domain),
                max_pairs=self.max_pairs,
                seed=self.seed,
            )
            sheet.add(group, verdict)
        return sheet.result(images)


def runs(values: Sequence[str]) -> list[range]:
    """The runs of equal neighbours, as ranges of positions."""
    edges = [i for i in range(len(values)) if i == 0 or values[i] != values[i - 1]]
    return [range(a, b) for a, b in itertools.pairwise([*edges, len(values)])]


@dataclass(frozen=True)
class _Group:
    """The images of one instance."""

    first: int
    """Row of the first."""
    domain: str
    instance_id: str
    category: str
    image_ids: list[str]
    boxed: NDArray[np.bool_]


class _Sheet:
    """Collects the verdicts of a part as rows and accounts."""

    def __init__(self) -> None:
        self.kept: list[int] = []
        self.pairs: list[dict[str, Any]] = []
        self.groups: list[dict[str, Any]] = []
        self.rejects: list[dict[str, Any]] = []
        self.counts: dict[str, Counter[str]] = {}
        self.reserved = 0

    def add(self, group: _Group, verdict: GroupVerdict) -> None:
        domain, image_ids = group.domain, group.image_ids
        self.kept += [group.first + int(i) for i in verdict.kept]
        for (reference, target), cosine in zip(verdict.pairs, verdict.similarity, strict=True):
            row = {"domain": domain, "instance_id": group.instance_id, "similarity": cosine}
            row |= {"reference_id": image_ids[reference], "target_id": image_ids[target]}
            self.pairs.append(row | {"pair_id": pair_id(domain, image_ids[reference], image_ids[target])})
        for i in verdict.class_centric:
            self._reject("images", image_ids[i], "class_centric", None)
        for (reference, target), cosine in zip(verdict.too_similar, verdict.too_similar_cosine, strict=True):
            key = pair_id(domain, image_ids[reference], image_ids[target])
            self._reject("pairs", key, "too_similar", f"cosine {cosine:.4f}")
        row = {"instance_id": group.instance_id, "domain": domain, "category": group.category}
        row |= {"state": verdict.state, "found": len(image_ids), "images": len(verdict.kept)}
        row |= {"pairs": len(verdict.pairs), "boxed": int(group.boxed[verdict.pairs[:, 0]].sum())}
        self.groups.append(row)
        counts = self.counts.setdefault(domain, Counter())
        counts["instances " + verdict.state] += 1
        counts["class-centric images"] += len(verdict.class_centric)
        counts["pairs"] += len(verdict.pairs)
        counts["pairs too similar"] += len(verdict.too_similar)
        counts["pairs not sampled"] += verdict.not_sampled
        self.reserved += len(verdict.kept) if verdict.state == "reserve" else 0

    def _reject(self, entity: str, key: str, reason: str, detail: str | None) -> None:
        row = {"stage": "filter", "entity": entity, "key": key, "reason": reason, "detail": detail}
        self.rejects.append(row)

    def result(self, images: pa.Table) -> StageResult:
        states = Counter(g["state"] for g in self.groups)
        total = sum(self.counts.values(), Counter())
        centric, similar = total["class-centric images"], total["pairs too similar"]
        good = len(self.pairs) + total["pairs not sampled"]
        accounts = (
            Account(
                entity="images",
                taken_in=len(images),
                kept=len(self.kept) - self.reserved,
                rejected={"class_centric": centric} if centric else {},
                reserved=self.reserved,
            ),
            Account(
                entity="instances",
                taken_in=len(self.groups),
                kept=states["valid"],
                reserved=states["reserve"],
            ),
            Account(
                entity="pairs",
                taken_in=good + similar,
                kept=len(self.pairs),
                rejected={"too_similar": similar} if similar else {},
                not_sampled=total["pairs not sampled"],
            ),
        )
        tables = {
            "_work/images/filtered": images.take(pa.array(self.kept, pa.int64())),
            "pairs": pa.Table.from_pylist(self.pairs, TABLES["pairs"]),
            "groups": pa.Table.from_pylist(self.groups, TABLES["groups"]),
            "rejects/filter": pa.Table.from_pylist(self.rejects, TABLES["rejects"]),
        }
        return StageResult(tables, accounts, self.counts)
