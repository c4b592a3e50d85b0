"""Contact sheets: quadruples and rejects of a benchmark drawn by seed, with pictures small enough for one page."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.base import storage
from infra.base.errors import OacirError
from infra.base.html import JPEG_LEVELS, data_uri, jpeg, thumbnail_level
from infra.base.versions import Version
from pipelines.images import ImageLimits, ImageRejected, decode
from pipelines.retrieval.picture import scaled_with_box

if TYPE_CHECKING:
    from PIL import Image

KEPT_PX = 240
"""Longest side of an image as it is kept until the page's budget is known."""
LEVELS = ((KEPT_PX, 82), (190, 80), *JPEG_LEVELS)
LIMITS = ImageLimits(min_side_px=1, max_aspect=2.0**40)
"""What is shown of rejects too; a picture of too many pixels stays unopened here as it was in the build."""
PARTNER = re.compile(
    r"^(?:nearest (?P<nearest>.+), cosine|\d+ bits from (?P<near>.+) \(|same bytes as (?P<same>.+))"
)
"""The other image that a reject's detail speaks of."""

WORDS = {
    "no_identity": "nothing says which instance it shows",
    "bad_label": "what the collection says of it cannot be understood",
    "duplicate_name": "named twice in the collection",
    "not_a_file": "no file",
    "empty_file": "no bytes",
    "not_an_image": "no image by its content",
    "unsupported_format": "a format that is not read",
    "truncated": "cut short",
    "corrupt": "cannot be decoded",
    "too_many_pixels": "more pixels than allowed",
    "too_small": "smaller than allowed",
    "extreme_aspect": "too long or too wide",
    "unreadable": "cannot be read",
    "duplicate_content": "the same bytes as another image of its instance",
    "bad_mask": "its mask is none of this image",
    "timeout": "not done in the time that a record has; not opened here either",
    "box_outside": "the box lies outside the image; the image is kept without it",
    "variant_unclear": "shows no variant of its group's object clearly",
    "class_centric": "looks like too many others of its instance",
    "too_few_images": "too few images that can be read",
    "near_duplicate_across_splits": "nearly repeats an image of another split",
    "too_similar": "reference and target look the same",
    "missing_file": "named, but not there",
    "missing_image": "an image of it is not there",
    "target_is_reference": "its target is its reference",
    "outside_protocol": "no part of what the protocol scores",
    "no_box": "nothing says where the object is",
    "no_difference": "no difference that a sentence could state",
    "text_too_long": "the text has too many words",
    "text_names_instance": "the text names the instance",
    "no_text": "no text was given",
    "box_unsure": "the detector is not sure of its box; a person should look",
    "text_wrong_language": "the text is not English",
    "text_names_image": "the text speaks of the photos",
    "text_names_category": "the text names the kind of object",
    "text_repeats": "the text nearly repeats another one",
    "text_untrue": "the target does not bear the text out",
    "text_not_separating": "the text fits the reference as well",
    "bad_answer": "the model's answer has not the form asked for",
    "no_answer": "the model gave no answer",
    "not_visual": "the object cannot be told by eye alone",
    "person_rejected": "a person refused it",
    "people_disagree": "people judged it in different ways",
    "people_pending": "no person has judged it yet",
}
"""Reason → what it means, for people; one for each of `records.REASONS`."""


@dataclass
class Refused:
    """The rejects of one stage, entity and reason."""

    stage: str
    entity: str
    reason: str
    records: int = 0
    rows: list[dict[str, Any]] = field(default_factory=list)
    """Those drawn."""
    cards: list[dict[str, Any]] = field(default_factory=list)

    @property
    def words(self) -> str:
        """What the reason means."""
        return WORDS[self.reason]


@dataclass(frozen=True)
class Sheets:
    """What is shown."""

    quadruples: list[dict[str, Any]]
    refused: list[Refused]
    unreadable: int
    """Images that could not be read, shown as blanks."""


def sheets(dataset: Version, quadruples: int, rejects: int, seed: int, budget_bytes: int) -> Sheets:
    """Draw and picture.

    Args:
        dataset: the benchmark.
        quadruples: how many to show, evenly over the domains.
        rejects: how many of each reason.
        seed: of the draw.
        budget_bytes: of all pictures together, as they stand in the page.
    """
    drawn = draw_quadruples(dataset, quadruples, seed)
    refused = draw_rejects(dataset, rejects, seed)
    pairs = _pairs_of(dataset, {row["key"] for group in refused for row in group.rows})
    shown: list[tuple[dict[str, Any], list[str]]] = []
    for group in refused:
        for row in group.rows:
            images = _images_of(row, pairs)
            card = {"key": row["key"], "detail": row["detail"] or "", "ids": images}
            group.cards.append(card)
            shown.append((card, images))
    wanted = {i for q in drawn for i in (q["reference_id"], *q["target_ids"][:1])}
    album = _Album(find_uris(dataset, wanted | {i for _, ids in shown for i in ids}), budget_bytes)
    for query in drawn:
        album.keep(query["reference_id"], query["reference_box"])
        album.keep(query["target_ids"][0] if query["target_ids"] else None)
    for _, ids in shown:
        for image_id in ids:
            album.keep(image_id)
    for card, ids in shown:
        card["images"] = [{"id": i, "uri": album.uri(i)} for i in ids if i in album.known]
    cards = [
        {
            "id": q["query_id"],
            "domain": q["domain"],
            "split": q["split"],
            "category": q["category"],
            "text": q["modification_text"],
            "reference": album.uri(q["reference_id"], q["reference_box"]),
            "target": album.uri(q["target_ids"][0]) if q["target_ids"] else None,
            "annotator": (q["provenance"] or {}).get("annotator"),
        }
        for q in drawn
    ]
    return Sheets(cards, refused, len(album.unreadable))


