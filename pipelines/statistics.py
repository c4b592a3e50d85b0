"""What a benchmark is made of, in numbers: sizes by domain as the paper's Tables 5 and 6 state them, and distributions.

Tables are read one file at a time; held are 24 bytes for each text and each image that a quadruple uses.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.base import storage
from infra.base.versions import Version

TRAINING, TEST = ("train", "dev"), "test"
"""The release has no dev split: what is held out of training for choosing counts as training."""
COSINE_BINS, SHARE_BINS = 100, 25
COSINE_EDGES = np.linspace(-1.0, 1.0, COSINE_BINS + 1)
SHARE_EDGES = np.linspace(0.0, 1.0, SHARE_BINS + 1)

Counts = NDArray[np.int64]


@dataclass
class Part:
    """Quadruples of one domain and split."""

    quadruples: int = 0
    images: int = 0
    instances: int = 0
    words: int = 0
    words_most: int = 0
    texts: int = 0
    """Distinct ones."""
    categories: Counter[str] = field(default_factory=Counter)
    """Category → quadruples."""


@dataclass
class GalleryPart:
    """One gallery."""

    images: int = 0
    distractors: int = 0
    instances: set[str] = field(default_factory=set)
    distractor_instances: set[str] = field(default_factory=set)
    categories: Counter[str] = field(default_factory=Counter)
    """Category → distractors."""


@dataclass
class Statistics:
    """Everything that was counted, by domain."""

    parts: dict[tuple[str, str], Part] = field(default_factory=dict)
    """(domain, split) → its quadruples."""
    galleries: dict[tuple[str, str], GalleryPart] = field(default_factory=dict)
    """(domain, split) → its gallery."""
    words: dict[str, Counter[int]] = field(default_factory=dict)
    """Domain → words of a text → texts."""
    images_of_an_instance: dict[str, Counter[int]] = field(default_factory=dict)
    """Domain → images that quadruples use of an instance → instances."""
    cosines: dict[str, Counts] = field(default_factory=dict)
    """Domain → pairs in each bin of COSINE_EDGES."""
    box_shares: dict[str, Counts] = field(default_factory=dict)
    """Domain → quadruples whose reference box takes that share of the image, in bins of SHARE_EDGES."""

    @property
    def domains(self) -> list[str]:
        """Every domain that has a quadruple or a gallery, sorted."""
        return sorted({d for d, _ in (*self.parts, *self.galleries)})

    def training(self, domain: str) -> Part:
        """Train and dev of a domain together."""
        return add(self.parts.get((domain, split), Part()) for split in TRAINING)

    def test(self, domain: str) -> Part:
        """The test quadruples of a domain."""
        return self.parts.get((domain, TEST), Part())


def add(parts: Iterable[Part]) -> Part:
    """Parts that share no image, instance or text, together."""
    total = Part()
    for part in parts:
        for name in ("quadruples", "images", "instances", "words", "texts"):
            setattr(total, name, getattr(total, name) + getattr(part, name))
        total.words_most = max(total.words_most, part.words_most)
        total.categories.update(part.categories)
    return total


def measure(dataset: Version) -> Statistics:
    """Count everything."""
    found = Statistics()
    _quadruples(dataset, found)
    for table in dataset.tables("gallery"):
        for row in table.to_pylist():
            domain, _, split = row["gallery_id"].rpartition("/")
            gallery = found.galleries.setdefault((domain, split), GalleryPart())
            gallery.images += 1
            if row["is_distractor"]:
                gallery.distractors += 1
                gallery.distractor_instances.add(row["instance_id"])
                gallery.categories[row["category"]] += 1
            else:
                gallery.instances.add(row["instance_id"])
    for table in dataset.tables("pairs", ["domain", "similarity"]):
        for domain in table["domain"].unique().to_pylist():
            cosine = table.filter(pc.equal(table["domain"], domain))["similarity"].to_numpy()
            counts, _ = np.histogram(np.clip(cosine, -1.0, 1.0), COSINE_EDGES)
            found.cosines[domain] = found.cosines.get(domain, np.zeros(COSINE_BINS, np.int64)) + counts
    return found


class _Uses:
    """Which images the quadruples of a domain and split use of which instance, and their texts, as 64-bit hashes."""

    def __init__(self) -> None:
        self.pairs: list[NDArray[np.uint64]] = []
        self.texts: list[NDArray[np.uint64]] = []

    def add(self, rows: Sequence[Mapping[str, Any]]) -> None:
        pairs = [
            (_key(row["instance_id"]), _key(image_id))
            for row in rows
            for image_id in (row["reference_id"], *row["target_ids"])
        ]
        texts = [_key(row["modification_text"]) for row in rows]
        self.pairs.append(np.unique(np.array(pairs, np.uint64), axis=0))
        self.texts.append(np.unique(np.array(texts, np.uint64)))

    def count(self, part: Part) -> Counter[int]:
        """Fill in what is distinct; images of an instance → instances."""
        pairs = np.unique(np.concatenate(self.pairs), axis=0)
        _, images = np.unique(pairs[:, 0], return_counts=True)
        part.instances, part.images = len(images), len(np.unique(pairs[:, 1]))
        part.texts = len(np.unique(np.concatenate(self.texts)))
        return Counter(images.tolist())


def _quadruples(dataset: Version, found: Statistics) -> None:
    uses: dict[tuple[str, str], _Uses] = {}
    sizes = _Sizes(dataset)
    for path in dataset.table_files("quadruples"):
        rows = storage.read_table(dataset.path(path)).to_pylist()
        size_of = sizes.of({r["reference_id"] for r in rows}, path)
        here: dict[tuple[str, str], list[dict[str, Any]]] = {}
        shares: dict[str, list[float]] = {}
        for row in rows:
            place = (row["domain"], row["split"])
            here.setdefault(place, []).append(row)
            part = found.parts.setdefault(place, Part())
            words = len(row["modification_text"].split())
            part.quadruples += 1
            part.words += words
            part.words_most = max(part.words_most, words)
            part.categories[row["category"]] += 1
            found.words.setdefault(row["domain"], Counter())[words] += 1
            if row["reference_box"] and row["reference_id"] in size_of:
                share = _share(row["reference_box"], *size_of[row["reference_id"]])
                shares.setdefault(row["domain"], []).append(share)
        for place, group in here.items():
            uses.setdefault(place, _Uses()).add(group)
        for domain, values in shares.items():
            counts, _ = np.histogram(values, SHARE_EDGES)
            found.box_shares[domain] = found.box_shares.get(domain, np.zeros(SHARE_BINS, np.int64)) + counts
    for place, used in uses.items():
        images = used.count(found.parts[place])
        found.images_of_an_instance.setdefault(place[0], Counter()).update(images)


class _Sizes:
    """Width and height of images: those of the table's part of the same number, or where they lie elsewhere of all."""

    def __init__(self, dataset: Version) -> None:
        self.dataset = dataset
        self.parts = {p.rsplit("/", 1)[-1]: p for p in dataset.table_files("images")}
        self.all: dict[str, tuple[int, int]] = {}

    def of(self, wanted: set[str], path: str) -> Mapping[str, tuple[int, int]]:
        here = self.parts.get(path.rsplit("/", 1)[-1])
        if here is not None and not self.all:
            near = self._read([here])
            if wanted <= near.keys():
                return near
        self.all = self.all or self._read(self.dataset.table_files("images"))
        return self.all

    def _read(self, paths: list[str]) -> dict[str, tuple[int, int]]:
        columns = ["image_id", "width", "height"]
        tables = [storage.read_table(self.dataset.path(p), columns) for p in paths]
        table = pa.concat_tables(tables) if tables else pa.table({c: [] for c in columns})
        names, widths, heights = (table[c].to_pylist() for c in columns)
        return dict(zip(names, zip(widths, heights, strict=True), strict=True))


