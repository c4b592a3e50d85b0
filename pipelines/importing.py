"""`oacir import`: a released benchmark → a dataset version with the tables of a built one.

The annotation files are read on the driver (`sources/released/`); the images are opened once, through Ray Data, part by
part and resumable as in a build. Every query that is not taken is a row of `rejects`: it asks nothing, or an image that
it needs (reference, targets, the group it is ranked in) is not there or cannot be read.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any

import pyarrow as pa
from pydantic import Field

from infra.base import storage, versions
from infra.base.accounts import Account
from infra.base.catalogue import table_name
from infra.base.command import Context, Outcome
from infra.base.config import Config, recipe_hash
from infra.base.errors import OacirError
from pipelines.images import ImageLimits
from pipelines.records import TABLES
from pipelines.sources.released import circo, cirr, cor127k, fashioniq, genecis, lasco, oacirr
from pipelines.sources.released.base import Release, images_of
from pipelines.sources.released.figures import figures
from pipelines.sources.released.opening import OpenStage, as_table, reject_row
from pipelines.stages import WORK, part_path, publish, run_stages, schema_name, table_hash, write_part

EXECUTION_ONLY = ("workers", "images_per_part")
READERS: dict[str, Callable[[Any], Release]] = {
    "oacirr": oacirr.read,
    "cirr": cirr.read,
    "fashioniq": fashioniq.read,
    "circo": circo.read,
    "genecis": genecis.read,
    "lasco": lasco.read,
    "cor127k": cor127k.read,
}
SPLITS = ("train", "dev", "test", "hidden")
"""In the order in which a split claims an image that several of them show."""


class ImportRecipe(Config):
    """A released benchmark → a dataset version."""

    name: str | None = Field(None, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the dataset version; null takes the release's kind."""
    release: Annotated[
        oacirr.OacirrConfig
        | cirr.CirrConfig
        | fashioniq.FashionIqConfig
        | circo.CircoConfig
        | genecis.GenecisConfig
        | lasco.LascoConfig
        | cor127k.Cor127kConfig,
        Field(discriminator="kind"),
    ]
    """Which release, and where it lies."""
    limits: ImageLimits = Field(default_factory=ImageLimits)
    """What an image may measure."""
    seconds_per_record: float | None = Field(60.0, gt=0.0)
    """Longest that reading or decoding an image may take before it is rejected (timeout); null = no limit."""
    images_per_part: int = Field(1024, ge=1)
    """Images are opened in parts of so many; a kill loses the parts in flight."""
    workers: int | None = Field(None, ge=1)
    """Parallel workers; null = one per CPU of the Ray session."""

    def key(self, fingerprint: str) -> str:
        """The key of the version this recipe makes of an input with that fingerprint."""
        data = self.model_dump(mode="json", exclude=set(EXECUTION_ONLY))
        for place in ("source", "images"):
            if data["release"][place] is not None:
                data["release"][place] = storage.absolute(data["release"][place])
        return recipe_hash(data, fingerprint)


