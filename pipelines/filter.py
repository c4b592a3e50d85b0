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
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.base.accounts import Account
from pipelines.config import DomainThresholds, Thresholds
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult

BLOCK_CELLS = 1 << 20
"""Cells of the cosine matrix held at a time; each takes about 30 bytes of working memory."""
LAST = np.uint64(2**64 - 1)
"""Rank of a pair that is no candidate."""


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
    """[images of the group] in how many ordered pairs, as the reference, the cosine exceeds τ_high."""
    nearest: NDArray[np.int64]
    """[images of the group] the most similar target of each; −1 where none is too similar."""
    nearest_cosine: NDArray[np.float32]
    """[images of the group] its cosine."""
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
    """Apply the thresholds to one instance, exactly, in blocked matrix products; memory grows with its images only.

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
        return _reserve(why, count, everyone, everyone[:0])
    close = np.zeros(count, np.int64)
    for rows, cosine in _cosines(vectors):
        close[rows] = (cosine > thresholds.tau_centric).sum(axis=1)
    centric = close >= thresholds.tau_count
    kept, dropped = everyone[~centric], everyone[centric]
    if len(kept) < thresholds.tau_valid:
        why = f"{len(kept)} of {count} images are not class-centric, tau_valid {thresholds.tau_valid}"
        return _reserve(why, count, kept, dropped)
    found = _pairs(vectors[kept], _marks(image_ids, boxed, seed)[kept], thresholds.tau_high, max_pairs)
    similar, nearest, cosines = np.zeros(count, np.int64), np.full(count, -1), np.zeros(count, np.float32)
    similar[kept], cosines[kept] = found.similar, found.nearest_cosine
    nearest[kept] = np.where(found.nearest < 0, -1, kept[found.nearest])
    good = len(kept) * (len(kept) - 1) - int(similar.sum())
    return GroupVerdict(
        state="valid" if good else "reserve",
        why="" if good else "every pair is too similar",
        kept=kept,
        class_centric=dropped,
        pairs=kept[found.pairs],
        similarity=found.cosine,
        too_similar=similar,
        nearest=nearest,
        nearest_cosine=cosines,
        not_sampled=good - len(found.pairs),
    )


def _reserve(why: str, count: int, kept: NDArray[np.int64], centric: NDArray[np.int64]) -> GroupVerdict:
    none, cosines = np.zeros((0, 2), np.int64), np.zeros(0, np.float32)
    nearest, nothing = np.full(count, -1), np.zeros(count, np.int64)
    return GroupVerdict(
        "reserve", why, kept, centric, none, cosines, nothing, nearest, np.zeros(count, np.float32), 0
    )


def _cosines(vectors: NDArray[np.float32]) -> Iterator[tuple[slice, NDArray[np.float32]]]:
    """Blocks of rows of the cosine matrix [b, n]; an image's cosine to itself is −1, so that it never counts."""
    height = max(1, BLOCK_CELLS // max(1, len(vectors)))
    for start in range(0, len(vectors), height):
        rows = slice(start, min(start + height, len(vectors)))
        cosine = vectors[rows] @ vectors.T
        cosine[np.arange(rows.stop - start), np.arange(start, rows.stop)] = -1.0
        yield rows, cosine


@dataclass(frozen=True)
class _Pairs:
    """The sample of a group's pairs, and what was too similar; numbers are positions among the kept images."""

    pairs: NDArray[np.int64]
    cosine: NDArray[np.float32]
    similar: NDArray[np.int64]
    nearest: NDArray[np.int64]
    nearest_cosine: NDArray[np.float32]


def _pairs(
    vectors: NDArray[np.float32], marks: NDArray[np.uint64], tau_high: float, max_pairs: int
) -> _Pairs:
    """The `max_pairs` pairs of lowest rank that are not too similar; only those are held beside one block."""
    count = len(vectors)
    best, rank, cosines = np.zeros(0, np.int64), np.zeros(0, np.uint64), np.zeros(0, np.float32)
    similar, nearest = np.zeros(count, np.int64), np.full(count, -1)
    nearest_cosine = np.zeros(count, np.float32)
    for rows, cosine in _cosines(vectors):
        near = cosine > tau_high
        similar[rows] = near.sum(axis=1)
        top = cosine.argmax(axis=1)
        highest = cosine[np.arange(len(top)), top]
        nearest[rows] = np.where(similar[rows] > 0, top, -1)
        nearest_cosine[rows] = np.where(similar[rows] > 0, highest, 0.0)
        block = _ranks(marks[rows, None], marks[None, :])
        block[near] = LAST
        block[np.arange(rows.stop - rows.start), np.arange(rows.start, rows.stop)] = LAST
        flat = block.ravel()
        bound = rank[-1] if len(rank) == max_pairs else LAST
        new = np.flatnonzero(flat < bound)
        if len(new) > max_pairs:
            new = new[flat[new] <= np.partition(flat[new], max_pairs - 1)[max_pairs - 1]]
        best = np.concatenate([best, new + rows.start * count])
        rank = np.concatenate([rank, flat[new]])
        cosines = np.concatenate([cosines, cosine.ravel()[new]])
        first = np.lexsort((best, rank))[:max_pairs]
        best, rank, cosines = best[first], rank[first], cosines[first]
    order = np.argsort(best)
    pairs = np.stack(np.divmod(best[order], count), axis=1)
    return _Pairs(pairs, cosines[order], similar, nearest, nearest_cosine)


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
            vectors = matrix(part.tables["descriptors"]["descriptor"][here])
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


def matrix(descriptors: pa.ChunkedArray) -> NDArray[np.float32]:
    """A column of descriptors of one width as [n, d]."""
    flat = pc.list_flatten(descriptors).to_numpy().astype(np.float32, copy=False)
    return flat.reshape(len(descriptors), -1)


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
        for i in np.flatnonzero(verdict.too_similar):
            nearest = f"nearest {image_ids[verdict.nearest[i]]}, cosine {verdict.nearest_cosine[i]:.4f}"
            self._reject("pairs", image_ids[i], "too_similar", nearest, int(verdict.too_similar[i]))
        row = {"instance_id": group.instance_id, "domain": domain, "category": group.category}
        row |= {"state": verdict.state, "found": len(image_ids), "images": len(verdict.kept)}
        row |= {"pairs": len(verdict.pairs), "boxed": int(group.boxed[verdict.pairs[:, 0]].sum())}
        self.groups.append(row)
        counts = self.counts.setdefault(domain, Counter())
        counts["instances " + verdict.state] += 1
        counts["class-centric images"] += len(verdict.class_centric)
        counts["pairs"] += len(verdict.pairs)
        counts["pairs too similar"] += int(verdict.too_similar.sum())
        counts["pairs not sampled"] += verdict.not_sampled
        self.reserved += len(verdict.kept) if verdict.state == "reserve" else 0

    def _reject(
        self, entity: str, key: str, reason: str, detail: str | None, records: int | None = None
    ) -> None:
        row = {"stage": "filter", "entity": entity, "key": key, "reason": reason, "detail": detail}
        self.rejects.append(row | {"records": records})

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
