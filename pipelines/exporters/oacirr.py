"""A benchmark in the layout of the OACIRR release (METHODS section 1), with a sidecar that gives everything else back.

Written are the subsets, and of the training sets what is asked for: Union and, for each domain, the leave-one-out set
without it. dev has no place in the release: its records and gallery lie in train. The path of an image is
`<split>/<instance>/<file>` in a subset and `train/<domain>/<instance>/<file>` in a joint set: the parent folder is the
instance in both. Boxes are those of the file as it is stored: turned back where it has an EXIF orientation.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import pyarrow as pa

from infra.base import storage, versions
from infra.base.catalogue import table_name
from infra.base.errors import OacirError
from infra.base.progress import Progress
from pipelines.images import stored_box, turned
from pipelines.records import INSTANCES, TABLES, conform
from pipelines.sources.released import sidecar
from pipelines.sources.released.oacirr import (
    BOXES,
    CAPTIONS,
    GROUP,
    NAMES,
    ReleaseSet,
    subset,
    union,
    without,
)

Joint = Literal["union", "crossdomain"]
File = Literal["train", "val"]
COPIERS = 8
RESTORED = ("images", "instances", "quadruples", "gallery")
"""Tables that an import makes again; all others travel in the sidecar as they are."""


@dataclass(frozen=True)
class Shelf:
    """What of one domain lies in one split of the release."""

    domain: str
    file: File
    queries: list[dict[str, Any]]
    images: list[str]
    """Ids of the images, in order."""


class Layout:
    """Where everything of a benchmark lies in the release.

    Raises:
        OacirError: a query has no box or no target, so that the layout cannot hold it.
    """

    def __init__(self, version: versions.Version) -> None:
        self.version = version
        quadruples = conform(version.table("quadruples"), "quadruples").sort_by("query_id").to_pylist()
        self.images = {row["image_id"]: row for row in version.table("images").to_pylist()}
        self.gallery = version.table("gallery").to_pylist()
        self.instances = conform(version.table("instances"), "instances").to_pylist()
        _check(version, quadruples)
        self.owner: dict[str, str] = {row["image_id"]: row["instance_id"] for row in self.gallery}
        for query in quadruples:
            for image_id in (query["reference_id"], *query["target_ids"]):
                self.owner[image_id] = query["instance_id"]
        self.boxes = {
            row["image_id"]: row["box"]
            for row in self.instances
            if row["box"] is not None and self.owner.get(row["image_id"]) == row["instance_id"]
        }
        self.domains = sorted({q["domain"] for q in quadruples})
        self.shelves = [s for d in self.domains for s in self._shelves(d, quadruples)]
        self._paths = _paths(self.owner)

    def _shelves(self, domain: str, quadruples: Sequence[dict[str, Any]]) -> Iterable[Shelf]:
        places: tuple[tuple[File, tuple[str, ...]], ...] = (
            ("train", ("train", "dev")),
            ("val", ("test",)),
        )
        for file, splits in places:
            own = [q for q in quadruples if q["domain"] == domain and q["split"] in splits]
            shown = {i for q in own for i in (q["reference_id"], *q["target_ids"])}
            ranked = {f"{domain}/{s}" for s in splits}
            shown |= {row["image_id"] for row in self.gallery if row["gallery_id"] in ranked}
            yield Shelf(domain, file, own, sorted(shown))

    def path(self, image_id: str, file: str, domain: str | None = None) -> str:
        """The path of an image in a split of a set; `domain` is that of the image in a joint set."""
        return storage.join(file, domain or "", self._paths[image_id])


def export(
    layout: Layout, out: str, images: Literal["copy", "link"], joint: Sequence[Joint]
) -> dict[str, Any]:
    """Write the release; the sidecar `oacir.json` last. What was written, in numbers.

    Raises:
        OacirError: an image is gone or changed.
    """
    sets = _sets(layout, joint)
    orientation = _write_images(layout, sets, out, images)
    for chosen, file, shelves in sets:
        _write_annotations(layout, chosen, file, shelves, out, orientation)
    _write_sidecar(layout, out, joint)
    records = {f"{s.domain} {s.file}": len(s.queries) for s in layout.shelves}
    return {"records": records, "images": len(layout.owner), "sets": len({s[0].folder for s in sets})}


def _check(version: versions.Version, quadruples: Sequence[Mapping[str, Any]]) -> None:
    faults = {
        "have no box": [q for q in quadruples if q["reference_box"] is None],
        "have no target": [q for q in quadruples if not q["target_ids"]],
    }
    for what, found in faults.items():
        if found:
            raise OacirError(
                f"{version.url}: {len(found):,} of {len(quadruples):,} queries {what} (first {found[0]['query_id']}),"
                " the OACIRR layout cannot hold them; export with --layout huggingface"
            )


def _paths(owner: Mapping[str, str]) -> dict[str, str]:
    """image_id → `<instance>/<file>`, distinct within a domain."""
    paths: dict[str, str] = {}
    taken: set[tuple[str, str]] = set()
    for image_id, instance in sorted(owner.items()):
        domain = image_id.split("/", 1)[0]
        folder = instance.removeprefix(f"{domain}/").replace("/", "__")
        rest = image_id.removeprefix(f"{instance}/").removeprefix(f"{domain}/").replace("/", "__")
        path = f"{folder}/{rest}"
        if (domain, path.lower()) in taken:  # also on file systems that do not tell A from a
            name = PurePosixPath(rest)
            path = f"{folder}/{name.stem}-{hashlib.sha256(image_id.encode()).hexdigest()[:8]}{name.suffix}"
        taken.add((domain, path.lower()))
        paths[image_id] = path
    return paths


def _sets(layout: Layout, joint: Sequence[Joint]) -> list[tuple[ReleaseSet, File, list[Shelf]]]:
    """Each set's split with the shelves that lie in it."""
    sets: list[tuple[ReleaseSet, File, list[Shelf]]] = [
        (subset(s.domain), s.file, [s]) for s in layout.shelves
    ]
    train = [s for s in layout.shelves if s.file == "train"]
    if "union" in joint:
        sets.append((union(), "train", train))
    if "crossdomain" in joint:
        sets += [(without(d), "train", [s for s in train if s.domain != d]) for d in layout.domains]
    return sets


