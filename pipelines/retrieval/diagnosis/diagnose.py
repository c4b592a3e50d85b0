"""`oacir diagnose`: kinds of mistakes, what β goes along with, where attention lies, two models side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import fmean
from typing import Any

from infra.base import storage
from infra.base.command import Context, Outcome
from infra.base.errors import OacirError
from infra.base.html import render
from infra.base.scatter import Point, scatter
from infra.base.versions import Version
from pipelines.retrieval.compared import Compared, compare, dataset_of
from pipelines.retrieval.diagnosis.classes import KINDS, Kind, Truth, crossed, kinds, table, truth_of
from pipelines.retrieval.diagnosis.config import DiagnoseRecipe
from pipelines.retrieval.diagnosis.looking import Look, measure
from pipelines.retrieval.diagnosis.relations import Relation, relate
from pipelines.retrieval.diagnosis.sides import TOP, Side, better, hardest, side_by_side
from pipelines.retrieval.examples import cards_of, draw
from pipelines.retrieval.inputs import image_sizes, load_tasks

Row = Mapping[str, Any]
DOTS = 400
"""Points of a scatter plot at most, evenly over the queries."""
CATEGORIES = 40
MARKUP_BYTES, MARKUP_BYTES_PER_IMAGE = 200_000, 250


def diagnose(recipe: DiagnoseRecipe, context: Context) -> Outcome:
    """Write the page.

    Raises:
        OacirError: the evaluations do not compare, or their benchmark cannot be found.
    """
    compared = compare(context.root, recipe.evaluations, recipe.labels)
    dataset = dataset_of(context.root, compared[0])
    split = compared[0].figures["split"]
    asked = sorted(
        (row for row in dataset.table("quadruples").to_pylist() if row["split"] == split),
        key=lambda row: row["query_id"],
    )
    url = _place(recipe, context)
    if context.dry_run:
        return Outcome(f"would write {url}: {len(compared)} models, {len(asked):,} queries of {dataset.url}")
    truth = truth_of(dataset, split)
    found = [kinds(one.rankings, asked, truth) for one in compared]
    looked, unseen = _looked(recipe, context.root, dataset, compared, asked)
    relations = [
        _relations(one, dataset, asked, looks, recipe.seed)
        for one, looks in zip(compared, looked, strict=True)
    ]
    sides: list[Side] = []
    if len(compared) == 2:
        sides = better(compared[0], compared[1], asked, found)
    hard, pairs, unreadable = _cards(recipe, dataset, compared, asked, sides)
    page = render(
        "diagnosis.html.jinja",
        title=recipe.title,
        models=[one.label for one in compared],
        figures=compared[0].figures,
        dataset=dataset.manifest,
        notes=sorted({note for one in compared for note in one.figures["notes"]}),
        truth=truth,
        kinds=[kind for kind in KINDS if kind in truth.words],
        by_domain=[_tables(own, asked, "domain") for own in found],
        by_category=[_tables(own, asked, "category")[:CATEGORIES] for own in found],
        crossed=crossed(*found) if len(found) == 2 else {},
        sides={side: sides.count(side) for side in ("first", "second", "same")} if sides else {},
        relations=relations,
        charts=[_charts(one, dataset, asked) for one in compared],
        attention=[_attention(looks, asked) for looks in looked],
        measured=[len(looks) for looks in looked],
        unseen=unseen,
        hard=hard,
        pairs=pairs,
        top=TOP,
        unreadable=unreadable,
        seed=recipe.seed,
    )
    data = str(page).encode()
    storage.write_bytes(url, data)
    figures = {
        "models": {
            one.label: {
                "kinds": _tables(found[i], asked, "domain"),
                "relations": [asdict(r) | {"verdict": r.verdict} for r in relations[i]],
                "attention": _attention(looked[i], asked),
            }
            for i, one in enumerate(compared)
        },
        "contexts": truth.context_of is not None,
        "differ": len(asked) - sides.count("same") if sides else None,
        "hardest": [card["id"] for card in hard],
        "side_by_side": [card["id"] for card in pairs],
        "bytes": len(data),
    }
    return Outcome(
        f"diagnosis of {' and '.join(one.label for one in compared)}, {len(asked):,} queries, {len(data) / 1e6:.1f} MB:"
        f" {url}",
        url,
        figures,
        tuple(_lines(compared, found, asked, truth) + unseen),
    )


def text_words(row: Row) -> float:
    """Words of a query's text."""
    return float(len(row["modification_text"].split()))


def box_area(row: Row, sizes: Mapping[str, tuple[int, int]]) -> float | None:
    """Share of the reference that the query's box covers, 0 to 1; None without a box."""
    if row["reference_box"] is None:
        return None
    x1, y1, x2, y2 = row["reference_box"]
    width, height = sizes[row["reference_id"]]
    return (x2 - x1) * (y2 - y1) / (width * height)


def beta_of(one: Compared, row: Row) -> float | None:
    """β of a query, the mean over its query tokens where each has its own; None where none was used."""
    beta = one.rankings[row["query_id"]]["beta"]
    return None if beta is None else fmean(beta)


def _place(recipe: DiagnoseRecipe, context: Context) -> str:
    if context.out is None:
        return storage.join(storage.absolute(context.root), "reports", f"{recipe.name}.html")
    out = storage.absolute(context.out)
    return out if out.endswith((".html", ".htm")) else storage.join(out, f"{recipe.name}.html")


