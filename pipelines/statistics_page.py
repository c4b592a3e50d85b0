"""`oacir data stats`: one self-contained HTML page of what a benchmark holds, beside the published one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from infra.base import charts, storage, versions
from infra.base.command import Context, Outcome
from infra.base.config import Config
from infra.base.html import render
from infra.base.tables import aligned
from infra.base.versions import Manifest
from pipelines import published
from pipelines.sheets import sheets
from pipelines.statistics import (
    COSINE_EDGES,
    SHARE_EDGES,
    TEST,
    Counts,
    GalleryPart,
    Part,
    Statistics,
    add,
    as_figures,
    measure,
)
from pipelines.summary import in_order, people_lines

TRAINING_COLUMNS = (
    "quadruples",
    "images",
    "instances",
    "images an instance",
    "words a text",
    "most words",
    "distinct texts",
)
EVALUATION_COLUMNS = (
    "quadruples",
    "query instances",
    "gallery images",
    "distractors",
    "distractor instances",
    "words a text",
)
MARKUP_BYTES, MARKUP_BYTES_PER_CARD = 150_000, 900
"""What the page holds beside the pictures, and around each of them; with room to spare."""
MOST_BINS = 40
OTHERS = 5
"""Domains with a colour of their own; all smaller ones share the last."""


class StatsRecipe(Config):
    """Which benchmark to describe."""

    dataset: str
    """The benchmark: a path or URL of a version, name/key, or name (the newest of it)."""
    title: str = "What the benchmark holds"
    """Heading of the page."""
    quadruples: Annotated[int, Field(ge=0, le=200)] = 24
    """Quadruples shown, drawn by seed over the domains."""
    rejects: Annotated[int, Field(ge=0, le=50)] = 6
    """Rejects shown of each reason, drawn by seed."""
    seed: int = 0
    """Seed of the draws."""
    page_bytes: Annotated[int, Field(ge=300_000)] = 5_000_000
    """Largest size of the page; thumbnails shrink to fit, down to 48 px."""


def stats(recipe: StatsRecipe, context: Context) -> Outcome:
    """Write the page.

    Raises:
        VersionError: there is no such benchmark.
    """
    dataset = versions.resolve(context.root, "datasets", recipe.dataset, holding="quadruples")
    url = _place(dataset.manifest, context)
    if context.dry_run:
        rows = sum(f.rows or 0 for f in dataset.manifest.files if f.path.startswith("quadruples"))
        return Outcome(f"would write {url}: {rows:,} quadruples of {dataset.url}")
    found = measure(dataset)
    cards = recipe.quadruples + recipe.rejects * 16
    budget = recipe.page_bytes - MARKUP_BYTES - cards * MARKUP_BYTES_PER_CARD
    shown = sheets(dataset, recipe.quadruples, recipe.rejects, recipe.seed, max(0, budget))
    training, evaluation = training_table(found), evaluation_table(found)
    page = render(
        "stats.html.jinja",
        title=recipe.title,
        dataset=dataset.manifest,
        domains=len(found.domains),
        total=add(found.parts.values()),
        made_of=_made_of(dataset.manifest),
        notes=list(_notes(dataset.manifest)),
        training=training,
        evaluation=evaluation,
        near=_near(dataset.manifest),
        charts=[chart for chart in _charts(found) if chart],
        cards=shown.quadruples,
        refused=shown.refused,
        shown=recipe.rejects,
        unreadable=shown.unreadable,
        seed=recipe.seed,
        accounts=in_order(dataset.manifest.accounts),
        provenance=_provenance(dataset.manifest, dataset.url),
    )
    data = str(page).encode()
    storage.write_bytes(url, data)
    return Outcome(
        f"statistics of {dataset.manifest.name}, {len(data) / 1e6:.1f} MB: {url}",
        url,
        as_figures(found) | {"bytes": len(data), "unreadable": shown.unreadable},
        (*_lines(training), "", *_lines(evaluation)),
    )


def training_table(found: Statistics) -> dict[str, Any]:
    """Table 5: the training set by domain, with the published figures of a domain of the same name under ours."""
    groups = []
    for domain in found.domains:
        group = [_row(domain, _training_cells(found.training(domain)))]
        if named := published.TRAINING.get(domain.lower()):
            group.append(_row(f"{domain}, OACIRR", _published_training(named), "blind"))
        groups.append(group)
    everything = _row("all", _training_cells(add(found.training(d) for d in found.domains)))
    words = (f"{published.TRAINING_WORDS_MEAN}", f"{published.WORDS_MAX}", "–")
    total = _row("OACIRR", (*_published_training(published.TRAINING_ALL)[:4], *words), "blind")
    return {"caption": "Training", "columns": TRAINING_COLUMNS, "groups": [*groups, [everything, total]]}


def evaluation_table(found: Statistics) -> dict[str, Any]:
    """Table 6: the test queries and galleries by domain, with the published figures beside them."""
    groups = []
    for domain in found.domains:
        gallery = found.galleries.get((domain, TEST), GalleryPart())
        group = [_row(domain, _evaluation_cells(found.test(domain), [gallery]))]
        if named := published.EVALUATION.get(domain.lower()):
            cells = (f"{named.quadruples:,}", "–", f"{named.gallery:,}", "–", "–", "–")
            group.append(_row(f"{domain}, OACIRR", cells, "blind"))
        groups.append(group)
    galleries = [g for (_, split), g in found.galleries.items() if split == TEST]
    everything = _row("all", _evaluation_cells(add(found.test(d) for d in found.domains), galleries))
    numbers = (
        published.EVALUATION_ALL.quadruples,
        published.QUERY_INSTANCES,
        published.EVALUATION_ALL.gallery,
        published.DISTRACTORS,
        published.DISTRACTOR_INSTANCES,
    )
    total = _row("OACIRR", (*(f"{n:,}" for n in numbers), f"{published.EVALUATION_WORDS_MEAN}"), "blind")
    return {
        "caption": "Evaluation (test)",
        "columns": EVALUATION_COLUMNS,
        "groups": [*groups, [everything, total]],
    }


def _row(name: str, cells: Sequence[str], kind: str = "") -> dict[str, Any]:
    return {"name": name, "cells": cells, "kind": kind}


def _training_cells(part: Part) -> tuple[str, ...]:
    if not part.quadruples:
        return ("–",) * len(TRAINING_COLUMNS)
    return (
        f"{part.quadruples:,}",
        f"{part.images:,}",
        f"{part.instances:,}",
        f"{part.images / part.instances:.1f}",
        f"{part.words / part.quadruples:.1f}",
        f"{part.words_most}",
        f"{100 * part.texts / part.quadruples:.0f} %",
    )


def _published_training(part: published.Training) -> tuple[str, ...]:
    sizes = (f"{part.quadruples:,}", f"{part.images:,}", f"{part.instances:,}")
    return (*sizes, f"{part.images / part.instances:.1f}", "–", "–", "–")


def _evaluation_cells(part: Part, galleries: Sequence[GalleryPart]) -> tuple[str, ...]:
    if not part.quadruples:
        return ("–",) * len(EVALUATION_COLUMNS)
    return (
        f"{part.quadruples:,}",
        f"{part.instances:,}",
        f"{sum(g.images for g in galleries):,}",
        f"{sum(g.distractors for g in galleries):,}",
        f"{sum(len(g.distractor_instances) for g in galleries):,}",
        f"{part.words / part.quadruples:.1f}",
    )


def _charts(found: Statistics) -> Iterator[str]:
    """Histograms, a domain in the same colour in each."""
    own = _own_colours(found)
    words, images = _whole(found.words), _whole(found.images_of_an_instance)
    cosines, shares = _cropped(found.cosines, COSINE_EDGES), _cropped(found.box_shares, SHARE_EDGES)
    for title, (edges, counts), x, y in (
        ("Length of the texts", words, "words", "texts"),
        ("Similarity of reference and target", cosines, "cosine of the descriptors", "pairs"),
        ("Share of the reference that the box takes", shares, "box area / image area", "quadruples"),
        ("Images that quadruples use of an instance", images, "images", "instances"),
    ):
        yield charts.stacked_histogram(title, edges, _named(counts, own, len(edges) - 1), x=x, y=y)


Binned = tuple[list[float], dict[str, Counts]]
"""Edges of the bins, and counts by domain."""


def _own_colours(found: Statistics) -> list[str]:
    """The domains with a colour of their own, the largest where there are too many; in order of name."""
    size = {d: sum(c.values()) for d, c in found.words.items()}
    names = sorted({*size, *found.cosines})
    if len(names) <= OTHERS + 1:
        return names
    return sorted(sorted(names, key=lambda d: -size.get(d, 0))[:OTHERS])


def _whole(counts: Mapping[str, Mapping[int, int]]) -> Binned:
    """Bins of whole numbers, each of as many as make at most MOST_BINS."""
    values = [v for c in counts.values() for v in c]
    low, high = (min(values), max(values)) if values else (0, 0)
    step = -(-(high - low + 1) // MOST_BINS)
    bins = -(-(high - low + 1) // step)
    binned = {name: np.zeros(bins, np.int64) for name in counts}
    for name, count in counts.items():
        for value, number in count.items():
            binned[name][(value - low) // step] += number
    return [low - 0.5 + step * i for i in range(bins + 1)], binned


def _cropped(counts: Mapping[str, Counts], edges: Any) -> Binned:
    """Counted bins, empty ones at both ends left out."""
    some = np.flatnonzero(sum(counts.values(), np.zeros(len(edges) - 1, np.int64)))
    low, high = (int(some[0]), int(some[-1]) + 1) if len(some) else (0, 1)
    return list(edges[low : high + 1]), {d: c[low:high] for d, c in counts.items()}


def _named(counts: Mapping[str, Counts], own: Sequence[str], bins: int) -> list[tuple[str, list[int]]]:
    """A row for each domain with a colour, in the order of the colours, and one for all others together."""
    nothing = np.zeros(bins, np.int64)
    rows = [(domain, counts.get(domain, nothing).tolist()) for domain in own]
    rest = [domain for domain in counts if domain not in own]
    if rest:
        together = np.sum([counts[d] for d in rest], axis=0)
        rows.append((f"{len(rest)} more domains", together.tolist()))
    return rows


def _made_of(manifest: Manifest) -> str:
    figures = manifest.figures
    if "release" in figures:
        return f"imported from the release of {figures['release']['kind']}"
    if "annotator" in figures:
        return (
            f"built from {manifest.recipe['source']['kind']}, texts of the {figures['annotator']} annotator"
        )
    return "a dataset"


def _notes(manifest: Manifest) -> Iterator[str]:
    yield from manifest.figures.get("notes", ())
    for domain, figures in manifest.figures.get("domains", {}).items():
        if "why_no_query" in figures:
            yield f"{domain} has no test query: {figures['why_no_query']}"
    if people := manifest.figures.get("people"):
        yield from people_lines(people)


def _near(manifest: Manifest) -> str:
    near = manifest.figures.get("near_duplicates")
    if near is None:
        return ""
    rule = f"hashes within {near['max_bits']} bits and a cosine of at least {near['min_cosine']:g}"
    if not near["pairs"]:
        return f"No two photos of different instances are near-duplicates ({rule})."
    gone = sum(near["images_rejected"].values())
    return (
        f"Near-duplicates ({rule}): {near['pairs']:,} pairs among {near['images']:,} images of different instances."
        f" {near['pairs_across_splits']:,} pairs lay in two splits; {gone:,} images gave way, so that none does."
    )


def _provenance(manifest: Manifest, url: str) -> list[tuple[str, str]]:
    rows = [
        ("version", f"{manifest.name}/{manifest.key}"),
        ("place", url),
        ("content", manifest.content_hash),
        ("made", f"{manifest.created_at}, code {manifest.code_version}"),
        *((f"parent {role}", value) for role, value in manifest.parents.items()),
    ]
    galleries = manifest.figures.get("galleries", {})
    return rows + [(f"gallery {place}", g["sha256"]) for place, g in galleries.items()]


def _lines(table: Mapping[str, Any]) -> list[str]:
    rows = [[table["caption"], *table["columns"]]]
    rows += [[row["name"], *row["cells"]] for group in table["groups"] for row in group]
    return aligned(rows, right=range(1, len(table["columns"]) + 1))


def _place(manifest: Manifest, context: Context) -> str:
    name = f"stats-{manifest.name}.html"
    if context.out is None:
        return storage.join(storage.absolute(context.root), "reports", name)
    out = storage.absolute(context.out)
    return out if out.endswith((".html", ".htm")) else storage.join(out, name)
