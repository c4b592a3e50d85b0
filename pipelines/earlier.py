"""What an earlier version of a benchmark already knows, so that an update opens and describes only what is new.

An image is known if the earlier listing says the same of it: name, instance, size, the store's change mark and box. A
pair is known if both its images have the same bytes and boxes. Everything else is decided anew over all images.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pydantic
from numpy.typing import NDArray

from infra.base import storage, versions
from infra.base.errors import OacirError
from pipelines.annotators.base import Annotation, PairToAnnotate, Rejection
from pipelines.descriptors import OfflineDescriber
from pipelines.images import ImageRejected
from pipelines.stages import part_path, read_parts
from pipelines.variants import Look

if TYPE_CHECKING:
    from pipelines.config import BuildRecipe

COLLECTED = "_work/images/collected"
SAME_IN_LISTING = ("domain", "instance_id", "size_bytes", "mark", "box", "mask_uri")
SAME_FOR_TEXTS = ("sha256", "box", "category", "mask_sha256")
TRIED_AGAIN = frozenset({"duplicate_content", "unreadable", "timeout"})
"""Verdicts that hang on other images, or on what a store or machine allowed at that time."""
Key = tuple[str, str]
"""Domain and instance: what a listing is sorted by."""


class KnownImage(NamedTuple):
    """What an earlier build found in an image, or why it refused it."""

    refusal: ImageRejected | None
    image: dict[str, Any]
    """Its row of `records.IMAGES`."""
    box: list[float] | None
    outside: str | None
    """Why the listed box was left out."""
    measures: dict[str, Any]
    phash: int
    vector: NDArray[np.float32]
    look: Look = Look()
    """What its variant hangs on."""


@dataclass(frozen=True)
class Earlier:
    """An earlier version, small enough to travel to every worker."""

    url: str
    content_hash: str
    parts: tuple[tuple[Key, Key], ...]
    """The first and last key of each part of its listing."""
    splits: Mapping[str, str]
    """Instance → train, dev or test that it is in, or was in before it fell to the reserve. Empty in the workers, which
    do not need it."""
    texts_of: frozenset[str]
    """Domains whose texts would be written again by the same annotator with the same options."""
    quadruples: str = "quadruples"
    """Where the annotator's own quadruples lie, before people."""
    same_detector: bool = False
    """Whether its boxes are those of the detector that is asked now."""

    def for_workers(self) -> Earlier:
        """The same without what only the driver needs."""
        return replace(self, splits={})

    def images(self, listing: pa.Table) -> dict[str, KnownImage]:
        """The known ones among the listed images; those with a mask are not, whose own change no listing states."""
        parts = self._overlapping(listing)
        columns = ["image_id", *SAME_IN_LISTING]
        rows = self._rows("listing", parts, [*columns, "category"], listing["image_id"])
        categories = {row["image_id"]: row.pop("category") for row in rows}
        before = {row["image_id"]: row for row in rows}
        same = {
            row["image_id"]
            for row in listing.select(columns).to_pylist()
            if row["mask_uri"] is None and before.get(row["image_id"]) == row
        }
        said = dict(zip(listing["image_id"].to_pylist(), listing["category"].to_pylist(), strict=True))
        names = pa.array(sorted(same), pa.string())
        refusals: dict[str, ImageRejected] = {}
        outside: dict[str, str] = {}
        for row in self._rows("rejects/collect", parts, None, names, "key"):
            if row["entity"] == "boxes":
                outside[row["key"]] = row["detail"]
            elif row["reason"] == "variant_unclear" and categories[row["key"]] != said[row["key"]]:
                continue  # what the labels are asked for names the category
            elif row["entity"] == "images" and row["reason"] not in TRIED_AGAIN:
                refusals[row["key"]] = ImageRejected(row["reason"], row["detail"])
        found = {
            name: KnownImage(refusal, {}, None, None, {}, 0, np.zeros(0, np.float32))
            for name, refusal in refusals.items()
        }
        tables = [self._by_id(t, parts, names) for t in (COLLECTED, "instances", "measures", "descriptors")]
        images, instances, measures, descriptors = tables
        for name, image in images.items():
            described = descriptors[name]
            found[name] = KnownImage(
                None,
                image,
                instances[name]["box"],
                outside.get(name),
                measures[name],
                described["phash"],
                np.array(described["descriptor"], np.float32),
                Look(
                    instances[name].get("variant"),
                    np.array(described["object"], np.float32) if described.get("object") else None,
                ),
            )
        return found

    def answers(
        self, listing: pa.Table, pairs: Sequence[PairToAnnotate]
    ) -> dict[str, Annotation | Rejection]:
        """The known ones among the pairs of a part, by their names."""
        asked = {p.pair_id: p for p in pairs if p.domain in self.texts_of}
        parts = self._overlapping(listing)
        used = {image["image_id"] for p in asked.values() for image in (p.reference, p.target)}
        names = pa.array(sorted(used), pa.string())
        before = self._by_id("instances", parts, names)
        for name, row in self._by_id(COLLECTED, parts, names).items():
            before[name] |= row
        if self.same_detector:  # to an annotator its boxes are those of the photos
            for name, row in self._by_id("boxes", parts, names).items():
                if row["state"] == "found":
                    before[name]["box"] = row["box"]
        ids = pa.array(sorted(asked), pa.string())
        answers: dict[str, Annotation | Rejection] = {}
        for row in self._rows("rejects/annotate", parts, None, ids, "key"):
            # the splits decide over near-duplicates; a machine or server may do better today
            if row["reason"] not in ("near_duplicate_across_splits", "timeout", "no_answer"):
                answers[row["key"]] = Rejection(row["reason"], row["detail"])
        for row in self._rows(self.quadruples, parts, None, ids, "query_id"):
            said = row["provenance"]
            answers[row["query_id"]] = Annotation(
                row["modification_text"],
                tuple(row["reference_box"]),
                said["annotator"],
                said["confidence"],
                json.loads(said["extra_json"] or "{}"),
                said["model"],
                said["prompt_sha256"],
            )
        return {
            name: answer
            for name, answer in answers.items()
            if all(_same(before, image) for image in (asked[name].reference, asked[name].target))
        }

    def boxes(self, listing: pa.Table, photos: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
        """Image → its row of `records.BOXES`, of the photos (image_id, sha256) of a part whose bytes are the same."""
        if not self.same_detector:
            return {}
        parts = self._overlapping(listing)
        names = pa.array(sorted(photo["image_id"] for photo in photos), pa.string())
        bytes_of = {name: row["sha256"] for name, row in self._by_id(COLLECTED, parts, names).items()}
        found = self._by_id("boxes", parts, names)
        return {
            name: found[name]
            for photo in photos
            if (name := photo["image_id"]) in found and bytes_of.get(name) == photo["sha256"]
        }

    def _overlapping(self, listing: pa.Table) -> list[int]:
        """Its parts that may hold instances of a part of the new listing."""
        if not len(listing):
            return []
        first, last = (
            (listing["domain"][i].as_py(), listing["instance_id"][i].as_py()) for i in (0, len(listing) - 1)
        )
        return [n for n, (begin, end) in enumerate(self.parts) if begin <= last and end >= first]

    def _rows(
        self, table: str, parts: Iterable[int], columns: list[str] | None, names: Any, key: str = "image_id"
    ) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = []
        for part in parts:
            found = storage.read_table(storage.join(self.url, part_path(table, part)), columns)
            rows += found.filter(pc.is_in(found[key], value_set=names)).to_pylist()
        return rows

    def _by_id(self, table: str, parts: Iterable[int], names: Any) -> dict[str, dict[str, Any]]:
        return {row["image_id"]: row for row in self._rows(table, parts, None, names)}


def _same(before: Mapping[str, Mapping[str, Any]], image: Mapping[str, Any]) -> bool:
    """Whether an image is to an annotator what it was."""
    known = before.get(image["image_id"])
    return known is not None and all(known.get(c) == image.get(c) for c in SAME_FOR_TEXTS)


def kept_splits(rows: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Instance → split that it has, or had before it fell to the reserve, from rows of `records.SPLITS`."""
    found = {r["instance_id"]: r.get("last_split") if r["split"] == "reserve" else r["split"] for r in rows}
    return {instance: split for instance, split in found.items() if split}


def open_earlier(root: str, reference: str, recipe: BuildRecipe) -> Earlier:
    """The earlier version that a recipe updates.

    Raises:
        VersionError: there is none.
        OacirError: it was not built, measured its images in another way, or its working tables are gone.
    """
    if "/" not in reference and not storage.exists(
        storage.join(storage.absolute(reference), versions.MANIFEST)
    ):
        raise OacirError(
            f"update = {reference}: a name alone means the newest version of it, which this build would soon be itself;"
            " say name/key (see `oacir data list`) or a path"
        )
    from pipelines.build import annotator_kind
    from pipelines.config import BuildRecipe as Recipe
    from pipelines.reviewing import ANNOTATED

    version = versions.resolve(root, "datasets", reference, holding="descriptors")
    try:
        before = Recipe.model_validate(version.manifest.recipe)
    except pydantic.ValidationError as error:
        raise OacirError(
            f"{version.url}: was made by a recipe that this code does not read ({version.manifest.code_version});"
            " build without update"
        ) from error
    for name in ("limits", "encoder", "variants"):
        old, new = (getattr(r, name).model_dump(exclude={"gpus"}) for r in (before, recipe))
        changed = [f"{name}.{k} ({old[k]}, now {v})" for k, v in new.items() if old[k] != v]
        if changed:
            raise OacirError(
                f"{version.url}: was built with another {', '.join(changed)}, so what it knows of its images does not"
                " hold; build without update"
            )
    described = version.manifest.figures.get("descriptor")
    if recipe.encoder.model is None and described != OfflineDescriber.name:
        raise OacirError(
            f"{version.url}: its images are described by {described}, today's descriptor is {OfflineDescriber.name};"
            " build without update"
        )
    parts = len(version.table_files("listing"))
    if not all(
        storage.exists(version.path(part_path(COLLECTED, p))) for p in {0, parts - 1}
    ):  # the first and the last stand for all: only a person deletes these
        raise OacirError(f"{version.url}: its working tables ({COLLECTED}) are gone; build without update")
    keys = []
    for table in read_parts(version.url, "listing", parts, ["domain", "instance_id"]):
        ends = [(table["domain"][i].as_py(), table["instance_id"][i].as_py()) for i in (0, len(table) - 1)]
        keys.append((ends[0], ends[1]))
    rows = version.table("splits").to_pylist()
    same_writer = (
        annotator_kind(before) == annotator_kind(recipe)
        and before.seed == recipe.seed
        and before.asked_as() == recipe.asked_as()
        and before.grounded_as() == recipe.grounded_as()
        and (recipe.chat is None or version.manifest.figures["chat"]["prompts_sha256"] == recipe.prompts())
    )
    return Earlier(
        url=version.url,
        content_hash=version.manifest.content_hash,
        parts=tuple(keys),
        same_detector=(
            before.grounding is not None
            and recipe.grounding is not None
            and before.grounding.model == recipe.grounding.model
        ),
        splits=kept_splits(rows),
        texts_of=frozenset(
            domain
            for domain in {r["domain"] for r in rows}
            if same_writer
            and before.thresholds.of(domain).max_words == recipe.thresholds.of(domain).max_words
        ),
        quadruples="quadruples" if before.people is None else ANNOTATED,
    )