def draw_quadruples(dataset: Version, count: int, seed: int) -> list[dict[str, Any]]:
    """`count` quadruples by seed, as evenly over the domains as they allow, in order of domain and name."""
    lots: dict[str, _Lots] = {}
    for table in dataset.tables("quadruples"):
        for row in table.to_pylist():
            lots.setdefault(row["domain"], _Lots(count)).add(_lot(seed, row["query_id"]), row)
    kept = {domain: lots[domain].drawn() for domain in sorted(lots)}
    turns = [rows[turn] for turn in range(count) for rows in kept.values() if turn < len(rows)]
    return sorted(turns[:count], key=lambda r: (r["domain"], r["query_id"]))


def draw_rejects(dataset: Version, count: int, seed: int) -> list[Refused]:
    """The rejects by stage, entity and reason, most records first, with `count` of each drawn by seed."""
    found: dict[tuple[str, str, str], Refused] = {}
    lots: dict[tuple[str, str, str], _Lots] = {}
    for table in dataset.tables("rejects"):
        for row in table.to_pylist():
            place = (row["stage"], row["entity"], row["reason"])
            found.setdefault(place, Refused(*place)).records += row.get("records") or 1
            lot = _lot(seed, f"{row['key']}\0{row['detail']}")
            lots.setdefault(place, _Lots(count)).add(lot, row)
    for place, group in found.items():
        group.rows = lots[place].drawn()
    return sorted(found.values(), key=lambda g: (-g.records, g.stage, g.reason))


class _Lots:
    """The rows with the lowest lots of any number of rows; few more than those are held."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.rows: list[tuple[str, dict[str, Any]]] = []

    def add(self, lot: str, row: dict[str, Any]) -> None:
        self.rows.append((lot, row))
        if len(self.rows) > 8 * (self.count + 1):
            self.rows = self._lowest()

    def drawn(self) -> list[dict[str, Any]]:
        return [row for _, row in self._lowest()]

    def _lowest(self) -> list[tuple[str, dict[str, Any]]]:
        return sorted(self.rows, key=lambda entry: entry[0])[: self.count]


def _pairs_of(dataset: Version, keys: set[str]) -> dict[str, tuple[str, str]]:
    """Reference and target of the pairs among some keys."""
    found: dict[str, tuple[str, str]] = {}
    names = pa.array(sorted(keys), pa.string())
    for table in dataset.tables("pairs", ["pair_id", "reference_id", "target_id"]):
        for row in table.filter(pc.is_in(table["pair_id"], value_set=names)).to_pylist():
            found[row["pair_id"]] = (row["reference_id"], row["target_id"])
    return found


def _images_of(row: Mapping[str, Any], pairs: Mapping[str, tuple[str, str]]) -> list[str]:
    """The images a reject is about: those of its pair, or itself and the other that its detail names."""
    if row["key"] in pairs:
        return list(pairs[row["key"]])
    if row["entity"] not in ("images", "pairs", "boxes") or row["reason"] == "timeout":
        return []  # what hung once is not opened again
    match = PARTNER.match(row["detail"] or "")
    other = next((v for v in match.groupdict().values() if v), None) if match else None
    return [row["key"], *([other] if other else [])]


def find_uris(dataset: Version, wanted: Iterable[str]) -> dict[str, str]:
    """Where images lie: as the benchmark's images say, for others (rejected ones) as the source's listing does."""
    left = set(wanted)
    found: dict[str, str] = {}
    for name in ("images", "listing"):
        for table in dataset.tables(name, ["image_id", "uri"]):
            if not left:
                return found
            mask = pc.is_in(table["image_id"], value_set=pa.array(sorted(left), pa.string()))
            for row in table.filter(mask).to_pylist():
                found[row["image_id"]] = row["uri"]
                left.discard(row["image_id"])
    return found


class _Album:
    """Pictures of the page: each image decoded once and kept small, then written at the size the budget allows."""

    def __init__(self, known: Mapping[str, str], budget_bytes: int) -> None:
        self.known, self.budget_bytes = known, budget_bytes
        self.unreadable: set[str] = set()
        self._small: dict[tuple[str, tuple[float, ...]], Image.Image | None] = {}
        self._level: tuple[int, int] | None = None

    def keep(self, image_id: str | None, box: Sequence[float] | None = None) -> None:
        """Read an image that the page will show."""
        if image_id is None or (image_id, tuple(box or ())) in self._small or image_id not in self.known:
            return
        small = None
        try:
            data = storage.read_bytes(self.known[image_id])
            image = decode(data, LIMITS, target_px=None if box else KEPT_PX).image
            small = scaled_with_box(image, box, KEPT_PX)
        except (OacirError, ImageRejected):  # gone, or rejected as unreadable: shown as a blank and counted
            self.unreadable.add(image_id)
        self._small[image_id, tuple(box or ())] = small

    def uri(self, image_id: str, box: Sequence[float] | None = None) -> str | None:
        """The image as a data-URI; None where it cannot be read."""
        image = self._small.get((image_id, tuple(box or ())))
        if image is None:
            return None
        if self._level is None:
            samples = [i for i in self._small.values() if i is not None]
            self._level = thumbnail_level(samples, len(samples), self.budget_bytes, LEVELS)
        return data_uri(jpeg(image, *self._level), "image/jpeg")


def _lot(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest()
