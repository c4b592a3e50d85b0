"""Stage 4, galleries: per domain and split (dev, test), references and targets of the split's queries + distractors."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.base.accounts import Account
from pipelines.annotate import draw, of_instances
from pipelines.config import GalleryOptions
from pipelines.filter import matrix
from pipelines.records import TABLES
from pipelines.stages import Part, Stage, StageResult, read_parts

SPLITS = ("dev", "test")
ASKED = "_work/asked"
ASKED_IMAGES = 20_000
"""References and targets of a gallery that candidates are held against at most: 40 MB of offline descriptors."""
STEPS, DRAW_BITS = 10_000, 48


def gallery_id(domain: str, split: str) -> str:
    """The name of a gallery."""
    return f"{domain}/{split}"


def domain_of(place: str) -> str:
    """The domain of a gallery, from its name."""
    return place.rsplit("/", 1)[0]


def gallery_hash(image_ids: Iterable[str]) -> str:
    """SHA-256 (hex) over the sorted image ids, a line feed after each: names exactly what is ranked."""
    digest = hashlib.sha256()
    for image_id in sorted(image_ids):
        digest.update(image_id.encode() + b"\n")
    return digest.hexdigest()


@dataclass
class CandidateStage(Stage):
    """Instances without a query → images that may become distractors, with the rank in which they enter.

    These are the reserved instances, and valid ones of which no pair could be annotated: nothing is trained on them.
    Of a category no more are given for a gallery than it may hold in all.
    """

    options: GalleryOptions
    seed: int
    name = "candidates"
    inputs: ClassVar[tuple[str, ...]] = ("_work/images/filtered", "instances", "quadruples")
    shared: ClassVar[tuple[str, ...]] = ("splits", "near_duplicates")
    outputs = ("_work/distractors/candidates",)
    _twins: set[str] = field(default_factory=set, init=False, repr=False)

    def setup(self) -> None:
        """Remember the images that another instance holds too, nearly or exactly."""
        self._twins = set(self.common["near_duplicates"]["image_id"].to_pylist())

    def __call__(self, part: Part) -> StageResult:
        """Rank the part's images."""
        busy = set(part.tables["quadruples"]["instance_id"].to_pylist())
        domains = _column(part.tables["_work/images/filtered"], "domain")
        galleries = of_instances(self.common["splits"], "gallery", part.tables["instances"]["instance_id"])
        entries: list[dict[str, Any]] = []
        for row in part.tables["instances"].select(["image_id", "instance_id", "category"]).to_pylist():
            image_id = row["image_id"]
            if row["instance_id"] in busy or image_id not in domains or image_id in self._twins:
                continue
            place = gallery_id(domains[image_id], galleries[row["instance_id"]])
            entries.append({"gallery_id": place, "image_id": image_id, "category": row["category"]})
        found: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for entry, rank in zip(entries, self.ranks(entries, part), strict=True):
            found.setdefault((entry["gallery_id"], entry["category"]), []).append(entry | {"rank": rank})
        rows: list[dict[str, Any]] = []
        for (place, _), group in sorted(found.items()):
            most = self.options.most(domain_of(place))
            rows += sorted(group, key=lambda r: (r["rank"], r["image_id"]))[:most]
        return StageResult(
            {"_work/distractors/candidates": pa.Table.from_pylist(rows, TABLES["distractors"])}
        )

    def ranks(self, entries: Sequence[Mapping[str, Any]], part: Part) -> list[int]:  # noqa: ARG002
        """A seeded draw for each candidate; the lowest enter first."""
        return [draw(self.seed, "distractor", entry["image_id"]) for entry in entries]


