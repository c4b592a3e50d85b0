"""The shown queries of a report: drawn by seed, with thumbnails that fit the page's size."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from infra.base.errors import OacirError
from infra.base.html import data_uri, jpeg, thumbnail_level
from infra.base.versions import Version
from pipelines.retrieval.compared import Compared
from pipelines.retrieval.inputs import read_image
from pipelines.retrieval.picture import WORDS, Verdict, scaled_with_box

if TYPE_CHECKING:
    from PIL import Image

SHOWN = 10
"""Ranked images shown of each model."""
REFERENCE_PX, KEPT_PX = 280, 160
REFERENCE_QUALITY = 80


def draw(quadruples: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """`count` queries by seed, as evenly over the domains as they allow, in order of domain and query id."""
    by_domain: dict[str, list[Mapping[str, Any]]] = {}
    for row in sorted(quadruples, key=lambda r: _lot(seed, r["query_id"])):
        by_domain.setdefault(row["domain"], []).append(row)
    drawn: list[Mapping[str, Any]] = []
    turn = 0
    while len(drawn) < min(count, len(quadruples)):
        drawn += [by_domain[d][turn] for d in sorted(by_domain) if turn < len(by_domain[d])]
        turn += 1
    return sorted(drawn[:count], key=lambda r: (r["domain"], r["query_id"]))


def cards(
    dataset: Version, compared: Sequence[Compared], split: str, count: int, seed: int, budget_bytes: int
) -> tuple[list[dict[str, Any]], int]:
    """What the page shows of each drawn query, and how many images could not be read (shown as blanks)."""
    rows = [q for q in dataset.table("quadruples").to_pylist() if q["split"] == split]
    return cards_of(dataset, compared, draw(rows, count, seed), budget_bytes, SHOWN)


def cards_of(
    dataset: Version,
    compared: Sequence[Compared],
    drawn: Sequence[Mapping[str, Any]],
    budget_bytes: int,
    depth: int,
) -> tuple[list[dict[str, Any]], int]:
    """What a page shows of these queries (rows of `quadruples`), the first `depth` images of each model's ranking.

    Returns:
        a card for each query, in their order, and how many images could not be read (shown as blanks).
    """
    if not drawn:
        return [], 0
    uri_of = _column(dataset, "images", "uri")
    instance_of = _column(dataset, "gallery", "instance_id")
    shown = [
        {one.label: one.rankings[q["query_id"]]["candidate_ids"][:depth] for one in compared} for q in drawn
    ]
    album = _Album(uri_of, len(drawn) * (1 + depth * len(compared)), budget_bytes, drawn, shown)
    found = [
        {
            "id": q["query_id"],
            "domain": q["domain"],
            "category": q["category"],
            "text": q["modification_text"],
            "reference": album.reference(q["reference_id"], q["reference_box"]),
            "target": album.thumbnail(q["target_ids"][0]),
            "models": [_answer(one, q, instance_of, album, depth) for one in compared],
        }
        for q in drawn
    ]
    return found, len(album.unreadable)


def _answer(
    one: Compared, asked: Mapping[str, Any], instance_of: Mapping[str, str], album: _Album, depth: int
) -> dict[str, Any]:
    ranking = one.rankings[asked["query_id"]]
    hits = []
    pairs = zip(ranking["candidate_ids"][:depth], ranking["scores"], strict=False)
    for rank, (image_id, score) in enumerate(pairs, 1):
        verdict: Verdict = "other"
        if image_id == asked["target_ids"][0]:
            verdict = "target"
        elif instance_of.get(image_id) == asked["instance_id"]:
            verdict = "instance"
        hits.append(
            {
                "rank": rank,
                "score": score,
                "verdict": verdict,
                "word": WORDS[verdict],
                "image": album.thumbnail(image_id),
            }
        )
    beta = ranking["beta"]
    return {
        "label": one.label,
        "target_rank": ranking["target_rank"],
        "instance_rank": ranking["instance_rank"],
        "beta": None if beta is None else (min(beta), max(beta)),
        "hits": hits,
    }


class _Album:
    """Images of the page as data-URIs; each is decoded once and kept small."""

    def __init__(
        self,
        uri_of: Mapping[str, str],
        count: int,
        budget_bytes: int,
        drawn: Sequence[Mapping[str, Any]],
        shown: Sequence[Mapping[str, Sequence[str]]],
    ) -> None:
        self.uri_of = uri_of
        self.unreadable: set[str] = set()
        self._small: dict[str, Image.Image | None] = {}
        self._uris: dict[str, str] = {}
        wanted = [q["target_ids"][0] for q in drawn]
        wanted += [image_id for by_label in shown for ids in by_label.values() for image_id in ids]
        samples = [image for image_id in wanted if (image := self._kept(image_id)) is not None]
        references = len(drawn) * 4 * REFERENCE_PX * REFERENCE_PX // 25
        self.level = thumbnail_level(samples, count, max(0, budget_bytes - references))

    def thumbnail(self, image_id: str) -> str | None:
        """The image as a data-URI; None where it cannot be read."""
        image = self._kept(image_id)
        if image is None:
            return None
        if image_id not in self._uris:
            self._uris[image_id] = data_uri(jpeg(image, *self.level), "image/jpeg")
        return self._uris[image_id]

    def reference(self, image_id: str, box: Sequence[float] | None) -> str | None:
        """The reference with its box drawn, if it has one, larger than the thumbnails; None where it cannot be read."""
        image = self._read(image_id, None)
        if image is None:
            return None
        drawn = scaled_with_box(image, box, REFERENCE_PX)
        return data_uri(jpeg(drawn, REFERENCE_PX, REFERENCE_QUALITY), "image/jpeg")

    def _kept(self, image_id: str) -> Image.Image | None:
        if image_id not in self._small:
            image = self._read(image_id, KEPT_PX)
            if image is not None:
                image.thumbnail((KEPT_PX, KEPT_PX))
            self._small[image_id] = image
        return self._small[image_id]

    def _read(self, image_id: str, target_px: int | None) -> Image.Image | None:
        try:
            return read_image(self.uri_of[image_id], target_px)
        except OacirError:  # a moved photo must not cost the whole page: it is counted and shown as a blank
            self.unreadable.add(image_id)
            return None


def _column(dataset: Version, table: str, column: str) -> dict[str, str]:
    rows = dataset.table(table, ["image_id", column])
    return dict(zip(rows["image_id"].to_pylist(), rows[column].to_pylist(), strict=True))


def _lot(seed: int, query_id: str) -> str:
    return hashlib.sha256(f"{seed}\0{query_id}".encode()).hexdigest()
