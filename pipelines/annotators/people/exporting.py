"""`oacir review export`: quadruples of a build, or pairs it could not write, as a project's tasks for Label Studio."""

from __future__ import annotations

import hashlib
import heapq
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Literal

import pydantic
from pydantic import Field

from infra.base import storage, versions
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.errors import OacirError
from infra.base.html import data_uri, jpeg
from infra.base.progress import Progress
from infra.base.versions import Version
from pipelines.annotators.people import store
from pipelines.annotators.people.label_studio import CONFIGURATION, task, task_id
from pipelines.annotators.people.settle import counting, settle
from pipelines.config import BuildRecipe
from pipelines.images import ImageLimits, ImageRejected, decode
from pipelines.reviewing import ANNOTATED, FINAL, names_of, rules
from pipelines.stages import part_path

ANY = ImageLimits(min_side_px=1, max_pixels=2**40, max_aspect=2.0**40)
"""What an image may measure was judged when it was collected."""
QUALITY = 85
CONFIGURATION_FILE, TASKS_FILE = "labels.xml", "tasks.json"


class ReviewExportRecipe(Config):
    """What people are given, and how they see it."""

    dataset: str
    """The build: a path or URL of a version, name/key, or name (the newest of it)."""
    what: Literal["written", "refused"] = "written"
    """Quadruples with their texts and boxes, or pairs that the annotator gave none (no box, an unsure one, a text that
    broke a rule): people write those."""
    splits: tuple[Literal["train", "dev", "test"], ...] = ("train", "dev", "test")
    """Only of these splits."""
    domains: tuple[str, ...] | None = None
    """Only of these domains; null = of all."""
    reasons: tuple[str, ...] | None = None
    """what = refused: only for these reasons (see `oacir data show`); null = for all."""
    most: Annotated[int, Field(ge=1)] = 200
    """Most tasks; drawn by seed."""
    seed: int = 0
    """Of the draw."""
    images: Literal["embed", "files", "links"] = "embed"
    """Photos inside the tasks; as files beside them, for Label Studio's local storage; or links to where they lie, for
    photos on S3 or the web."""
    image_side_px: Annotated[int, Field(ge=64)] = 768
    """Longest side of an embedded photo or file."""
    reviews: str | None = None
    """Where it is kept what was given to people; null = reviews/NAME under the root, NAME the dataset's."""


def export(recipe: ReviewExportRecipe, context: Context) -> Outcome:
    """Write a labelling configuration and tasks; what people settled before is left out.

    Raises:
        OacirError: the dataset was not built here, or its photos cannot be read or linked to.
    """
    version = versions.resolve(context.root, "datasets", recipe.dataset, holding="pairs")
    built = _built_by(version)
    name = version.manifest.name
    reviews = store.read(recipe.reviews or store.folder(context.root, name))
    by_pair: dict[str, list[store.Row]] = {}
    for row in reviews.tasks.values():
        by_pair.setdefault(row["pair_id"], []).append(row)
    counts: Counter[bool] = Counter()

    def open_ones() -> Iterator[dict[str, Any]]:
        for found in _candidates(recipe, version, built):
            settled = _settled(found, by_pair.get(found["row"]["pair_id"], []), reviews)
            counts[settled] += 1
            if not settled:
                yield found

    chosen = heapq.nsmallest(recipe.most, open_ones(), key=lambda f: _lot(recipe.seed, f["row"]["pair_id"]))
    figures = {
        "candidates": counts.total(),
        "settled": counts[True],
        "tasks": len(chosen),
        "left": counts[False] - len(chosen),
    }
    told = (
        f"{figures['candidates']:,} candidates: {figures['settled']:,} settled by people before,"
        f" {figures['left']:,} left for another export, {len(chosen):,} tasks"
    )
    if not chosen:
        return Outcome(f"nothing to review: {version.url}", figures=figures, details=(told,))
    out = storage.absolute(context.out or storage.join(reviews.url, "exports", _name(recipe, chosen)))
    if context.dry_run:
        return Outcome(f"would write {len(chosen):,} tasks: {out}", figures=figures, details=(told,))
    tasks = []
    with Progress("photos", len(chosen), "tasks") as progress:
        for f in chosen:
            tasks.append(_task(recipe, f, name, out))
            progress.update()
    storage.write_bytes(storage.join(out, CONFIGURATION_FILE), CONFIGURATION.encode())
    # known before anybody can answer
    store.keep(reviews.url, store.TASKS, [f["row"] for f in chosen])
    storage.write_bytes(
        storage.join(out, TASKS_FILE), json.dumps(tasks, ensure_ascii=False, indent=1).encode()
    )
    return Outcome(
        f"{len(chosen):,} tasks for Label Studio: {out}",
        out,
        figures,
        (told, *_how(recipe, out, context.root)),
    )