def _joint(chosen: ReleaseSet, shelf: Shelf) -> str | None:
    return None if chosen == subset(shelf.domain) else shelf.domain


def _write_images(
    layout: Layout,
    sets: Sequence[tuple[ReleaseSet, str, list[Shelf]]],
    out: str,
    how: Literal["copy", "link"],
) -> dict[str, int]:
    """Put every image at all its places, read and checked once; the EXIF orientation of those that have one."""
    places: dict[str, list[str]] = {}
    for chosen, file, shelves in sets:
        for shelf in shelves:
            for image_id in shelf.images:
                path = layout.path(image_id, file, _joint(chosen, shelf))
                places.setdefault(image_id, []).append(storage.join(out, chosen.folder, path))
    put: Callable[[str, bytes, str], None] = _link if how == "link" else _copy

    def place(image_id: str) -> tuple[str, int]:
        row = layout.images[image_id]
        data = storage.read_bytes(row["uri"])
        if hashlib.sha256(data).hexdigest() != row["sha256"]:
            raise OacirError(
                f"{row['uri']}: changed since the dataset was made (another sha256); make it again"
            )
        for url in places[image_id]:
            put(row["uri"], data, url)
        return image_id, turned(data)

    found = {}
    with (
        ThreadPoolExecutor(COPIERS) as pool,
        Progress("export images", len(places), "images") as progress,
    ):
        ids = sorted(places)
        for start in range(0, len(ids), 256):  # a failure stops the rest instead of waiting for all
            for image_id, orientation in pool.map(place, ids[start : start + 256]):
                if orientation != 1:
                    found[image_id] = orientation
                progress.update()
    return found


def _copy(_: str, data: bytes, url: str) -> None:
    storage.write_bytes(url, data)


def _link(source: str, _: bytes, url: str) -> None:
    if storage.is_s3(source) or storage.is_s3(url) or not Path(source).is_file():
        raise OacirError(
            f"{url}: a link to {source} is not possible; only files of one machine can be linked,"
            " export with --images copy"
        )
    target = Path(url)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    target.symlink_to(source)