@dataclass
class HardCandidateStage(CandidateStage):
    """The same, ranked by how much a candidate looks like what the gallery is asked for."""

    inputs: ClassVar[tuple[str, ...]] = (*CandidateStage.inputs, "descriptors")
    shared: ClassVar[tuple[str, ...]] = (*CandidateStage.shared, ASKED)
    _asked: dict[str, NDArray[np.float32]] = field(default_factory=dict, init=False, repr=False)

    def setup(self) -> None:
        """Remember the descriptors of each gallery's references and targets, too."""
        super().setup()
        table = self.common[ASKED]
        for place in table["gallery_id"].unique().to_pylist():
            self._asked[place] = matrix(table.filter(pc.equal(table["gallery_id"], place))["descriptor"])

    def ranks(self, entries: Sequence[Mapping[str, Any]], part: Part) -> list[int]:
        """The distance to the nearest reference or target in ten thousandths, then a seeded draw.

        Coarse steps, so that the last bits of a product, which differ between machines, decide nothing.
        """
        near = np.full(len(entries), -1.0)
        described = part.tables["descriptors"]
        places = np.array([entry["gallery_id"] for entry in entries])
        for place in sorted(set(places.tolist()) & self._asked.keys()):
            here = np.flatnonzero(places == place)
            ids = pa.array([entries[i]["image_id"] for i in here.tolist()], pa.string())
            vectors = matrix(described["descriptor"].take(pc.index_in(ids, value_set=described["image_id"])))
            near[here] = (vectors @ self._asked[place].T).max(axis=1)
        steps = np.rint((1.0 - near) * STEPS).astype(np.int64).tolist()
        luck = super().ranks(entries, part)
        return [
            (far << DRAW_BITS) | (drawn >> (64 - DRAW_BITS)) for far, drawn in zip(steps, luck, strict=True)
        ]


def gather_asked(version_url: str, parts: int, seed: int) -> pa.Table:
    """Descriptors of the references and targets of the dev and test galleries (gallery_id, descriptor).

    At most ASKED_IMAGES of a gallery, by a seeded draw of their names: every worker holds them.
    """
    kept: dict[str, list[tuple[int, str, Any]]] = {}
    tables = zip(
        read_parts(version_url, "quadruples", parts, ["domain", "split", "reference_id", "target_ids"]),
        read_parts(version_url, "descriptors", parts, ["image_id", "descriptor"]),
        strict=True,
    )
    for quadruples, descriptors in tables:
        places: dict[str, str] = {}
        for row in quadruples.to_pylist():
            if row["split"] in SPLITS:
                used = [row["reference_id"], *row["target_ids"]]
                places |= dict.fromkeys(used, gallery_id(row["domain"], row["split"]))
        names = pa.array(list(places), pa.string())
        wanted = descriptors.filter(pc.is_in(descriptors["image_id"], value_set=names))
        vectors = matrix(wanted["descriptor"]) if len(wanted) else ()
        for image_id, vector in zip(wanted["image_id"].to_pylist(), vectors, strict=True):
            drawn = draw(seed, "asked", image_id), image_id, vector.copy()  # a view would keep the whole part
            kept.setdefault(places[image_id], []).append(drawn)
        for place, found in kept.items():
            kept[place] = sorted(found, key=lambda f: f[:2])[:ASKED_IMAGES]
    rows = [
        {"gallery_id": place, "descriptor": vector}
        for place, found in sorted(kept.items())
        for *_, vector in found
    ]
    schema = pa.schema([("gallery_id", pa.string()), ("descriptor", pa.list_(pa.float32()))])
    return pa.Table.from_pylist(rows, schema)


def choose_distractors(
    candidates: Iterable[pa.Table], queries: Mapping[str, Mapping[str, int]], options: GalleryOptions
) -> tuple[list[dict[str, Any]], dict[str, dict[str, int]]]:
    """Fill each gallery with distractors up to its limit, their categories distributed as the queries' are.

    Each category gets its share of the limit (largest remainders), the lowest-ranked candidates first. What a category
    cannot fill goes to the other categories of the queries, then to any category of the domain, lowest rank first.
    Memory is bounded by the galleries, not by the candidates.

    Args:
        candidates: tables of `records.DISTRACTORS`, in any order.
        queries: gallery → category → number of queries; galleries without queries get no distractor.
        options: most distractors of each gallery.

    Returns:
        The chosen rows, sorted by image, and per gallery how many are matched (a category of the queries) and other.
    """
    pools: dict[str, dict[str, list[tuple[int, str]]]] = {g: {} for g in queries}
    for table in candidates:
        touched = set()
        for row in table.to_pylist():
            if row["gallery_id"] in pools:
                pool = pools[row["gallery_id"]].setdefault(row["category"], [])
                pool.append((row["rank"], row["image_id"]))
                touched.add((row["gallery_id"], row["category"]))
        for place, category in touched:
            pool = pools[place][category]
            pool.sort()
            del pool[options.most(domain_of(place)) :]
    chosen: list[dict[str, Any]] = []
    figures: dict[str, dict[str, int]] = {}
    for place, by_category in sorted(pools.items()):
        picked: list[tuple[int, str, str]] = []
        left: list[tuple[bool, int, str, str]] = []
        limit = options.most(domain_of(place))
        quotas = _quotas(queries[place], limit)
        for category, pool in by_category.items():
            quota = quotas.get(category, 0)
            picked += [(rank, image, category) for rank, image in pool[:quota]]
            left += [(category not in queries[place], rank, image, category) for rank, image in pool[quota:]]
        picked += [
            (rank, image, category) for _, rank, image, category in sorted(left)[: limit - len(picked)]
        ]
        matched = sum(category in queries[place] for *_, category in picked)
        figures[place] = {"matched": matched, "other": len(picked) - matched}
        chosen += [
            {"gallery_id": place, "image_id": image, "category": category, "rank": rank}
            for rank, image, category in picked
        ]
    return sorted(chosen, key=lambda r: (r["gallery_id"], r["image_id"])), figures