def _how(recipe: ReviewExportRecipe, out: str, root: str) -> Iterator[str]:
    """What to do next, step by step."""
    local = recipe.images == "files"
    if local:
        yield (
            "1. start it with LABEL_STUDIO_LOCAL_FILES_SERVING_ENABLED=true"
            f" LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT={out}, and add the local storage {storage.join(out, 'images')}"
        )
    elif recipe.images == "links":
        yield "1. in the project's settings, add the bucket of the photos as source storage, so that links open"
    else:
        yield "1. make a project in Label Studio (pip install label-studio; label-studio start)"
    yield f"2. Settings, Labeling Interface, Code: paste {CONFIGURATION_FILE}; Annotation: show predictions"
    yield f"3. Import {TASKS_FILE}; let people work (keys 1 accept, 2 edit, 3 reject, b box)"
    yield f"4. Export as JSON, then: oacir review import --root {root} --file EXPORT.json"


def _built_by(version: Version) -> BuildRecipe:
    try:
        return BuildRecipe.model_validate(version.manifest.recipe)
    except pydantic.ValidationError as error:
        raise OacirError(
            f"{version.url}: was not made by `oacir build` of this code, so that no build could apply what people say;"
            " review a benchmark that it built"
        ) from error


def _candidates(recipe: ReviewExportRecipe, version: Version, built: BuildRecipe) -> Iterator[dict[str, Any]]:
    """What may be reviewed, part by part: row of `records.REVIEW_TASKS`, addresses of the photos, writer and why."""
    parts = len(version.table_files("listing"))
    written = ANNOTATED if built.people else "quadruples"
    rows = version.table("splits", ["instance_id", "split"])
    splits = dict(zip(rows["instance_id"].to_pylist(), rows["split"].to_pylist(), strict=True))
    dataset = f"{version.manifest.name}/{version.manifest.key}"
    for part in range(parts):
        tables = {
            name: _part(version, name, part) for name in ("pairs", "instances", "_work/images/filtered")
        }
        images = {r["image_id"]: r for r in tables["_work/images/filtered"]}
        things = {r["image_id"]: r for r in tables["instances"]}
        if recipe.what == "written":
            known = {r["query_id"]: r for r in _part(version, written, part)}
        else:
            known = {
                r["key"]: r for r in _part(version, "rejects/annotate", part) if r["reason"] not in FINAL
            }
        boxes = {r["image_id"]: r for r in _part(version, "boxes", part)} if built.grounding else {}
        for pair in tables["pairs"]:
            found = known.get(pair["pair_id"])
            if (
                found is None
                or splits[pair["instance_id"]] not in recipe.splits
                or (recipe.domains is not None and pair["domain"] not in recipe.domains)
                or (recipe.reasons is not None and found.get("reason") not in recipe.reasons)
            ):
                continue
            reference, target = images[pair["reference_id"]], images[pair["target_id"]]
            thing = things[pair["reference_id"]]
            said = found["provenance"] if recipe.what == "written" else {}
            text = found.get("modification_text")
            box = (
                found["reference_box"]
                if said
                else thing["box"] or boxes.get(pair["reference_id"], {}).get("box")
            )
            extra = json.loads(said.get("extra_json") or "{}")
            names = names_of(pair["instance_id"], thing["variant"], extra)
            limit = built.thresholds.of(pair["domain"]).max_words
            kept = rules(pair["domain"], thing["category"], names, limit, built.chat)
            photos = reference["sha256"], target["sha256"]
            yield {
                "row": {
                    "task": task_id(pair["pair_id"], photos, text, box),
                    "pair_id": pair["pair_id"],
                    "domain": pair["domain"],
                    "reference_sha256": photos[0],
                    "target_sha256": photos[1],
                    "width": reference["width"],
                    "height": reference["height"],
                    "text": text,
                    "box": box,
                    "dataset": dataset,
                    "max_words": kept.max_words,
                    "names": list(kept.instance),
                    "kinds": sorted(kept.kinds),
                },
                "uris": (reference["uri"], target["uri"]),
                "writer": said.get("annotator"),
                "about": f"{pair['domain']}, {thing['category'].replace('_', ' ')}"
                + (f"; to be written: {found['reason']} ({found['detail']})" if not said else ""),
            }