def _write_annotations(
    layout: Layout,
    chosen: ReleaseSet,
    file: str,
    shelves: Sequence[Shelf],
    out: str,
    orientation: Mapping[str, int],
) -> None:
    def box_of(image_id: str, box: Sequence[float]) -> list[float | int]:
        row = layout.images[image_id]
        x1, y1, x2, y2 = stored_box(
            (box[0], box[1], box[2], box[3]), row["width"], row["height"], orientation.get(image_id, 1)
        )
        return [int(v) if v == int(v) else v for v in (x1, y1, x2, y2)]

    captions = [_record(q, box_of) for shelf in shelves for q in shelf.queries]
    names = {i: layout.path(i, file, _joint(chosen, shelf)) for shelf in shelves for i in shelf.images}
    boxes = {i: box_of(i, layout.boxes[i]) for i in names if i in layout.boxes}
    for pattern, content in ((CAPTIONS, captions), (NAMES, names), (BOXES, boxes)):
        data = json.dumps(content, ensure_ascii=False, indent=0).encode()
        storage.write_bytes(storage.join(out, chosen.path(pattern, file)), data)


def _record(query: Mapping[str, Any], box_of: Callable[[str, Sequence[float]], list[Any]]) -> dict[str, Any]:
    record = {
        "reference": query["reference_id"],
        "target": query["target_ids"][0],
        "modification_text_mllm": query["modification_text"],
        "object_category": query["category"],
        "reference_bounding_box": box_of(query["reference_id"], query["reference_box"]),
    }
    return record | ({GROUP: query["group_ids"]} if query["group_ids"] is not None else {})


def _write_sidecar(layout: Layout, out: str, joint: Sequence[Joint]) -> None:
    version = layout.version
    images = [
        {"name": i, "instance_id": instance}
        | {k: layout.images[i][k] for k in ("image_id", "domain", "licence", "attribution")}
        for i, instance in sorted(layout.owner.items())
    ]
    queries = [
        {name: value for name, value in query.items() if name not in sidecar.IN_RELEASE}
        | {"file": shelf.file, "row": number}
        for shelf in layout.shelves
        for number, query in enumerate(shelf.queries)
    ]
    masks = _Masks(out)
    for row in queries:
        row["reference_mask_uri"] = masks.keep(row["reference_mask_uri"], row["reference_mask_sha256"])
    instances = [
        row | {"mask_uri": masks.keep(row["mask_uri"], row["mask_sha256"])} for row in layout.instances
    ]
    tables = {
        "images": pa.Table.from_pylist(images, sidecar.IMAGES),
        "queries": pa.Table.from_pylist(queries, sidecar.QUERIES),
        "instances": pa.Table.from_pylist(instances, INSTANCES),
        "gallery": pa.Table.from_pylist(layout.gallery, TABLES["gallery"]),
    }
    for name, table in tables.items():
        storage.write_table(sidecar.table_url(out, name), table)
    kept = [
        f.path
        for f in version.manifest.files
        if f.path.endswith(".parquet") and table_name(f.path) not in (*RESTORED, "files")
    ]
    for path in kept:
        storage.write_bytes(
            storage.join(out, sidecar.FOLDER, "tables", path), storage.read_bytes(version.path(path))
        )
    data = sidecar.Sidecar(
        name=version.manifest.name,
        content_hash=version.manifest.content_hash,
        domains=layout.domains,
        sets=["subset", *joint],
        tables=kept,
        accounts=version.manifest.accounts,
    )
    storage.write_bytes(storage.join(out, sidecar.FILE), sidecar.dump(data))


class _Masks:
    """Copies masks beside the sidecar, each content once."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.known: set[str] = set()

    def keep(self, url: str | None, sha256: str | None) -> str | None:
        """Where a mask lies relative to the sidecar's folder.

        Raises:
            OacirError: it is gone, or no longer the one that the dataset was made with.
        """
        if url is None or sha256 is None:
            return None
        path = f"masks/{sha256}.png"
        if sha256 not in self.known:
            data = storage.read_bytes(url)
            if hashlib.sha256(data).hexdigest() != sha256:
                raise OacirError(f"{url}: changed since the dataset was made (another sha256); make it again")
            storage.write_bytes(storage.join(self.out, sidecar.FOLDER, path), data)
            self.known.add(sha256)
        return path
