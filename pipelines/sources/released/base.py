"""What every released benchmark is read into: its images, queries and galleries, before an image is opened.

A reader is a small file with a config (`kind`) and a function `read(config, files) -> Release`. It speaks the release's
words only; existence, decoding, upright boxes, splits of images and the tables themselves are `pipelines/importing.py`.

Splits: the release's val is our test, its train is our train less what `hold_out` takes for dev, and a test set whose
targets a server keeps is `hidden`: queries without targets, to be answered, never to be scored here.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import PurePosixPath
from typing import Any

from pydantic import Field

from infra.base import storage
from infra.base.accounts import Account
from infra.base.config import Config
from infra.base.errors import OacirError
from pipelines.annotate import draw

Box = tuple[float, float, float, float]
NOT_STATED = "not stated"


class ReleaseConfig(Config):
    """What is said of every release."""

    source: str
    """URL of the folder with the release's annotation files, laid out as it was released."""
    images: str | None = None
    """URL of the folder with its images; null: where the release itself puts them, inside source."""
    licence: str | None = None
    """Licence of the images, where you know it; null keeps what the release says of each image."""
    attribution: str | None = None
    """Whom to name for the images; null keeps what the release says of each image."""


class TrainingReleaseConfig(ReleaseConfig):
    """A release with queries to train on."""

    dev_share: float = Field(0.05, ge=0.0, lt=1.0)
    """Share of a domain's training queries held out as dev, in whole groups that share no image and no instance."""
    seed: int = 0
    """Of that draw."""