def import_release(recipe: ImportRecipe, context: Context) -> Outcome:
    """Import a release. Resumes a half-finished import; a finished one is a no-op.

    Raises:
        OacirError: the annotation files are not the release's, or none of its images is there.
    """
    began = time.monotonic()
    release = READERS[recipe.release.kind](recipe.release).check()
    records = len(release.quadruples) + len(release.refused)
    paths = [row["uri"] for row in release.images.values()]
    masks = [row["mask_uri"] for row in release.instances if row["mask_uri"] is not None]
    fingerprint = release.files.fingerprint(
        {*paths, *(m.removeprefix(release.files.images + "/") for m in masks)}
    )
    there = {i for i, row in release.images.items() if row["uri"] in release.files.listed}
    if not there:
        raise OacirError(
            f"{release.files.images}: none of the {len(paths):,} images that the annotations name is there, for example"
            f" {paths[0] if paths else '(none named)'}; set --release.images to their folder, images are needed"
        )
    if context.dry_run:
        return _plan(release, there)
    name = recipe.name or recipe.release.kind
    draft = versions.start(
        "datasets", name, recipe.key(fingerprint), recipe, root=context.root, out=context.out
    )
    if draft.finished:
        return _outcome(versions.Version(draft.url, draft.finished), "nothing to do, imported before")
    lost = _refuse_lost(release, there)
    parts = _write_parts(draft, release, there & _needed(release), recipe.images_per_part)
    release.quadruples = []  # they lie in the parts now: one copy of a large release is enough in memory
    read_seconds = time.monotonic() - began
    stage = OpenStage(recipe.limits, draft.url, recipe.seconds_per_record)
    made = run_stages([stage], draft.url, parts, workers=recipe.workers, label="open images")
    began = time.monotonic()
    opened = _Opened(draft, parts)
    queries = _usable(release, opened.quadruples, opened.images, opened.rejects)
    tables = _tables(release, opened, queries, lost)
    files, hashes = _write_tables(draft, release, tables)
    version = publish(
        draft,
        made,
        files=files,
        hashes=hashes,
        seconds={"read": read_seconds, "use": time.monotonic() - began},
        accounts=release.accounts
        | {_stage_name(release.accounts): _accounts(release, opened, tables, lost, records, len(there))},
        figures=figures(release, tables, len(lost)),
    )
    return _outcome(version, "imported")


def _refuse_lost(release: Release, there: set[str]) -> list[dict[str, Any]]:
    """Rejects of the images that are not there; queries that need one are refused."""
    gone = [i for i in release.images if i not in there]
    kept = []
    for query in release.quadruples:
        needed = next((i for i in images_of(query) if i not in there), None)
        if needed is None:
            kept.append(query)
        else:
            release.refuse(query["query_id"], "missing_image", f"{needed}: missing_file")
    release.quadruples = kept
    return [reject_row("images", i, "missing_file", release.images[i]["uri"]) for i in gone]


def _needed(release: Release) -> set[str]:
    """Images that a query shows or a gallery with queries ranks; no other is opened."""
    asked = {f"{q['domain']}/{q['split']}" for q in release.quadruples}
    shown = {i for q in release.quadruples for i in images_of(q)}
    return shown.union(*(members for place, members in release.galleries.items() if place in asked))


