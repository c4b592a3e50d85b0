"""OACIRR as it was released (METHODS section 1), and what `oacir export --layout oacirr` writes.

`OACIRR-Subset/OACIRR-<Domain>/oacirr-<domain>/`, `OACIRR-Union/oacirr-union/`, `OACIRR-CrossDomain/WO-<Domain>/
oacirr-wo-<domain>/`, each with `quadruple_captions/caption_full.<split>.json`, `image_splits/split.<split>.json` and
`image_bounding_box/bounding_box.<split>.json`. Boxes are x1, y1, x2, y2 in pixels of the file as it is stored. The
parent folder of an image's path is its instance; its category is its queries', the domain's name where it has none (a
distractor).

Evaluation always is the subsets' val, one gallery a domain: all images of `split.val.json`, which are the references
and targets of the queries and the distractors. Training is what `train` names. Union does not say which domain a record
is of: the subsets' training splits do, by the image's name.

A sidecar `oacir.json` (see `sidecar`) gives every record its own id, split and provenance back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from pydantic import Field

from infra.base import storage
from infra.base.errors import OacirError
from pipelines.sources.released import sidecar
from pipelines.sources.released.base import (
    NOT_STATED,
    Release,
    ReleaseFiles,
    TrainingReleaseConfig,
    as_box,
    keys_of,
    relative,
)
from pipelines.sources.released.sidecar import Sidecar

SUBSET, UNION, CROSS = "OACIRR-Subset", "OACIRR-Union", "OACIRR-CrossDomain"
CAPTIONS = "quadruple_captions/caption_full.{}.json"
NAMES = "image_splits/split.{}.json"
BOXES = "image_bounding_box/bounding_box.{}.json"
RECORD = ("reference", "target", "modification_text_mllm", "object_category", "reference_bounding_box")
GROUP = "target_subset_vitG"
UNKNOWN_DOMAIN = "union"


class OacirrConfig(TrainingReleaseConfig):
    """OACIRR, released by its authors or exported from here."""

    kind: Literal["oacirr"] = "oacirr"
    """Which release this is."""
    train: str = Field("union", pattern=r"^(union|subset|wo-.+|none)$")
    """What is trained on: union, subset (all of them), wo-<domain> (all but one), or none."""
    domains: list[str] | None = None
    """Domains of the subsets to read, for evaluation and for train = subset; null reads all that are there."""


@dataclass(frozen=True)
class ReleaseSet:
    """One set of the release: where its annotations and images lie."""

    folder: str
    """Of its images, relative to the source."""
    annotations: str

    def path(self, pattern: str, split: str) -> str:
        """One of its annotation files."""
        return storage.join(self.annotations, pattern.format(split))


def subset(domain: str) -> ReleaseSet:
    """The set of one domain."""
    folder = f"{SUBSET}/OACIRR-{titled(domain)}"
    return ReleaseSet(folder, f"{folder}/oacirr-{domain}")


def union() -> ReleaseSet:
    """The joint training set."""
    return ReleaseSet(UNION, f"{UNION}/oacirr-union")


def without(domain: str) -> ReleaseSet:
    """The leave-one-domain-out training set."""
    folder = f"{CROSS}/WO-{titled(domain)}"
    return ReleaseSet(folder, f"{folder}/oacirr-wo-{domain}")


def titled(domain: str) -> str:
    """A domain's name as the release's folders write it."""
    return domain[:1].upper() + domain[1:]


def read(config: OacirrConfig) -> Release:
    """See the module; images lie in the folders of their sets, training images also where another set has them.

    Raises:
        OacirError: no such set, a file that is not of this layout, or a sidecar that does not fit.
    """
    files = ReleaseFiles(config)
    release = Release("oacirr", "CC BY 4.0", files)
    found = _domains(files)
    domains = found if config.domains is None else config.domains
    if missing := [d for d in domains if d not in found]:
        raise OacirError(f"{files.source}: no subset of {', '.join(missing)}; there are: {', '.join(found)}")
    reader = _Reader(release, sidecar.open_sidecar(files))
    for domain in domains:
        reader.names_of_training(domain)
    for domain in domains:
        reader.read(subset(domain), "val", domain)
    _read_training(reader, config.train, domains)
    if not release.records:
        raise OacirError(
            f"{files.source}: neither {SUBSET} nor {UNION} nor {CROSS} is there; set release.source to their folder"
        )
    if reader.restored is None:
        release.hold_out(config.dev_share, config.seed)
    else:
        reader.finish()
    return release


def _domains(files: ReleaseFiles) -> list[str]:
    found = []
    for folder in storage.list_folders(storage.join(files.source, SUBSET)):
        inner = storage.list_folders(storage.join(files.source, SUBSET, folder))
        found += [name.removeprefix("oacirr-") for name in inner if name.startswith("oacirr-")]
    return sorted(found)


def _read_training(reader: _Reader, train: str, domains: list[str]) -> None:
    if train == "subset":
        for domain in domains:
            if reader.files.has(subset(domain).path(CAPTIONS, "train")):
                reader.read(subset(domain), "train", domain)
    elif train != "none":
        chosen = union() if train == "union" else without(train.removeprefix("wo-"))
        if not reader.files.has(chosen.path(CAPTIONS, "train")):
            raise OacirError(
                f"{reader.files.source}: no {chosen.path(CAPTIONS, 'train')}; set release.train to a set that is there"
                " (union, subset, wo-<domain>) or to none"
            )
        reader.read(chosen, "train", None, left_out=train.removeprefix("wo-"))


class _Reader:
    """Reads sets into a release, with what the sidecar knows of each record."""

    def __init__(self, release: Release, restored: Sidecar | None) -> None:
        self.release, self.files, self.restored = release, release.files, restored
        self.domain_of: dict[str, str] = {}
        """Name of a training image → its domain."""
        self.category_of: dict[tuple[str, str], str] = {}
        self.known: dict[str, dict[str, Any]] = {}
        self.queries: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
        self.instances: list[dict[str, Any]] = []
        if restored is not None:
            release.annotation_licence = NOT_STATED
            self.instances = sidecar.read_rows(self.files, "instances")
            self.known = {row["name"]: row for row in sidecar.read_rows(self.files, "images")}
            for row in sidecar.read_rows(self.files, "queries"):
                self.queries.setdefault((row["domain"], row["file"]), {})[row["row"]] = row
            for row in self.instances:
                self.category_of[row["image_id"], row["instance_id"]] = row["category"]

    def names_of_training(self, domain: str) -> None:
        """Learn which domain the images of a subset's training split are of."""
        path = subset(domain).path(NAMES, "train")
        if self.files.has(path):
            self.domain_of |= dict.fromkeys(self.files.json(path), domain)

    def read(self, chosen: ReleaseSet, file: str, domain: str | None, left_out: str = "") -> None:
        """Read one split of a set; `domain` is None where its records are of several."""
        names = self.files.json(chosen.path(NAMES, file))
        records = self.files.json(chosen.path(CAPTIONS, file))
        boxes_path = chosen.path(BOXES, file)
        boxes = self.files.json(boxes_path) if self.files.has(boxes_path) else {}
        where = chosen.path(CAPTIONS, file)
        parsed = [keys_of(record, f"{where}, record {n}", RECORD) for n, record in enumerate(records)]
        categories = {image: row[3] for row in parsed for image in row[:2]}
        by_folder = {PurePosixPath(names[i]).parent.name: c for i, c in categories.items() if i in names}
        ids = {
            name: self._image(chosen, file, name, relative(path), domain, boxes.get(name), by_folder)
            for name, path in names.items()
        }
        if file == "val":
            self.release.rank_in(f"{domain}/test", ids.values())
        places = self._places(domain, file, left_out)
        for number, (record, row) in enumerate(zip(records, parsed, strict=True)):
            self.release.records[f"{chosen.annotations.rsplit('/', 1)[1]} {file}"] += 1
            known = places[number] if number < len(places) else None
            self._query(record, row, ids, domain, f"{where}, record {number}", number, known)

    def _places(self, domain: str | None, file: str, left_out: str) -> list[dict[str, Any]]:
        """What the sidecar knows of a file's records, in their order; Union holds the domains one after the other."""
        if self.restored is None:
            return []
        domains = [d for d in self.restored.domains if d != left_out] if domain is None else [domain]
        tables = [self.queries.get((d, file), {}) for d in domains]
        return [table[row] for table in tables for row in sorted(table)]

    def _image(
        self,
        chosen: ReleaseSet,
        file: str,
        name: str,
        path: str,
        domain: str | None,
        box: Any,
        categories: Mapping[str, str],
    ) -> str:
        domain = domain or self.domain_of.get(name, UNKNOWN_DOMAIN)
        known = self.known.get(name, {})
        folder = PurePosixPath(path).parent.name
        inside = path if path.startswith(f"{file}/") else f"{file}/{path}"
        places = [chosen, *([union(), subset(domain)] if file == "train" else [])]
        image_id = known.get("image_id", f"{domain}/{inside}")
        instance_id = known.get("instance_id", f"{domain}/{folder}")
        return self.release.image(
            image_id,
            known.get("domain", domain),
            self.files.first(storage.join(place.folder, path) for place in places),
            instance_id=instance_id,
            category=self.category_of.get((image_id, instance_id), categories.get(folder)),
            box=as_box(box),
            licence=known.get("licence") if known else "CC BY 4.0",
            attribution=known.get("attribution") if known else "OACIRR, Yang et al., CVPR 2026",
        )

    def _query(
        self,
        record: Mapping[str, Any],
        row: tuple[Any, ...],
        ids: Mapping[str, str],
        domain: str | None,
        where: str,
        number: int,
        known: Mapping[str, Any] | None,
    ) -> None:
        reference, target, text, category, written = row
        domain = domain or self.domain_of.get(reference, UNKNOWN_DOMAIN)
        split = "test" if ".val." in where else "train"
        query_id = known["query_id"] if known else f"{domain}/{split}/{number:06d}"
        box = as_box(written)
        unnamed = [name for name in (reference, target) if name not in ids]
        if unnamed:
            self.release.refuse(query_id, "missing_image", f"{unnamed[0]} is in no split file")
            return
        if box is None:
            self.release.refuse(query_id, "no_box", f"reference_bounding_box is {written!r}")
            return
        group = record.get(GROUP)
        named = group if group and all(name in ids for name in group) else None
        shown = self.release.images[ids[reference]]
        taken = self.release.ask(
            query_id,
            shown["domain"],
            split,
            ids[reference],
            [ids[target]],
            text,
            instance_id=shown["instance_id"],
            category=category,
            box=box,
            group_ids=None if named is None else [ids[name] for name in named],
            extra=None if group is None or named else {GROUP: group},
        )
        if known and taken:
            self._restore(known, where)

    def _restore(self, known: Mapping[str, Any], where: str) -> None:
        asked = self.release.quadruples[-1]
        same = ("query_id", "reference_id", "domain")
        if (
            any(asked[k] != known[k] for k in same)
            or asked["target_ids"] != known["target_ids"][: len(asked["target_ids"])]
        ):
            raise OacirError(
                f"{where}: {sidecar.FILE} knows another pair of images there; restore the release's files, or delete"
                f" {sidecar.FILE} to import them as any other release"
            )
        self.release.quadruples[-1] = asked | {
            name: known[name] for name in asked if name not in sidecar.IN_RELEASE
        }

    def finish(self) -> None:
        """Restore what is of no single record: galleries, instances, and how the dataset was made."""
        if self.restored is None:
            return
        release = self.release
        domains = {q["domain"] for q in release.quadruples}
        for row in sidecar.read_rows(self.files, "gallery"):
            if row["image_id"] in release.images and row["gallery_id"].rsplit("/", 1)[0] in domains:
                release.rank_in(row["gallery_id"], [row["image_id"]])
        boxes = {(row["image_id"], row["instance_id"]): row["box"] for row in release.instances}
        release.instances = [
            row | {"box": boxes.get((row["image_id"], row["instance_id"]), row["box"])}
            for row in self.instances
        ]
        release.accounts = dict(self.restored.accounts)
        release.tables = {
            path: storage.join(self.files.source, sidecar.FOLDER, "tables", path)
            for path in self.restored.tables
        }