def _quotas(queries: Mapping[str, int], limit: int) -> dict[str, int]:
    """Shares of `limit` in proportion to the queries, by largest remainders (ties by name)."""
    total = sum(queries.values())
    quotas = {c: limit * n // total for c, n in queries.items()}
    rest = sorted(queries, key=lambda c: (-(limit * queries[c] % total), c))[: limit - sum(quotas.values())]
    return {c: q + (c in rest) for c, q in quotas.items()}


@dataclass
class GalleryStage(Stage):
    """Quadruples and chosen distractors → galleries, and the images that the benchmark uses, with their splits."""

    name = "gallery"
    inputs = ("_work/images/filtered", "instances", "quadruples")
    shared = ("_work/distractors/chosen", "near_duplicates")
    outputs = ("gallery", "images")
    _chosen: dict[str, str] = field(default_factory=dict, init=False, repr=False)
    _gone: pa.Array = field(default_factory=lambda: pa.array([], pa.string()), init=False, repr=False)

    def setup(self) -> None:
        """Remember the distractors, and the images that gave way to near-duplicates in other splits."""
        table = self.common["_work/distractors/chosen"]
        self._chosen = dict(zip(table["image_id"].to_pylist(), table["gallery_id"].to_pylist(), strict=True))
        near = self.common["near_duplicates"]
        self._gone = near.filter(near["rejected"])["image_id"].combine_chunks()

    def __call__(self, part: Part) -> StageResult:
        """The part's share of the galleries and images."""
        images = part.tables["_work/images/filtered"]
        images = images.filter(pc.invert(pc.is_in(images["image_id"], value_set=self._gone)))
        splits: dict[str, str] = {}
        for row in part.tables["quadruples"].select(["split", "reference_id", "target_ids"]).to_pylist():
            splits |= dict.fromkeys([row["reference_id"], *row["target_ids"]], row["split"])
        rows: list[dict[str, Any]] = []
        domains = _column(images, "domain")
        for row in part.tables["instances"].select(["image_id", "instance_id", "category"]).to_pylist():
            image_id = row["image_id"]
            if splits.get(image_id) in SPLITS:
                place = gallery_id(domains[image_id], splits[image_id])
                rows.append(row | {"gallery_id": place, "is_distractor": False})
            elif image_id in self._chosen:
                rows.append(row | {"gallery_id": self._chosen[image_id], "is_distractor": True})
                splits[image_id] = "reserve"
        for row in rows:
            row["split"] = row["gallery_id"].rsplit("/", 1)[1]
        used = [splits.get(i) for i in images["image_id"].to_pylist()]
        where = images.schema.get_field_index("split")
        marked = images.set_column(where, images.schema.field("split"), pa.array(used, pa.string()))
        marked = marked.filter(pc.is_valid(marked["split"]))
        account = Account(
            entity="images", taken_in=len(images), kept=len(marked), not_sampled=len(images) - len(marked)
        )
        counts: dict[str, Counter[str]] = {}
        for domain, split in zip(marked["domain"].to_pylist(), marked["split"].to_pylist(), strict=True):
            counts.setdefault(domain, Counter())[f"images {split}"] += 1
        return StageResult(
            {"gallery": pa.Table.from_pylist(rows, TABLES["gallery"]), "images": marked}, [account], counts
        )


def _column(images: pa.Table, name: str) -> dict[str, str]:
    return dict(zip(images["image_id"].to_pylist(), images[name].to_pylist(), strict=True))