def _share(box: list[float], width: int, height: int) -> float:
    """The share of the image that the box takes."""
    return min(1.0, max(0.0, (box[2] - box[0]) * (box[3] - box[1]) / (width * height)))


def _key(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())


def as_figures(found: Statistics) -> dict[str, Any]:
    """The numbers as JSON."""
    return {
        "splits": {
            f"{domain}/{split}": {
                "quadruples": p.quadruples,
                "images": p.images,
                "instances": p.instances,
                "mean_words": round(p.words / p.quadruples, 2),
                "most_words": p.words_most,
                "distinct_texts": p.texts,
                "categories": dict(sorted(p.categories.items())),
            }
            for (domain, split), p in sorted(found.parts.items())
        },
        "galleries": {
            f"{domain}/{split}": {
                "images": g.images,
                "distractors": g.distractors,
                "query_instances": len(g.instances),
                "distractor_instances": len(g.distractor_instances),
                "distractor_categories": dict(sorted(g.categories.items())),
            }
            for (domain, split), g in sorted(found.galleries.items())
        },
        "words": {d: dict(sorted(c.items())) for d, c in sorted(found.words.items())},
        "images_of_an_instance": {
            d: dict(sorted(c.items())) for d, c in sorted(found.images_of_an_instance.items())
        },
    }