def _write_parts(draft: versions.Draft, release: Release, there: set[str], per_part: int) -> int:
    """Cut what was read into parts by image, as the first run of this import cut it; how many there are."""
    layout = draft.path(WORK, "layout.json")
    if not storage.exists(layout):
        storage.write_new(layout, json.dumps({"images_per_part": per_part}).encode())
    per_part = int(json.loads(storage.read_bytes(layout))["images_per_part"])
    ids = sorted(there)
    part_of = {image_id: number // per_part for number, image_id in enumerate(ids)}
    parts = -(-len(ids) // per_part)
    tables = {
        "_work/listing": [_listed(release, i) for i in ids],
        "_work/instances/read": [row for row in release.instances if row["image_id"] in part_of],
        "_work/quadruples/read": release.quadruples,
    }
    owner = {"_work/quadruples/read": "reference_id"}
    for name, rows in tables.items():
        by_part: list[list[dict[str, Any]]] = [[] for _ in range(parts)]
        for row in rows:
            by_part[part_of[row[owner.get(name, "image_id")]]].append(row)
        for number, own in enumerate(by_part):
            write_part(draft.url, part_path(name, number), as_table(own, schema_name(name)))
    return parts


def _listed(release: Release, image_id: str) -> dict[str, Any]:
    row = release.images[image_id]
    file = release.files.listed[row["uri"]]
    return row | {"uri": release.files.url(row["uri"]), "size_bytes": file.size_bytes, "mark": file.mark}


class _Opened:
    """What the workers made of the images."""

    def __init__(self, draft: versions.Draft, parts: int) -> None:
        def rows(name: str) -> Iterator[dict[str, Any]]:
            for part in range(parts):
                yield from storage.read_table(draft.path(part_path(name, part))).to_pylist()

        self.images = {row["image_id"]: row for row in rows("_work/images/opened")}
        self.instances = list(rows("_work/instances/opened"))
        self.quadruples = list(rows("_work/quadruples/opened"))
        self.rejects = list(rows("_work/rejects/open"))
        self.files = list(rows("_work/files/crops"))


def _usable(
    release: Release,
    quadruples: Sequence[dict[str, Any]],
    images: Mapping[str, Any],
    rejects: Sequence[Mapping[str, Any]],
) -> list[dict[str, Any]]:
    """The queries of which every image was opened; the others are refused."""
    why = {row["key"]: row["reason"] for row in rejects if row["entity"] == "images"}
    kept = []
    for query in quadruples:
        needed = next((i for i in images_of(query) if i not in images), None)
        if needed is None:
            kept.append(query)
        else:
            release.refuse(query["query_id"], "missing_image", f"{needed}: {why[needed]}")
    return kept


def _tables(
    release: Release, opened: _Opened, queries: list[dict[str, Any]], lost: Sequence[dict[str, Any]]
) -> dict[str, pa.Table]:
    """The tables of the dataset, rows in order of their ids."""
    split_of: dict[str, str] = {}
    asked: set[tuple[str, str, str]] = set()
    for split in reversed(SPLITS):
        for query in queries:
            if query["split"] == split:
                split_of |= dict.fromkeys(images_of(query), split)
                shown = [query["reference_id"], *query["target_ids"]]
                asked |= {(query["domain"], split, image_id) for image_id in shown}
    places = {f"{q['domain']}/{q['split']}": (q["domain"], q["split"]) for q in queries}
    gallery = []
    for place, members in sorted(release.galleries.items()):
        if place not in places:
            continue
        for image_id in sorted(members.keys() & opened.images.keys()):
            split_of.setdefault(image_id, "reserve")
            known = {k: release.images[image_id][k] for k in ("instance_id", "category")}
            distractor = (*places[place], image_id) not in asked
            row = {"gallery_id": place, "split": places[place][1], "image_id": image_id, **known}
            gallery.append(row | {"is_distractor": distractor})
    used = [opened.images[i] | {"split": split_of[i]} for i in sorted(split_of.keys() & opened.images.keys())]
    named = release.images.keys()
    instances = [*opened.instances, *(row for row in release.instances if row["image_id"] not in named)]
    tables = {
        "images": as_table(used, "images"),
        "instances": as_table(
            sorted(instances, key=lambda r: (r["image_id"], r["instance_id"])), "instances"
        ),
        "quadruples": as_table(sorted(queries, key=lambda r: r["query_id"]), "quadruples"),
        "gallery": as_table(gallery, "gallery"),
    }
    rejects = [*lost, *opened.rejects, *release.refused]
    if rejects or not release.tables:
        rejects = sorted(rejects, key=lambda r: (r["entity"], r["key"]))
        tables["rejects/import"] = as_table(rejects, "rejects")
    if release.protocol:
        rules = [{"rule": k, "value": str(v)} for k, v in sorted(release.protocol.items())]
        tables["protocol"] = as_table(rules, "protocol")
    if opened.files:
        tables["files"] = as_table(opened.files, "files")
    return tables


def _write_tables(
    draft: versions.Draft, release: Release, tables: Mapping[str, pa.Table]
) -> tuple[list[versions.FileEntry], dict[str, int]]:
    """Write the tables, and those that a sidecar restores as they are; what was written, and the hash of each."""
    files, hashes, taken = [], Counter[str](), Counter[str]()
    for path, url in release.tables.items():
        data = storage.read_bytes(url)
        storage.write_bytes(draft.path(path), data)
        table = storage.read_table(draft.path(path))
        digest = hashlib.sha256(data).hexdigest()
        files.append(versions.FileEntry(path=path, size_bytes=len(data), sha256=digest, rows=len(table)))
        name = table_name(path)
        taken[name] += 1
        if schema_name(name) in TABLES:
            hashes[name] += table_hash(table, schema_name(name))
    for name, table in tables.items():
        files.append(write_part(draft.url, part_path(name, taken[name]), table))
        hashes[name] += table_hash(table, schema_name(name))
    return files, {name: versions.combine([number]) for name, number in hashes.items()}


def _stage_name(known: Mapping[str, Any]) -> str:
    """A name for this import's accounts beside those that a sidecar restores."""
    names = ["import", *(f"import-{n}" for n in range(2, len(known) + 3))]
    return next(name for name in names if name not in known)


def _accounts(
    release: Release,
    opened: _Opened,
    tables: Mapping[str, pa.Table],
    lost: Sequence[Any],
    records: int,
    there: int,
) -> list[Account]:
    """Where the named images, the instances of opened images and the records (queries, as read) went."""
    rejected: dict[str, Counter[str]] = {n: Counter() for n in ("images", "instances", "quadruples")}
    for row in [*lost, *opened.rejects, *release.refused]:
        rejected[row["entity"]][row["reason"]] += 1
    return [
        Account(
            entity="images",
            taken_in=len(release.images),
            kept=len(tables["images"]),
            rejected=dict(sorted(rejected["images"].items())),
            not_sampled=there - len(tables["images"]) - sum(r["entity"] == "images" for r in opened.rejects),
        ),
        Account(
            entity="instances",
            taken_in=sum(row["image_id"] in opened.images for row in release.instances),
            kept=len(opened.instances),
            rejected=dict(sorted(rejected["instances"].items())),
        ),
        Account(
            entity="quadruples",
            taken_in=records,
            kept=len(tables["quadruples"]),
            rejected=dict(sorted(rejected["quadruples"].items())),
        ),
    ]


def _plan(release: Release, there: set[str]) -> Outcome:
    """What an import would do, without opening an image or writing anything."""
    asked = Counter(q["split"] for q in release.quadruples)
    parts = ", ".join(f"{asked[s]:,} {s}" for s in SPLITS if asked[s])
    lines = [
        f"{release.kind}: {sum(release.records.values()):,} records = {parts} queries,"
        f" {len(release.refused):,} refused as they stand",
        f"images: {len(release.images):,} named, {len(there):,} there under {release.files.images}",
        *(f"note: {note}" for note in release.notes),
    ]
    found = {"queries": dict(asked), "images": len(release.images), "present": len(there)}
    return Outcome("plan only, nothing was made", figures=found, details=tuple(lines))


def _outcome(version: versions.Version, what: str) -> Outcome:
    stated = version.manifest.figures
    lines = [f"{s}: {a.line()}" for s, accounts in version.manifest.accounts.items() for a in accounts]
    for domain, f in stated["domains"].items():
        queries = ", ".join(f"{n:,} {s}" for s, n in f["queries"].items() if n)
        lines.append(f"{domain}: {f['images_listed']:,} images, queries {queries or 'none'}")
    lines += [
        f"gallery {place}: {g['images']:,} images, of them {g['distractors']['named']:,} distractors,"
        f" {g['sha256'][:12]}…"
        for place, g in stated["galleries"].items()
    ]
    lines += [f"note: {note}" for note in stated["notes"]]
    more = {"content_hash": version.manifest.content_hash, "seconds": version.manifest.seconds}
    accounts = {s: [a.model_dump() for a in items] for s, items in version.manifest.accounts.items()}
    return Outcome(
        f"{what}: {version.url}", version.url, {**stated, **more, "accounts": accounts}, tuple(lines)
    )