def _tables(found: Sequence[Kind], asked: Sequence[Row], by: str) -> list[dict[str, Any]]:
    rows = table(found, asked, lambda row: row[by])
    return rows if by == "category" or len(rows) == 1 else [*rows, *table(found, asked, lambda _: "all")]


def _relations(
    one: Compared, dataset: Version, asked: Sequence[Row], looks: Mapping[str, Look], seed: int
) -> list[Relation]:
    betas = "β", [beta_of(one, row) for row in asked]
    if not any(beta is not None for beta in betas[1]):
        return []
    sizes = image_sizes(dataset)
    domains, instances = [row["domain"] for row in asked], [row["instance_id"] for row in asked]
    seen = [looks.get(row["query_id"]) for row in asked]
    others: list[tuple[str, list[float | None]]] = [
        ("box area (share of the photo)", [box_area(row, sizes) for row in asked]),
        ("text length (words)", [text_words(row) for row in asked]),
        ("target rank", [float(one.rankings[row["query_id"]]["target_rank"]) for row in asked]),
        (
            "attention gained inside the region",
            [None if look is None else look.inside - look.unmodulated for look in seen],
        ),
    ]
    return [relation for other in others for relation in relate(betas, other, domains, instances, seed)]


def _charts(one: Compared, dataset: Version, asked: Sequence[Row]) -> list[str]:
    sizes, step = image_sizes(dataset), -(-len(asked) // DOTS)
    names = sorted({row["domain"] for row in asked})
    charts = []
    for what, axis, value in (
        ("box area", "share of the photo inside the box", lambda row: box_area(row, sizes)),
        ("text length", "words", text_words),
    ):
        points = [
            Point(row["query_id"], x, y, names.index(row["domain"]))
            for row in asked[::step]
            if (y := beta_of(one, row)) is not None and (x := value(row)) is not None
        ]
        charts.append(scatter(f"β of {one.label} against {what}", points, names, x=axis, y="β"))
    return [chart for chart in charts if chart]


def _looked(
    recipe: DiagnoseRecipe, root: str, dataset: Version, compared: Sequence[Compared], asked: Sequence[Row]
) -> tuple[list[dict[str, Look]], list[str]]:
    """What each model looked at, and sentences on what could not be measured."""
    wanted = {row["query_id"] for row in draw(asked, recipe.attention_queries, recipe.seed)}
    if not wanted:
        return [{} for _ in compared], []
    tasks = load_tasks(dataset, compared[0].figures["split"])
    looked: list[dict[str, Look]] = []
    unseen: list[str] = []
    for one in compared:
        looks: dict[str, Look] = {}
        try:
            if one.figures.get("perturbed"):
                raise OacirError(
                    "its queries were perturbed, and only those of the benchmark can be asked again"
                )
            looks = measure(root, dataset, one, tasks, wanted, recipe.encode_batch_size)
        except OacirError as error:
            unseen.append(f"the attention of {one.label} is not measured: {error}")
        looked.append(looks)
    return looked, unseen


def _attention(looks: Mapping[str, Look], asked: Sequence[Row]) -> list[dict[str, Any]]:
    """Mean shares by domain and over all queries that were measured."""
    domain_of = {row["query_id"]: row["domain"] for row in asked}
    parts: dict[str, list[Look]] = {}
    for query_id, look in looks.items():
        parts.setdefault(domain_of[query_id], []).append(look)
    parts = dict(sorted(parts.items()))
    if len(parts) > 1:
        parts["all"] = list(looks.values())
    rows = []
    for name, own in parts.items():
        probes = [look.probes for look in own if look.probes is not None]
        rows.append(
            {
                "name": name,
                "queries": len(own),
                "area": fmean(look.area for look in own),
                "inside": fmean(look.inside for look in own),
                "unmodulated": fmean(look.unmodulated for look in own),
                "probes": fmean(probes) if probes else None,
            }
        )
    return rows


def _cards(
    recipe: DiagnoseRecipe,
    dataset: Version,
    compared: Sequence[Compared],
    asked: Sequence[Row],
    sides: Sequence[Side],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]], int]:
    hard = hardest(compared, asked)[: recipe.hardest]
    shown = side_by_side(compared[0], compared[1], asked, sides)[: recipe.queries] if sides else []
    rows = [*hard, *(row for row, _ in shown)]
    images = len(rows) * (2 + TOP * len(compared))
    budget = recipe.page_bytes - MARKUP_BYTES - images * MARKUP_BYTES_PER_IMAGE
    made, unreadable = cards_of(dataset, compared, rows, budget, TOP)
    pairs = made[len(hard) :]
    for card, (_, side) in zip(pairs, shown, strict=True):
        card["side"] = side
    return made[: len(hard)], pairs, unreadable


def _lines(
    compared: Sequence[Compared], found: Sequence[Sequence[Kind]], asked: Sequence[Row], truth: Truth
) -> list[str]:
    lines = []
    for one, own in zip(compared, found, strict=True):
        total = table(own, asked, lambda _: "all")[0]
        parts = [f"{words} {total[kind] / total['queries']:.1%}" for kind, words in truth.words.items()]
        lines.append(f"{one.label}, first image: {', '.join(parts)} (n = {total['queries']:,})")
    return lines