def _part(version: Version, name: str, part: int) -> list[dict[str, Any]]:
    place = version.path(part_path(name, part))
    if not storage.exists(place):
        raise OacirError(
            f"{place}: is gone; build the benchmark again (with --update, nothing is opened anew)"
        )
    rows: list[dict[str, Any]] = storage.read_table(place).to_pylist()
    return rows


def _settled(found: Mapping[str, Any], tasks: list[store.Row], reviews: store.Reviews) -> bool:
    row = found["row"]
    photos = row["reference_sha256"], row["target_sha256"]
    said, _ = counting(tasks, reviews.by_task, photos, row["text"], row["box"])
    return settle(said, "pending").outcome in ("keep", "reject")


def _task(recipe: ReviewExportRecipe, found: Mapping[str, Any], name: str, out: str) -> dict[str, Any]:
    row = found["row"]
    sums = row["reference_sha256"], row["target_sha256"]
    first, second = (_image(recipe, uri, sha, out) for uri, sha in zip(found["uris"], sums, strict=True))
    return task(row, name, (first, second), found["writer"], found["about"])


def _image(recipe: ReviewExportRecipe, uri: str, sha256: str, out: str) -> str:
    """The address under which Label Studio finds a photo; a copy is upright and small."""
    if recipe.images == "links":
        if not uri.startswith(("s3://", "https://", "http://")) or "#" in uri:
            raise OacirError(
                f"{uri}: Label Studio can follow no link to it; set images to embed, or to files"
            )
        return uri
    data = storage.read_bytes(uri)
    if hashlib.sha256(data).hexdigest() != sha256:
        raise OacirError(f"{uri}: changed since it was collected (another sha256); build again")
    try:
        image = decode(data, ANY, target_px=recipe.image_side_px).image
    except ImageRejected as error:
        raise OacirError(f"{uri}: cannot be decoded ({error}); build again") from error
    small = jpeg(image, recipe.image_side_px, QUALITY)
    if recipe.images == "embed":
        return data_uri(small, "image/jpeg")
    place = f"images/{sha256[:32]}.jpg"
    storage.write_bytes(storage.join(out, place), small)
    return f"/data/local-files/?d={place}"


def _name(recipe: ReviewExportRecipe, chosen: list[dict[str, Any]]) -> str:
    """Of the folder: by what is shown and how, so that the same export is the same folder."""
    said = [recipe.images, recipe.image_side_px, *(f["row"]["task"] for f in chosen)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()[:16]


def _lot(seed: int, key: str) -> str:
    return hashlib.sha256(f"{seed}\0{key}".encode()).hexdigest()