class ReleaseFiles:
    """The files of a release: annotations that are read, and the images that lie there.

    `fingerprint` names what was read: the bytes of the annotation files, and of each listed image its path, size and
    change mark.
    """

    def __init__(self, config: ReleaseConfig, default_images: str = "") -> None:
        self.source = storage.absolute(config.source)
        self.images = storage.absolute(config.images or storage.join(self.source, default_images))
        self.licence, self.attribution = config.licence, config.attribution
        self._read: dict[str, str] = {}

    def has(self, path: str) -> bool:
        """Whether an annotation file is there."""
        return storage.exists(storage.join(self.source, path))

    def json(self, path: str, root: str | None = None) -> Any:
        """A JSON file of the source (or of another folder).

        Raises:
            OacirError: missing, or not JSON.
        """
        url = storage.join(root or self.source, path)
        try:
            return json.loads(self._bytes(url))
        except ValueError as error:
            raise OacirError(f"{url}: not valid JSON ({error}); fetch the release's file again") from error

    def csv(self, path: str, columns: Sequence[str]) -> Iterator[tuple[str, dict[str, str]]]:
        """Rows of a CSV file of the source, each with `file, line n` for messages.

        Raises:
            OacirError: missing, not UTF-8, without one of the columns, or a row of another length.
        """
        url = storage.join(self.source, path)
        try:
            text = self._bytes(url).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise OacirError(f"{url}: not UTF-8 ({error})") from error
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [c for c in columns if c not in (reader.fieldnames or ())]
        if missing:
            raise OacirError(f"{url}: no column {', '.join(missing)}; it has {reader.fieldnames}")
        for row in reader:
            where = f"{url}, line {reader.line_num}"
            if None in row or None in row.values():
                raise OacirError(f"{where}: {len(reader.fieldnames or ())} columns expected")
            yield where, row

    def _bytes(self, url: str) -> bytes:
        data = storage.read_bytes(url)
        self._read[url] = hashlib.sha256(data).hexdigest()
        return data

    @cached_property
    def listed(self) -> dict[str, storage.FileInfo]:
        """Every file below the folder of images, by its path relative to it; looked at once."""
        return {file.path: file for file in storage.list_files(self.images)}

    def url(self, path: str) -> str:
        """Where a file below the folder of images lies."""
        return storage.join(self.images, path)

    def first(self, paths: Iterable[str]) -> str:
        """The first of the paths at which an image lies, else the first: there it is missing."""
        candidates = list(paths)
        return next((path for path in candidates if path in self.listed), candidates[0])

    def fingerprint(self, paths: Iterable[str]) -> str:
        """SHA-256 (hex) over what was read and over the images of these paths, by their place in the release."""
        digest = hashlib.sha256()
        for url, content in sorted(self._read.items()):
            digest.update(f"{url.removeprefix(self.source)}\0{content}\n".encode())
        for path in sorted(paths):
            file = self.listed.get(path)
            what = f"{file.size_bytes}\0{file.mark}" if file else "missing"
            digest.update(f"{path}\0{what}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


@dataclass
class Release:
    """What the annotation files say."""

    kind: str
    annotation_licence: str
    """Licence of the annotations, as the release states it."""
    files: ReleaseFiles
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    """image_id → row of `records.LISTING`; `uri` is a path relative to the folder of images until it is resolved."""
    instances: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `records.INSTANCES`; boxes as the release has them, in pixels of the stored image; `mask_uri` a URL."""
    quadruples: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `records.QUADRUPLES`, same."""
    galleries: dict[str, dict[str, None]] = field(default_factory=dict)
    """gallery_id → image ids."""
    refused: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `records.REJECTS` of queries that the annotation files alone rule out."""
    records: Counter[str] = field(default_factory=Counter)
    """The release's own name of a split → records in its files."""
    protocol: dict[str, Any] = field(default_factory=dict)
    """How the benchmark is scored, where not as OACIRR is; part of the content hash."""
    notes: list[str] = field(default_factory=list)
    """What a reader has to know before believing a figure."""
    tables: dict[str, str] = field(default_factory=dict)
    """Path in a version → URL of a parquet file that a sidecar restores as it is."""
    accounts: dict[str, list[Account]] = field(default_factory=dict)
    """Accounts that a sidecar restores."""

    def image(
        self,
        image_id: str,
        domain: str,
        path: str,
        *,
        instance_id: str | None = None,
        category: str | None = None,
        box: Sequence[float] | None = None,
        licence: str | None = None,
        attribution: str | None = None,
        crop: Sequence[float] | None = None,
    ) -> str:
        """Name an image, once or again; its id.

        Args:
            image_id: `<domain>/<relative path>`.
            domain: its domain.
            path: where it lies, relative to the folder of images.
            instance_id: what it shows; None where the release names no instances: then it is its own.
            category: of the instance; None: the domain's name.
            box: of the instance, x1, y1, x2, y2 in pixels of the stored image.
            licence, attribution: what the release says of this image.
            crop: the part of the file that the benchmark means by this image, see `importing.cropped`.
        """
        if image_id in self.images:
            return image_id
        instance = {
            "instance_id": instance_id or image_id,
            "category": category or domain,
            "box": None if box is None else list(box),
        }
        said = self.files.licence or licence, self.files.attribution or attribution
        self.images[image_id] = {
            "image_id": image_id,
            "domain": domain,
            **instance,
            "box": None,
            "uri": path,
            "licence": said[0],
            "attribution": said[1],
            "context_json": None if crop is None else canonical({"crop": list(crop)}),
        }
        self.instances.append({"image_id": image_id, **instance, "mask_uri": None})
        return image_id

    def ask(
        self,
        query_id: str,
        domain: str,
        split: str,
        reference_id: str,
        target_ids: Sequence[str],
        text: str,
        *,
        instance_id: str | None = None,
        category: str | None = None,
        box: Sequence[float] | None = None,
        mask_uri: str | None = None,
        group_ids: Sequence[str] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> bool:
        """Add a query, or refuse it: without a text it asks nothing, with its reference as target it seeks nothing.

        Says which. A hidden query is kept also without a text: the server wants an answer to every one.
        """
        if split != "hidden" and not text.strip():
            self.refuse(query_id, "no_text", f"the text is {text!r}")
        elif reference_id in target_ids[:1]:
            self.refuse(query_id, "target_is_reference", reference_id)
        else:
            primary = target_ids[0] if target_ids else reference_id
            self.quadruples.append(
                {
                    "query_id": query_id,
                    "domain": domain,
                    "split": split,
                    "instance_id": instance_id or primary,
                    "category": category or domain,
                    "reference_id": reference_id,
                    "reference_box": None if box is None else list(box),
                    "reference_mask_uri": mask_uri,
                    "reference_mask_sha256": None,
                    "modification_text": text,
                    "target_ids": list(dict.fromkeys(target_ids)),
                    "group_ids": None if group_ids is None else list(dict.fromkeys(group_ids)),
                    "provenance": provenance(self.kind, extra),
                }
            )
            return True
        return False

    def refuse(self, key: str, reason: str, detail: str) -> None:
        """Count a query that is not taken."""
        row = {"stage": "import", "entity": "quadruples", "key": key, "reason": reason, "detail": detail}
        self.refused.append(row)

    def rank_in(self, gallery_id: str, image_ids: Iterable[str]) -> None:
        """Put images into a gallery."""
        self.galleries.setdefault(gallery_id, {}).update(dict.fromkeys(image_ids))

    def hold_out(self, share: float, seed: int) -> None:
        """Move training queries to dev, each domain's share as near as whole groups allow, with a gallery of their own.

        A group is what queries hold together that share an image or an instance, so nothing of dev is trained on;
        groups are taken by a seeded draw of their name. The gallery is the references and targets of the dev queries.
        """
        for domain in sorted({q["domain"] for q in self.quadruples}):
            own = [q for q in self.quadruples if q["domain"] == domain and q["split"] == "train"]
            groups = _groups(own)
            wanted, have = share * len(own), 0
            for name in sorted(groups, key=lambda n: (draw(seed, "dev", n), n)):
                size = len(groups[name])
                if abs(have + size - wanted) < abs(have - wanted):
                    have += size
                    for query in groups[name]:
                        query["split"] = "dev"
                        self.rank_in(f"{domain}/dev", [query["reference_id"], *query["target_ids"]])

    def check(self) -> Release:
        """Itself, if query ids are distinct and every query's images are named.

        Raises:
            OacirError: the release contradicts itself.
        """
        seen = Counter(q["query_id"] for q in self.quadruples)
        if doubled := [q for q, n in seen.items() if n > 1]:
            raise OacirError(f"{self.files.source}: {len(doubled)} query ids occur twice, first {doubled[0]}")
        for query in self.quadruples:
            lost = next((i for i in images_of(query) if i not in self.images), None)
            if lost is not None:
                raise OacirError(
                    f"{self.files.source}: query {query['query_id']} uses the unnamed image {lost}"
                )
        return self


def images_of(query: Mapping[str, Any]) -> list[str]:
    """Every image that a query needs: its reference, its targets, and the group it is ranked in."""
    return [query["reference_id"], *query["target_ids"], *(query["group_ids"] or ())]


def provenance(annotator: str, extra: Mapping[str, Any] | None = None, parent_id: str | None = None) -> Any:
    """A row of `records.PROVENANCE`: who wrote the text, and what else the release says of the query."""
    return {
        "annotator": annotator,
        "model": None,
        "prompt_sha256": None,
        "confidence": None,
        "parent_id": parent_id,
        "extra_json": canonical(extra) if extra else None,
    }


def canonical(value: Any) -> str:
    """JSON with one spelling."""
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def keys_of(record: Any, where: str, names: Sequence[str]) -> tuple[Any, ...]:
    """The values of a record's keys.

    Raises:
        OacirError: it is no mapping or lacks a key: the file is not the release's.
    """
    missing = [n for n in names if not isinstance(record, Mapping) or n not in record]
    if missing:
        raise OacirError(f"{where}: no {', '.join(missing)}; this is not the release's layout")
    return tuple(record[n] for n in names)


def as_box(value: Any) -> Box | None:
    """Four numbers x1, y1, x2, y2 with an area, or None where they are none."""
    try:
        x1, y1, x2, y2 = (float(v) for v in value)
    except (TypeError, ValueError):
        return None
    fits = all(map(math.isfinite, (x1, y1, x2, y2))) and x1 < x2 and y1 < y2
    return (x1, y1, x2, y2) if fits else None


def relative(path: str) -> str:
    """A path as the release writes it (`./dev/a.png`), plain.

    Raises:
        OacirError: it leaves its folder.
    """
    parts = [p for p in PurePosixPath(path.replace("\\", "/")).parts if p != "."]
    if not parts or ".." in parts or parts[0] == "/":
        raise OacirError(f"image path {path!r}: a path below the folder of images is allowed")
    return "/".join(parts)


def present(files: ReleaseFiles, asked: Sequence[str] | None, path_of: Mapping[str, str]) -> list[str]:
    """The splits to read: those asked for, else those whose file is there, in the release's order.

    Raises:
        OacirError: an asked one is missing, or none is there.
    """
    found = [name for name, path in path_of.items() if files.has(path)]
    missing = [name for name in asked or () if name not in found]
    if missing or not found:
        what = ", ".join(path_of[n] for n in missing) or "none of " + ", ".join(path_of.values())
        raise OacirError(
            f"{files.source}: {what} {'is missing' if missing else 'is there'}; set release.source to the release's"
            " folder"
        )
    return [name for name in path_of if name in (found if asked is None else asked)]


def _groups(queries: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Queries by the connected component of their images and instance; its name is the smallest of those."""
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        parent.setdefault(name, name)
        while parent[name] != name:
            parent[name] = parent[parent[name]]
            name = parent[name]
        return name

    for query in queries:
        names = [query["instance_id"], query["reference_id"], *query["target_ids"]]
        roots = sorted(root(n) for n in names)
        for other in roots[1:]:
            parent[other] = roots[0]
    groups: dict[str, list[dict[str, Any]]] = {}
    for query in queries:
        groups.setdefault(root(query["reference_id"]), []).append(query)
    return groups
